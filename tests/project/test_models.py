"""Another model beside the one in use."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from persona_tui.core.errors import ConfigError, JobCancelled, ModelLoadError
from persona_tui.core.jobs import JobContext, JobProgress, ModelWorker
from persona_tui.model import conversation
from persona_tui.project.models import ModelChoice, RecentModels, load, with_model
from persona_tui.project.project import Project
from tests.model.conftest import make_model, make_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("qwen2").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.open(tmp_path / "workspace")


def test_the_last_one_used_comes_first(project: Project, tiny: Path) -> None:
    recent = RecentModels(project.workspace)
    assert recent.list() == []
    for choice in (ModelChoice("builtin"), ModelChoice(str(tiny), dtype="bfloat16"), ModelChoice("builtin")):
        recent.add(choice)
    assert recent.list() == [ModelChoice("builtin"), ModelChoice(str(tiny), dtype="bfloat16")]
    assert recent.list()[1].how == "bfloat16"
    for number in range(30):
        recent.add(ModelChoice(f"somebody/model-{number}"))
    assert len(recent.list()) == 12
    (project.workspace.root / "models.json").write_text("spoilt")
    assert recent.list() == []


def test_a_model_is_loaded_beside_the_one_in_use(project: Project, tiny: Path) -> None:
    seen: list[JobProgress] = []
    other = with_model(project, ModelChoice(str(tiny), "cpu", "float32"))
    load(other, JobContext(seen.append))
    assert other.model_loaded and not project.model_loaded
    assert other.slug != project.slug and other.personas.list_available() == []
    assert seen and seen[-1].done == seen[-1].total
    assert other.engine.reply(conversation("Hi")).tokens


def test_a_failure_leaves_the_one_in_use_alone(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no config"):
        (tmp_path / "empty").mkdir()
        load(with_model(project, ModelChoice(str(tmp_path / "empty"))), JobContext())
    with pytest.raises(ConfigError):
        with_model(project, ModelChoice("builtin", dtype="float7"))
    assert project.settings.model.name == "tiny"


def test_turns_are_taken_while_a_model_loads_and_a_cancel_is_heard(project: Project) -> None:
    loading, taken = threading.Event(), threading.Event()

    class Slow(Project):
        """A project whose model never comes."""

        @property
        def engine(self):  # type: ignore[no-untyped-def]
            loading.set()
            taken.wait(10)
            raise ModelLoadError("not reached")

    worker = ModelWorker()
    slow = Slow(project.workspace, project.settings)
    job = worker.submit_job("load", lambda context: load(slow, context))
    assert loading.wait(10)
    worker.submit_turn(lambda: None).result(10)
    job.cancel()
    assert job.wait(10) and job.state == "cancelled"
    taken.set()
    assert worker.close(10)
    taken.clear()
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobCancelled):
        load(slow, JobContext(stop=stop), gives_way=False)
    taken.set()


def test_a_load_waits_until_one_that_was_cancelled_has_ended(project: Project) -> None:
    inside, go_on, waits, stop = (threading.Event() for _ in range(4))

    def hold(progress: JobProgress) -> None:
        if progress.done:
            inside.set()
            assert go_on.wait(60)

    def load_first() -> None:
        with pytest.raises(JobCancelled):
            load(project, JobContext(hold, None, stop))

    first = threading.Thread(target=load_first)
    first.start()
    assert inside.wait(60), "in the middle of its tensors"
    stop.set()
    first.join(60)
    assert not first.is_alive(), "nobody waits for it any more"
    other = with_model(project, ModelChoice("builtin"))
    second = threading.Thread(target=load, args=(other, JobContext(lambda _: waits.set())))
    second.start()
    assert waits.wait(60)
    go_on.set()
    second.join(60)
    assert other.model_loaded and not project.model_loaded
