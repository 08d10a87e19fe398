"""Random keys, pastes, clicks and sizes while replies are written and personas are made: nothing may break.

The suite has a short form of it; `make stress` presses 500 keys with each of 20 seeds.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot

from persona_tui.chat import Conversation, SessionStore
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import Project
from persona_tui.remote.project import RemoteProject
from persona_tui.server.run import Server
from persona_tui.tui.app import PersonaApp
from tests.remote.conftest import endless, laptop, project, server

from .driving import LONGEST, never_ending, press, running, say

__all__ = ["endless", "laptop", "project", "server"]

pytestmark = pytest.mark.slow

NAMED = "enter space tab shift+tab escape up down left right home end pageup pagedown backspace minus"
CONTROL = "ctrl+up ctrl+down ctrl+p ctrl+j ctrl+s f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12 alt+left alt+right"
MORE = "alt+t alt+c delete insert ctrl+z ctrl+y ctrl+t ctrl+c ctrl+l ctrl+n ctrl+o ctrl+r ctrl+end"
INSPECTOR = "alt+up alt+down shift+left shift+right shift+up shift+down ctrl+k"
LETTERS = "ndisca/0.5jkgGqy123flrwpx"
KEYS = [*NAMED.split(" "), *CONTROL.split(" "), *MORE.split(" "), *INSPECTOR.split(" "), *LETTERS]
PASTED = ["short", "/map", "\n".join(f"line {number}" for number in range(40)), "/", "x" * 3000]
PICTURES = ["/map", "/drift", "/heat", "/sweep Hello", "/tint", "/info sage"]
# Typed, and sent: random keys hardly ever get that far.
COMMANDS = [
    *PICTURES,
    *("/persona sage", "/blend sage:0.5,trickster:-0.4", "/compare", "/system Be brief.", "/guard warn"),
    *("/policy harmful_validation>0.5", "/new", "/theme light", "/theme dark", "/inspect", "/nothing"),
]
SIZES = [(80, 24), (120, 40), (200, 60), (30, 8)]
RESIZES = PASTES = CLICKS = COMMANDED = 0.05  # of all keys
STIR = 40  # keys after which a reply and a job are begun again, if none is under way


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported, or saved as a screenshot, goes where nobody minds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_key_breaks_anything(workspace: Path, seed: int) -> None:
    await soak(workspace, seed, presses=80)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 21))
async def test_five_hundred_keys_break_nothing(workspace: Path, seed: int) -> None:
    await soak(workspace, seed, presses=500)


@pytest.mark.parametrize("seed", [1])
async def test_no_key_breaks_a_chat_with_a_model_elsewhere(
    laptop: Path, server: Server, endless: None, seed: int
) -> None:
    await soak(laptop, seed, presses=80, url=server.url)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 5))
async def test_five_hundred_keys_break_no_chat_with_a_model_elsewhere(
    laptop: Path, server: Server, endless: None, seed: int
) -> None:
    await soak(laptop, seed, presses=500, url=server.url)


async def soak(workspace: Path, seed: int, presses: int, url: str | None = None) -> None:
    """Press so many keys. Some of them may leave the app: then it is started again.

    Args:
        workspace: where sessions are saved.
        seed: of the keys.
        presses: how many.
        url: of the server that has the model; None = it is here.
    """
    chance = random.Random(seed)
    while presses > 0:
        project = RemoteProject.connect(url, workspace=workspace) if url else Project.open(workspace)
        presses -= await evening(workspace, project, chance, presses)


async def evening(workspace: Path, project: Project, chance: random.Random, presses: int) -> int:
    """Run the app for so many keys, or until one of them leaves it; how many that were."""
    here = not isinstance(project, RemoteProject)
    async with running(project, chance.choice(SIZES)) as (app, pilot):
        if here:
            never_ending(app)
        app.chat.sampling_changes = {"max_new_tokens": LONGEST}
        count = 0
        while count < presses and not left(app):
            if count % STIR == 0:
                await stir(pilot, app, f"wizard{chance.getrandbits(32)}")
            if chance.random() < RESIZES:
                await pilot.resize_terminal(*chance.choice(SIZES))
            if chance.random() < PASTES and not left(app):
                app.post_message(events.Paste(chance.choice(PASTED)))
            if chance.random() < CLICKS and not left(app):
                click(app, chance.randrange(app.size.width), chance.randrange(app.size.height))
            if chance.random() < COMMANDED and not left(app):
                app.post_message(events.Paste(chance.choice(COMMANDS)))
                await press_unless_left(pilot, app, "enter")
            await press_unless_left(pilot, app, chance.choice(KEYS))
            count += 1
        conversation, session = app.chat.conversation, app.chat.session_id
    if here:
        check_hooks(app)
    check_session(workspace, conversation, session)
    return count


def click(app: PersonaApp, x: int, y: int) -> None:
    """Press a mouse button there, and let go of it."""
    for kind in (events.MouseDown, events.MouseUp):
        app.post_message(kind(None, x, y, 0, 0, 1, False, False, False, x, y))


def left(app: PersonaApp) -> bool:
    """Whether somebody has chosen to leave: from the palette, or with /quit."""
    return app._exit or not app.is_running


async def press_unless_left(pilot: Pilot[None], app: PersonaApp, *keys: str) -> None:
    """Press keys; what waits for an app that is leaving waits in vain."""
    for key in keys:
        try:
            if not left(app):
                await press(pilot, key)
        except TimeoutError:
            assert left(app), f"nothing came of {key}"


async def stir(pilot: Pilot[None], app: PersonaApp, name: str) -> None:
    """Begin a reply and a job, unless there are."""
    await press_unless_left(pilot, app, *["escape"] * 4)
    if left(app) or app.focused is not app.main.prompt:
        return
    app.main.prompt.replace_text("")
    if app.jobs.running is None:
        await say(pilot, f"/create {name} a grumpy old wizard")
    if not app.busy and not left(app):
        await say(pilot, "Hello")


def check_hooks(app: PersonaApp) -> None:
    """Nothing is left in the model."""
    engine = app.project.loaded_engine
    assert engine is not None
    for module in engine.model.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def check_session(workspace: Path, conversation: Conversation, open_session: str | None) -> None:
    """Every session can be read, and the one that was open has every line of what was on the screen."""
    store = SessionStore(Workspace.find(workspace))
    assert not [info.problem for info in store.list() if info.problem]
    if open_session is not None and len(conversation):
        assert written(store.load(open_session)[0]) == written(conversation)


def written(conversation: Conversation) -> list[str]:
    """Its messages on all branches, and which of them are on its path, as JSON has them.

    A reply that nobody had ended when the app was left is interrupted, as it is when it is read again.
    """
    nodes = [asdict(node) for node in conversation.nodes()]
    for run in (run for node in nodes for run in node["runs"]):
        run["finish"] = run["finish"] or "interrupted"
    path = [str(node.id) for node in conversation.path()]
    return [*(json.dumps(node, sort_keys=True) for node in nodes), *path]
