"""A whole first evening, from the empty chat to the last key, as somebody new to it has it.

Every step is a key or a line that is typed, and is looked for on the screen and in the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input

from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.create import CreateScreen
from persona_tui.tui.screens.drift import DriftScreen
from persona_tui.tui.screens.fork import ForkScreen
from persona_tui.tui.screens.heat import HeatScreen
from persona_tui.tui.screens.map import MapScreen
from persona_tui.tui.screens.picture import PictureScreen
from persona_tui.tui.screens.sessions import SessionList, SessionsScreen
from persona_tui.tui.screens.sweep import SweepScreen
from persona_tui.tui.screens.write import WriteScreen
from persona_tui.tui.widgets.personas import PersonaList

from .driving import LONG, errors, picture, press, running, say, until

pytestmark = pytest.mark.slow

PASTED = "\n".join(f"line {number} of what was pasted" for number in range(20))


class Evening:
    """The app, and what somebody does in it."""

    def __init__(self, workspace: Path, app: PersonaApp, pilot: Pilot[None]) -> None:
        self.workspace, self.app, self.pilot = workspace, app, pilot

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await press(self.pilot, *keys)

    async def see(self, *texts: str) -> None:
        """Wait until texts are on the screen."""
        for text in texts:
            try:
                await until(
                    self.pilot, lambda text=text: text in picture(self.app), f"{text!r} is on the screen"
                )
            except AssertionError as error:
                raise AssertionError(f"{error}\n{picture(self.app)}") from error

    async def told(self, text: str) -> None:
        """Wait for a notice in the corner, which the pilot does not draw."""
        await self.happens(lambda: any(text in each.message for each in self.app._notifications), text)

    async def happens(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something."""
        await until(self.pilot, condition, what, LONG)

    async def ask(self, text: str = "") -> None:
        """Send what is in the prompt, or a text, and wait for the whole reply."""
        before = self.app.replies.last
        await (say(self.pilot, text) if text else self.press("enter"))
        await self.happens(lambda: self.app.replies.last is not before and not self.app.busy, "a reply")

    async def opened(self, kind: type[Any]) -> Any:
        """Wait for a screen with all its parts."""
        await self.happens(
            lambda: isinstance(self.app.screen, kind) and self.app.screen.is_mounted, kind.__name__
        )
        await self.pilot.pause()
        return self.app.screen

    async def marked(self, name: str) -> None:
        """Go to a persona in the list, from wherever it is."""
        people = self.app.main.query_one(PersonaList)
        if not people.has_focus:
            await self.press("f2")
        for _ in range(people.option_count):
            if people.highlighted_option is not None and people.highlighted_option.id == name:
                return
            await self.press("down")
        raise AssertionError(f"{name} is not in the list")

    def saved(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind that the open session has in its file."""
        path = self.workspace / "sessions" / f"{self.app.chat.session_id}.jsonl"
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [event for event in found if event["kind"] == kind]

    def vectors(self, name: str) -> list[Path]:
        """Return a persona's files, wherever they are."""
        return sorted(self.workspace.rglob(f"personas/{name}.safetensors"))


@pytest.mark.timeout(1800)
async def test_a_first_evening(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        evening = Evening(workspace, app, pilot)
        for part in (first_words, a_voice, two_answers, other_words, strengths, pictures):
            await part(evening)
        first = app.chat.session_id
        for part in (a_persona, a_paste, colours):
            await part(evening)
        await another_session(evening, first or "")
        assert not errors(app)
        await press(pilot, "ctrl+q")
        assert app._exit and app.return_code == 0
    assert "interface" in (workspace / "config.yaml").read_text(encoding="utf-8")


async def first_words(evening: Evening) -> None:
    """The empty chat offers questions; tab writes one, enter sends it."""
    await evening.see("You are talking to builtin", "What is bread made of?", "Next: f2 chooses who speaks")
    await evening.press("tab")
    assert evening.app.main.prompt.text == "What is bread made of?"
    await evening.ask()
    reply = evening.app.chat.conversation.last_reply()
    assert reply is not None and reply.text.strip()
    await evening.see("you", reply.text.split()[0], "tok/s")
    assert [event["text"] for event in evening.saved("message")] == ["What is bread made of?"]


async def a_voice(evening: Evening) -> None:
    """A persona speaks, and louder; the keys are the prompt's again at once."""
    app = evening.app
    await evening.marked("sage")
    await evening.press("enter")
    assert app.focused is app.main.prompt and app.chat.mix.weights == {"sage": 1.0}
    await evening.see("sage 0.30")
    await evening.press(*"daily")
    assert app.main.prompt.text == "daily" and evening.vectors("sage")
    await evening.press("ctrl+c")
    await evening.ask("What makes a good day?")
    await evening.press("ctrl+up", "ctrl+up")
    await evening.see("sage 0.40")
    await evening.ask("And a bad one?")
    await evening.see("strength 0.30 → 0.40")
    spoken = [event["settings"]["mix"] for event in evening.saved("settings")]
    assert [mix["strength"] for mix in spoken] == [0.3, 0.3, 0.4]
    assert [mix["weights"] for mix in spoken] == [{}, {"sage": 1.0}, {"sage": 1.0}]


async def two_answers(evening: Evening) -> None:
    """A/B: both answers stand side by side; the one that is kept goes on, the other stays beside it."""
    app = evening.app
    await evening.press("f6")
    await evening.see("A", "B")
    await evening.ask("Who are you?")
    await evening.see("keeps A")
    texts = [row.text for row in app.replies.rows]
    assert len(texts) == 2 and all(text.strip() for text in texts) and texts[0] != texts[1]
    await evening.press("alt+left")
    await evening.happens(lambda: not app.replies.rows, "one is kept")
    kept = app.chat.conversation.last_reply()
    assert kept is not None and kept.text == texts[0] and app.chat.conversation.siblings(kept.id) == (1, 2)
    await evening.see("‹2/2›")


async def other_words(evening: Evening) -> None:
    """In the inspector, another token is said in place of one; that is a branch."""
    app = evening.app
    before = app.chat.conversation.last_reply()
    assert before is not None
    await evening.press("f7")
    await evening.see("spoken ", "unsteered ")
    await evening.press("right", "right", "enter")
    fork = await evening.opened(ForkScreen)
    instead = fork._offered[0]
    last = app.replies.last
    await evening.press("enter")
    await evening.happens(lambda: app.replies.last is not last and not app.busy, "it goes on from there")
    branch = app.chat.conversation.last_reply()
    assert branch is not None and branch.id != before.id
    begun = "".join(before.token_texts[:2]) + instead
    assert branch.text.startswith(begun) and app.chat.conversation.siblings(branch.id) == (2, 3)
    assert app.chat.conversation.node(before.id).text == before.text
    await evening.see("‹3/3›")


async def strengths(evening: Evening) -> None:
    """The same prompt at five strengths; a digit goes on with one of them."""
    app = evening.app
    await say(evening.pilot, "/sweep Who are you?")
    await evening.opened(SweepScreen)
    await evening.see("strength 0.00", "strength 0.80", "nats from plain", "repetition")
    await evening.press("3")
    await evening.see("Strength 0.30 from now on")
    await evening.press("q")
    assert app.screen is app.main and app.chat.mix.strength == 0.3
    await evening.see("sage 0.30")


async def pictures(evening: Evening) -> None:
    """The map, the conversation's way, and a reply as layers by tokens."""
    kinds: tuple[tuple[str, type[PictureScreen], str], ...] = (
        ("/map", MapScreen, "of the variance"),
        ("/drift", DriftScreen, "95% of ordinary replies"),
        ("/heat", HeatScreen, "of the stream at layer"),
    )
    for command, kind, told in kinds:
        await say(evening.pilot, command)
        screen = await evening.opened(kind)
        await evening.happens(lambda screen=screen: screen.idle, "the figures")
        await evening.see(told)
        await evening.press("q")
        assert evening.app.screen is evening.app.main


async def a_persona(evening: Evening) -> None:
    """A persona is made from a description, deleted, and brought back by one key."""
    app = evening.app
    await evening.press("f2", "insert")
    await evening.opened(CreateScreen)
    await evening.press(*"a grumpy old wizard")
    await evening.see("grumpy_old_wizard")
    await evening.press("enter", "enter")
    await evening.opened(WriteScreen)
    await evening.see("system prompts of grumpy_old_wizard", "Create")
    await evening.press("ctrl+s")
    await evening.happens(lambda: app.jobs.running is not None, "it is being made")
    await evening.happens(
        lambda: app.jobs.running is None and bool(evening.vectors("grumpy_old_wizard")), "it is made"
    )
    await evening.see("grumpy_old_wizard")
    await evening.marked("grumpy_old_wizard")
    await evening.press("delete")
    await evening.opened(ConfirmScreen)
    await evening.see("brings it back")
    await evening.press("right", "enter")
    await evening.told("grumpy_old_wizard is deleted")
    (path,) = evening.vectors("grumpy_old_wizard")
    assert path.is_relative_to(evening.workspace / "trash")
    await evening.press("ctrl+t")
    await evening.happens(lambda: path not in evening.vectors("grumpy_old_wizard"), "it is back")
    (path,) = evening.vectors("grumpy_old_wizard")
    assert path.is_relative_to(evening.workspace / "vectors")
    await evening.press("escape")
    assert "grumpy_old_wizard" in app.project.personas.list_available()


async def a_paste(evening: Evening) -> None:
    """Twenty pasted lines are a text that waits to be sent; one key takes it back."""
    app, said = evening.app, len(evening.app.chat.conversation)
    app.main.set_focus(app.main.prompt)
    app.post_message(events.Paste(PASTED))
    await evening.happens(lambda: app.main.prompt.text == PASTED, "all lines are there")
    await evening.see("line 19 of what was pasted")
    await evening.press("ctrl+z")
    assert (
        app.main.prompt.text == "" and len(app.chat.conversation) == said and app.focused is app.main.prompt
    )


async def colours(evening: Evening) -> None:
    """Another theme stays for the next runs."""
    dark = evening.app.current_theme.dark
    await say(evening.pilot, "/theme light" if dark else "/theme dark")
    assert evening.app.current_theme.dark is not dark
    assert evening.app.theme in (evening.workspace / "config.yaml").read_text(encoding="utf-8")


async def another_session(evening: Evening, first: str) -> None:
    """After a new conversation, the first one is found by a word of it and gone on with."""
    app = evening.app
    texts = [node.text for node in app.chat.conversation.path()]
    await say(evening.pilot, "/new")
    assert not len(app.chat.conversation)
    await evening.see("You are talking to builtin")
    await evening.ask("How can I make a friend?")
    assert app.chat.session_id != first
    await evening.press("f8")
    screen = await evening.opened(SessionsScreen)
    sessions = screen.query_one(SessionList)
    await evening.happens(lambda: sessions.option_count == 2, "both sessions")
    await evening.press("slash", *"bread")
    assert screen.query_one("#search", Input).value == "bread"
    await evening.happens(lambda: sessions.option_count == 1, "the one with that word")
    await evening.press("enter", "enter")
    await evening.happens(lambda: app.screen is app.main and app.chat.session_id == first, "it is resumed")
    assert [node.text for node in app.chat.conversation.path()] == texts
    assert [block.source for block in app.main.chat.messages] == texts
    assert app.chat.mix.weights == {"sage": 1.0} and app.chat.mix.strength == 0.3
