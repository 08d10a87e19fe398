"""Choosing another model in the app."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from persona_tui.chat import SessionStore
from persona_tui.core.mix import Mix
from persona_tui.model import ModelWrapper
from persona_tui.project.models import RecentModels
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.model import ModelList, ModelScreen, folders
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.jobs_panel import JobList, JobLog
from persona_tui.vectors.files import load_tensors, save_tensors
from tests.model.conftest import make_model, make_tokenizer
from tests.model.gguf_files import put_in_ollama, write_gguf

from .driving import errors, never_ending, notes, press, reply, running, say, until

pytestmark = pytest.mark.slow


def facts(app: PersonaApp) -> str:
    return app.screen.query_one("#model-facts").render().plain


async def opened(pilot: Pilot[None], app: PersonaApp, key: str = "f10") -> ModelScreen:
    await press(pilot, key)
    await until(pilot, lambda: isinstance(app.screen, ModelScreen), "the screen")
    screen = app.screen
    assert isinstance(screen, ModelScreen)
    await until(pilot, lambda: isinstance(screen.focused, ModelList), "its list")
    return screen


async def test_a_folder_is_validated_while_it_is_typed_and_loaded(workspace: Path, tiny: Path) -> None:
    async with running(workspace, mix=Mix({"sage": 1.0})) as (app, pilot):
        before = app.project
        await reply(pilot, app, "Hello")
        await say(pilot, "/guard warn")
        screen = await opened(pilot, app)
        await until(pilot, lambda: "memory about" in facts(app) and "free" in facts(app), "the estimate")
        assert "builtin" in screen._rows and not app.screen.query_one("#model-facts").has_class("-error")
        await press(pilot, "slash")
        field = screen.query_one("#model-name", Input)
        field.value = str(tiny.parent / "not")
        await until(pilot, lambda: "There is no model folder" in facts(app), "there is no such folder")
        assert screen._rows == [str(tiny.parent / "not_a_model")]
        field.value = str(tiny.parent / "not_a_model")
        await until(pilot, lambda: "not a model folder" in facts(app), "why not")
        await press(pilot, "enter")
        assert app.screen is screen, "what cannot be loaded is not taken"
        field.value = str(tiny)
        await until(pilot, lambda: "layers of" in facts(app), "what it is")
        await press(pilot, "enter")
        await until(pilot, lambda: app.project is not before and app.model_ready, "the other model")
        await until(pilot, lambda: app.main.status.status.model == "tiny", "its name, without folders")
        assert any("Now talking to" in note and "It has no sage" in note for note in notes(app))
        assert any("The guard is off" in note for note in notes(app))
        assert app.chat.mix.weights == {} and app.project.personas.list_available() == []
        await reply(pilot, app, "Hello again")
        assert not errors(app) and len(app.main.chat.messages) == 4
        assert RecentModels(app.project.workspace).list()[0].name == str(tiny)
        await say(pilot, "/model builtin")
        await until(pilot, lambda: app.project.settings.model.name == "builtin", "back again")
        await until(pilot, lambda: "sage" in app.people._names, "with its personas")
        session = SessionStore(app.project.workspace).load(app.chat.session_id or "")[0]
        written = [node.runs[0].settings["model"] for node in session.path() if node.runs]
        assert written == ["builtin", str(tiny)], "the transcript says who spoke"


async def test_a_failure_leaves_the_old_model(workspace: Path, tmp_path: Path, tiny: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(b"{}" if path.name == "tokenizer.json" else data)
    async with running(workspace) as (app, pilot):
        before = app.project
        await say(pilot, f"/model {broken}")
        await until(pilot, lambda: bool(errors(app)), "an error")
        assert len(errors(app)) == 1 and "\n" not in errors(app)[0] and "broken" in errors(app)[0]
        assert notes(app)[-1] == "builtin stays."
        assert app.project is before and app.model_ready
        await reply(pilot, app, "Hello")
        assert app.main.chat.messages[-1].source


async def test_another_model_waits_until_the_reply_has_ended(workspace: Path, tiny: Path) -> None:
    async with running(workspace) as (app, pilot):
        before = app.project
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 2, "tokens")
        await say(pilot, f"/model {tiny}")
        job = app.jobs.running
        assert job is not None and job.name == "load tiny"
        assert app.project is before and app.busy
        await press(pilot, "escape")
        await until(pilot, lambda: app.project is not before, "the other model")
        assert not app.busy and app.main.chat.messages[-1].source


async def test_loading_is_cancelled(workspace: Path, tiny: Path) -> None:
    async with running(workspace) as (app, pilot):
        before = app.project
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 2, "tokens")
        await say(pilot, f"/model {tiny}")
        job = app.jobs.running
        assert job is not None
        await press(pilot, "f4", "delete")
        await until(pilot, lambda: job.ended, "cancelled, while the reply goes on")
        assert job.state == "cancelled" and app.busy
        await press(pilot, "escape", "escape")
        await until(pilot, lambda: not app.busy, "the reply is stopped")
        assert app.project is before
        assert any("was not loaded. builtin stays." in note for note in notes(app))


async def test_a_model_that_is_missing_at_the_start_can_be_replaced(workspace: Path) -> None:
    nowhere = workspace / "nowhere"
    nowhere.mkdir()
    (workspace / "config.yaml").write_text(f"model: {{name: {nowhere}}}\ngeneration: {{seed: 1}}")
    app = app_of(workspace)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: bool(errors(app)), "an error")
            assert "nowhere" in errors(app)[0]
            await say(pilot, "Hello")
            assert not app.main.chat.messages and not app.busy
            await until(pilot, lambda: app.main.prompt.text == "Hello", "what could not be sent is not lost")
            app.main.prompt.replace_text("")
            await say(pilot, "/model builtin")
            await until(pilot, lambda: app.model_ready, "the tiny model")
            await reply(pilot, app, "Hello")
            assert app.main.chat.messages[-1].source
    finally:
        assert app.worker.close(timeout=10)
        app.chat.close()


async def test_the_app_starts_without_the_models_folder(workspace: Path) -> None:
    nowhere = workspace / "no" / "model"
    (workspace / "config.yaml").write_text(f"model: {{name: {nowhere}}}\ngeneration: {{seed: 1}}")
    app = app_of(workspace)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: bool(errors(app)), "an error")
            assert errors(app) == [f"Error: There is no model folder {nowhere}."]
            await opened(pilot, app)
            await press(pilot, "escape")
            await say(pilot, "/model builtin")
            await until(pilot, lambda: app.model_ready, "the tiny model")
    finally:
        assert app.worker.close(timeout=10)
        app.chat.close()


async def test_a_model_that_is_loaded_again_stands_in_the_jobs_once(workspace: Path) -> None:
    async with running(workspace, size=(120, 40)) as (app, pilot):
        first = app.project
        await say(pilot, "/model builtin")
        await until(pilot, lambda: app.project is not first, "it is loaded again")
        await press(pilot, "f4")
        assert [option.prompt for option in app.main.query_one(JobList).options] == []
        told = [line for line in app.main.query_one(JobLog).lines if "load builtin" in line]
        assert len(told) == 2 and all("done after" in line for line in told), "one line for each"


def app_of(workspace: Path) -> PersonaApp:
    from persona_tui.project.project import Project

    return PersonaApp(Project.open(workspace), Mix())


async def test_the_list_and_how_it_is_loaded(workspace: Path, tiny: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        before = app.project
        screen = await opened(pilot, app)
        await press(pilot, "tab")
        assert isinstance(screen.focused, Chooser) and screen.focused.id == "device"
        await press(pilot, "tab", "right", "right")
        assert screen.query_one("#dtype", Chooser).value == "bfloat16"
        await press(pilot, "shift+tab", "shift+tab", "enter")
        await until(pilot, lambda: app.project is not before, "loaded again")
        assert app.project.settings.model.dtype == "bfloat16"
        assert RecentModels(app.project.workspace).list()[0].how == "bfloat16"


async def test_a_name_that_is_not_here_is_looked_for_on_the_hub_when_asked(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(workspace) as (app, pilot):
        screen = await opened(pilot, app)
        await press(pilot, "slash")
        screen.query_one("#model-name", Input).value = "somebody/no-such-model"
        await until(pilot, lambda: "Enter looks for it" in facts(app), "what enter does")
        await press(pilot, "escape")
        assert app.screen is app.main


def test_folders_that_a_path_may_become(tmp_path: Path) -> None:
    for name in ("ab", "abc", ".hidden", "xyz"):
        (tmp_path / name).mkdir()
    (tmp_path / "abc" / "config.json").touch()
    (tmp_path / "abfile").touch()
    assert folders(f"{tmp_path}/ab") == [f"{tmp_path}/abc", f"{tmp_path}/ab"]
    assert folders(f"{tmp_path}/") == [f"{tmp_path}/{name}" for name in ("abc", "ab", "xyz")]
    assert folders(f"{tmp_path}/nowhere/x") == []


async def test_models_on_this_machine_are_offered(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "small.gguf", make_model("llama"), make_tokenizer())
    put_in_ollama(file, tmp_path / "ollama", "small")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("PERSONA_TUI_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    async with running(workspace) as (app, pilot):
        screen = await opened(pilot, app)
        await until(pilot, lambda: screen._rows == ["starter", "builtin", "ollama:small:latest"], "the rows")
        field = screen.query_one("#model-name", Input)
        await press(pilot, "slash")
        field.value = "starter"
        await until(pilot, lambda: "Enter fetches it: about 270 MB" in facts(app), "what it would take")
        await press(pilot, "enter")
        await until(pilot, lambda: bool(errors(app)), "there is no network")
        assert "The starter model cannot be fetched" in errors(app)[0] and notes(app)[-1] == "builtin stays."
        await say(pilot, "/model ollama:small")
        await until(pilot, lambda: app.project.settings.model.name == "ollama:small", "the other model")
        await reply(pilot, app, "Hello")
        assert app.project.engine.model.source.startswith("ollama small:latest sha256:")
        _, events = SessionStore(app.project.workspace).load(app.chat.session_id or "")
        assert events[0].fields["source"] == app.project.engine.model.source


async def test_the_tiny_model_says_that_there_is_a_better_one(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONA_TUI_MODELS", str(tmp_path / "models"))
    (workspace / "config.yaml").write_text("generation: {max_new_tokens: 8, seed: 1}\n", encoding="utf-8")
    async with running(workspace) as (app, pilot):
        assert app.project.settings.model.name == "tiny"
        await until(
            pilot, lambda: any("offers the starter model" in note for note in notes(app)), "the offer"
        )
        assert any("Type a message" in note for note in notes(app)), "what one can do stays"


async def test_vectors_of_a_near_copy_are_used_and_the_chat_says_so_once(workspace: Path) -> None:
    sketch = ModelWrapper.load("builtin", device="cpu").sketch
    numbers = {name: [1.1 * each for each in numbers] for name, numbers in sketch.numbers.items()}
    for name in ("sage", "trickster"):
        path = workspace / "vectors" / "builtin" / "personas" / f"{name}.safetensors"
        tensors, metadata = load_tensors(path)
        copied = {
            "model_name": "org/original",
            "model_source": "",
            **replace(sketch, numbers=numbers).record(),
        }
        save_tensors(path, tensors, metadata | copied)
    async with running(workspace, mix=Mix({"sage": 0.5, "trickster": 0.5})) as (app, pilot):
        await reply(pilot, app, "Hello")
        said = [note for note in notes(app) if "near copy" in note]
        assert said == [
            "The vectors were made on org/original; builtin is a near copy (its weights differ by 9.5%)."
        ]
        assert not errors(app)
