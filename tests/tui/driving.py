"""Runs the app without a terminal, presses keys, and waits for what should follow."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual import events
from textual.app import App
from textual.keys import _character_to_key
from textual.message_pump import MessagePump
from textual.pilot import Pilot

from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp

TIMEOUT = float(os.environ.get("PERSONA_TUI_PATIENCE", 60))  # more, where much else is going on
LONG = 300.0  # for jobs that compute
_CHARACTERS = {"space": " ", "slash": "/"}
LONGEST = 1500  # tokens in a reply that does not end by itself


async def until(
    pilot: Pilot[None], condition: Callable[[], bool], what: str = "", within: float | None = None
) -> None:
    """Let the app work until a condition holds.

    Raises:
        AssertionError: it does not within so many seconds; by default a minute.
    """
    deadline = asyncio.get_running_loop().time() + (TIMEOUT if within is None else within)
    while not condition():
        if (crash := pilot.app._exception) is not None:
            raise crash
        check_nothing_failed(pilot.app)
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what or condition}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    workspace: Path | Project,
    size: tuple[int, int] = (80, 24),
    mix: Mix | None = None,
    resume: str | None = None,
) -> AsyncIterator[tuple[PersonaApp, Pilot[None]]]:
    """Run the app until the block ends, and then its thread."""
    project = Project.open(workspace) if isinstance(workspace, Path) else workspace
    app = PersonaApp(project, mix, resume)
    try:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.model_ready, "the model is loaded")
            yield app, pilot
            check_nothing_failed(app)
    finally:
        assert app.worker.close(timeout=TIMEOUT), "the model's thread ends"
        app.chat.close()


def check_nothing_failed(app: App[None]) -> None:
    """What the app has survived is a mistake all the same."""
    if isinstance(app, PersonaApp) and app.failures:
        raise app.failures[0]


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Press keys, each once what the one before has set off is done.

    `Pilot.press` waits for the processor to be idle instead: seconds for each key, while a reply is written.
    """
    app = pilot.app
    for key in keys:
        name = _character_to_key(key) if len(key) == 1 else key
        app.post_message(events.Key(name, key if len(key) == 1 else _character(key)))
        await _settle(app)


def _character(key: str) -> str | None:
    """Return what a terminal sends with a key by its name: with alt+t, a t."""
    return key[-1] if key.startswith("alt+") and len(key) == len("alt+t") else _CHARACTERS.get(key)


async def _settle(app: App[None]) -> None:
    """Wait until a key has gone from the app to the focused widget and back, and so has what came of it."""
    await _processed(app)
    for _ in range(2):
        start = app.focused if app.focused is not None else app.screen
        for node in list(start.ancestors_with_self):
            await _processed(node)
    while isinstance(app, PersonaApp) and app.keys_waiting and app.is_running and not app._exit:
        await asyncio.sleep(0)


async def _processed(node: MessagePump) -> None:
    """Wait until a node has processed what is in its queue."""
    done = asyncio.Event()
    if node.call_later(done.set):
        await asyncio.wait_for(done.wait(), TIMEOUT)


async def say(pilot: Pilot[None], text: str) -> None:
    """Paste a text and send it."""
    pilot.app.post_message(events.Paste(text))
    await press(pilot, "enter")


def never_ending(app: PersonaApp) -> None:
    """Let no reply end by itself, so that there is time to do something while one is written."""
    app.project.model._end_tokens = frozenset()
    app.chat.sampling_changes = {"max_new_tokens": LONGEST}


async def reply(pilot: Pilot[None], app: PersonaApp, text: str) -> None:
    """Say something and wait for the whole reply."""
    before = app.replies.last
    await say(pilot, text)
    await until(pilot, lambda: app.replies.last is not before and not app.busy, f"a reply to {text}")


def notes(app: PersonaApp) -> list[str]:
    """Return what the app has said in the chat."""
    return [note.content.plain for note in app.main.chat.notes]


def errors(app: PersonaApp) -> list[str]:
    """Return what of that was errors."""
    return [note.content.plain for note in app.main.chat.notes if note.error]


def toasts(app: PersonaApp) -> list[str]:
    """Return what is shown for a moment, and no longer."""
    return [toast.message for toast in app._notifications]


def picture(app: PersonaApp) -> str:
    """Return the screen as text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
