"""Files whose metadata is wrong: the app says which field of which file, and goes on with the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_tui.vectors.files import load_tensors, save_tensors

from .driving import errors, press, reply, running, say, toasts, until

Metadata = dict[str, Any]


def _gain(metadata: Metadata) -> None:
    metadata["calibration"]["gain"] = "x"


def _layers(metadata: Metadata) -> None:
    metadata["calibration"]["layers"] = None


def _strength(metadata: Metadata) -> None:
    metadata["calibration"]["default_strength"] = None


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("calibration.gain", _gain),
        ("calibration.layers", _layers),
        ("calibration.default_strength", _strength),
    ],
)
async def test_a_persona_is_refused_in_a_line_and_another_one_speaks(
    workspace: Path, field: str, spoil: Callable[[Metadata], None]
) -> None:
    path = workspace / "vectors" / "builtin" / "personas" / "sage.safetensors"
    tensors, metadata = load_tensors(path)
    spoil(metadata)
    save_tensors(path, tensors, metadata)
    async with running(workspace) as (app, pilot):
        await say(pilot, "/persona sage")
        await until(pilot, lambda: bool(errors(app)), "an error")
        (said,) = errors(app)
        assert "sage.safetensors" in said and field in said and "\n" not in said
        await say(pilot, "/persona trickster")
        await until(pilot, lambda: bool(app.chat.mix.weights), "the other one speaks")
        await reply(pilot, app, "What is bread?")
        assert app.replies.last is not None and len(errors(app)) == 1


@pytest.mark.slow
async def test_a_session_is_refused_in_a_line_and_the_chat_goes_on(workspace: Path) -> None:
    folder = workspace / "sessions"
    folder.mkdir()
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
    (path,) = folder.glob("*.jsonl")
    spoilt = path.read_text(encoding="utf-8").replace('"strength": 0.3', '"strength": null')
    assert '"strength": null' in spoilt
    path.with_name("spoilt.jsonl").write_text(spoilt, encoding="utf-8")
    async with running(workspace) as (app, pilot):
        await say(pilot, "/resume spoilt")
        await until(pilot, lambda: bool(errors(app)), "an error")
        (said,) = errors(app)
        assert "spoilt" in said and "strength" in said and "\n" not in said
        await reply(pilot, app, "What is a friend?")


async def test_what_cannot_be_saved_is_not_said_and_stays_in_the_prompt(workspace: Path) -> None:
    blocked = workspace / "sessions"
    blocked.write_text("a file where the folder of the sessions should be")
    async with running(workspace) as (app, pilot):
        await say(pilot, "What is bread?")
        await until(pilot, lambda: bool(toasts(app)), "an error")
        assert any("sessions cannot be made" in said and "chat --no-save" in said for said in toasts(app))
        assert app.main.prompt.text == "What is bread?" and not len(app.chat.conversation)
        blocked.unlink()
        await press(pilot, "enter")
        await until(pilot, lambda: app.replies.last is not None and not app.busy, "a reply")
        assert app.main.prompt.text == ""


async def test_an_edited_message_that_cannot_be_saved_is_still_being_edited(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        app.chat.close()  # what follows is a session of its own, which cannot be begun
        sessions = workspace / "sessions"
        sessions.rename(workspace / "elsewhere")
        sessions.write_text("in the way")
        await press(pilot, "alt+up", "alt+up", "e")
        await until(pilot, lambda: app.main.prompt.editing == 1, "editing")
        await press(pilot, "end", "!", "enter")
        await until(pilot, lambda: any("cannot be made" in said for said in toasts(app)), "an error")
        assert (app.main.prompt.text, app.main.prompt.editing) == ("What is bread?!", 1)


async def test_a_workspace_that_keeps_nothing_lets_one_speak_as_anybody(workspace: Path) -> None:
    (workspace / "vectors" / "builtin" / "loaded.json").mkdir()
    async with running(workspace) as (app, pilot):
        await say(pilot, "/persona sage")
        await until(pilot, lambda: app.chat.mix.weights == {"sage": 1.0}, "sage speaks")
        await reply(pilot, app, "What is bread?")
        assert not errors(app) and not toasts(app)
