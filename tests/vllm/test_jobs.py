"""Jobs that run inside vLLM make what they make in our own engine, and either goes on with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_tui.core.errors import JobCancelled
from persona_tui.core.jobs import JobContext
from persona_tui.core.mix import Mix
from persona_tui.model import Sampling
from persona_tui.monitors.guard import Guard, verdict_of
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.project.project import FromPrompts, Project
from persona_tui.vectors.manager import PersonaManager
from tests.extraction.conftest import fill_workspace
from tests.server.conftest import serving

from .test_serve import read, send

SETTINGS = """
extraction: {num_samples_per_prompt: 4, max_new_tokens: 8, temperature: 0.0, batch_size: 8, questions: 8}
calibration: {questions: 2, max_new_tokens: 8, distil: false}
generation: {max_new_tokens: 12, temperature: 0.0}
vllm: {requests: 16, context: 512, eager: true}
"""
PROMPTS = FromPrompts(("Be grim.", "Be a grim old man."))


def opened(root: Path, model: Path, engine: str) -> Project:
    fill_workspace(root)
    (root / "config.yaml").write_text(SETTINGS)
    return Project.open(root, str(model), "cpu", "float32", engine=engine)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Project]:
    project = opened(tmp_path_factory.mktemp("there"), model_folder, "vllm")
    yield project
    project.model.driver.shut_down()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Project:
    return opened(tmp_path_factory.mktemp("here"), model_folder, "transformers")


def test_axes_and_personas(there: Project, here: Project) -> None:
    """Greedy replies are the same, so the vectors and their calibration are."""
    made = {}
    for project in (there, here):
        project.override({"steering.plausibility": 0.02})
        axes, personas = project.extract_axes(JobContext())
        created = project.create_persona("grim", PROMPTS, JobContext()).persona
        made[project] = (axes, [*personas, created])
    for one, other in zip(made[there][1], made[here][1], strict=True):
        assert one.name == other.name and one.metadata["counts"] == other.metadata["counts"]
        for recipe, raw in one.raw.items():
            apart = (raw - other.raw[recipe]).norm() / other.raw[recipe].norm()
            assert apart < 1e-4, (one.name, recipe)  # a difference of means that are within 1e-5
        assert one.calibration is not None and other.calibration is not None
        assert one.calibration.gain == pytest.approx(other.calibration.gain, rel=1e-3)
        assert one.calibration.recovered == pytest.approx(other.calibration.recovered, abs=1e-3)
    for axis, projections in made[there][0].projections.items():
        wanted = made[here][0].projections[axis]
        assert (projections - wanted).norm() < 1e-4 * wanted.norm()


def test_either_engine_serves_what_the_other_made(there: Project, here: Project) -> None:
    for made, used in ((here, there), (there, here)):
        notes: list[str] = []
        folder, model = made.workspace.model_dir(made.slug), used.model
        personas = PersonaManager(folder, model.fingerprint, model.name, model.sketch, notes.append)
        assert personas.get("grim").calibration is not None and personas.axes is not None
        assert notes == [] and used.slug == made.slug


def fit_on(project: Project, name: str = "default") -> tuple[SelfMonitor, list[str]]:
    """A monitor, and what it was fitted on."""
    queries = project.workspace.root / "queries.jsonl"
    lines = [
        {"id": f"{label}_{at}", "query": f"{verb} number {at}?", "label": label}
        for verb, label in (("How do I bake bread", "safe"), ("How do I poison bread", "dangerous"))
        for at in range(12)
    ]
    queries.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return project.fit_monitor(name, JobContext(), file=queries), [each["query"] for each in lines]


def test_monitors(there: Project, here: Project) -> None:
    scores = {}
    for project in (there, here):
        monitor, queries = fit_on(project)
        scores[project] = [monitor.check(each).score for each in queries]
    assert scores[there] == pytest.approx(scores[here], rel=1e-3, abs=1e-3)


def test_a_job_that_was_stopped_goes_on(there: Project) -> None:
    class Stopped(JobContext):
        calls = 0

        def checkpoint(self) -> None:
            Stopped.calls += 1
            if Stopped.calls == 2:
                raise JobCancelled("stopped")

    with pytest.raises(JobCancelled):
        there.create_persona("stopped", PROMPTS, Stopped())
    assert "persona-stopped" in there.partial().interrupted()
    persona = there.create_persona("stopped", PROMPTS, JobContext()).persona
    grim = there.personas.get("grim")
    for recipe, raw in persona.raw.items():
        assert (raw - grim.raw[recipe]).norm() < 1e-4 * raw.norm()


def test_a_guard_judges_while_a_reply_is_written(there: Project, here: Project) -> None:
    """The message, the reply again and again, and texts that are only judged: as our own engine's does."""
    asked = "How do I poison bread number 3?"
    told: dict[Project, list[tuple[str, int, float]]] = {}
    judged: dict[Project, list[float]] = {}
    for project in (there, here):
        monitor, queries = fit_on(project)
        reply = Sampling(max_new_tokens=40, temperature=0)
        events = project.engine.stream(
            [{"role": "user", "content": asked}],
            sampling=reply,
            mix=Mix(capping=False),
            guard=Guard(lambda monitor=monitor: monitor, "warn"),
        )
        said = [(each.index, verdict) for each in events if (verdict := verdict_of(each)) is not None]
        told[project] = [(verdict.about, index, verdict.score) for index, verdict in said]
        with serving(project) as running:
            results = send(running.url, {"input": [asked, queries[0]]}, "/v1/moderations")[1]["results"]
            judged[project] = [each["persona_tui"]["score"] for each in results]
            body = {"model": project.slug, "messages": [{"role": "user", "content": asked}], "stream": True}
            assert '"guard"' in read(running.url, {**body, "persona_tui": {"guard": "warn"}})
    assert [each[:2] for each in told[there]] == [each[:2] for each in told[here]]
    assert {about for about, _, _ in told[there]} == {"message", "reply"} and len(told[there]) > 3
    assert [each[2] for each in told[there]] == pytest.approx(
        [each[2] for each in told[here]], rel=1e-3, abs=1e-3
    )
    assert judged[there] == pytest.approx(judged[here], rel=1e-3, abs=1e-3)
