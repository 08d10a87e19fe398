"""Stopping and going on: the same vectors, nothing done twice, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import GenerationError, JobCancelled, WorkspaceError
from persona_tui.core.files import only_writer
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.extraction import ActivationExtractor, ActivationSums, PersonaStudio, checkpoints
from persona_tui.extraction.checkpoints import PartialStore, Tally
from persona_tui.model import Activations, Generation, ModelWrapper
from persona_tui.vectors.manager import PersonaManager
from tests.extraction.conftest import ARCHETYPES, MakeStudio

pytestmark = pytest.mark.slow

UNCALIBRATED = {"calibration.enabled": False}


@pytest.fixture(autouse=True)
def save_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_TIME_SAVING", float("inf"))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch had that was answered to its end."""
    rows: list[int] = []
    generate = ModelWrapper.generate

    def counted(self: ModelWrapper, *args: object, **arguments: object) -> list[Generation]:
        result = generate(self, *args, **arguments)  # type: ignore[arg-type]
        rows.append(len(result))
        return result

    monkeypatch.setattr(ModelWrapper, "generate", counted)
    return rows


def stops_after(count: int, error: BaseException) -> Callable[[], None]:
    """A checkpoint that raises when it is called for the `count`-th time."""
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls >= count:
            raise error

    return checkpoint


def assert_same_vectors(one: PersonaManager, other: PersonaManager) -> None:
    """Bit by bit."""
    assert one.axes is not None and other.axes is not None
    for kind in ("baseline", "safety", "assistant", "projections"):
        for name, tensor in getattr(one.axes, kind).items():
            assert torch.equal(tensor, getattr(other.axes, kind)[name]), (kind, name)
    assert one.axes.metadata["capping"] == other.axes.metadata["capping"]
    assert one.list_available() == other.list_available()
    for name in one.list_available():
        for kind in ("mean", "raw", "safe"):
            for recipe, tensor in getattr(one.get(name), kind).items():
                assert torch.equal(tensor, getattr(other.get(name), kind)[recipe]), (name, kind, recipe)
        assert one.get(name).calibration == other.get(name).calibration


def kept(studio: PersonaStudio) -> list[str]:
    return sorted(path.name for path in studio.partial.folder.glob("*"))


def test_an_extraction_stopped_again_and_again_ends_with_the_same_vectors(
    make_studio: MakeStudio, extracted: PersonaStudio, answered: list[int]
) -> None:
    whole = make_studio({"extraction.seed": 0})
    whole.extract_axes()
    undisturbed = sum(answered)
    for path in (*whole.manager.personas_dir.iterdir(), whole.manager.vectors_dir / "axes.safetensors"):
        path.unlink()
    answered.clear()
    stops = 0
    while True:
        error = JobCancelled("cancelled") if stops % 2 else KeyboardInterrupt()
        studio = make_studio(checkpoint=stops_after(7 + 6 * stops, error))
        try:
            studio.extract_axes()
            break
        except (JobCancelled, KeyboardInterrupt):
            stops += 1
            assert studio.partial.interrupted() == ["axes"]
    assert stops > 3
    assert sum(answered) == undisturbed  # nothing was done twice
    assert_same_vectors(studio.manager, extracted.manager)
    assert not studio.partial.folder.exists()


def test_a_job_goes_on_with_the_date_on_which_it_began(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_studio().extractor.model
    plain = model.tokenizer.chat_template
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ strftime_now('%d %b %Y') }}\n" + plain)
    began, later = {"date": "2024-02-29T12:00:00"}, {"date": "2031-12-01T12:00:00"}
    with model.rendered_as(began), pytest.raises(JobCancelled):
        make_studio(UNCALIBRATED, checkpoint=stops_after(7, JobCancelled("cancelled"))).extract_axes()
    with model.rendered_as(later):
        axes, personas = make_studio(UNCALIBRATED).extract_axes()
        # Neither is the date of the mean that a new persona's is compared with another one.
        new = make_studio(UNCALIBRATED).create_from_prompts("brave", ["Be brave."])
        assert [each.metadata["rendering"] for each in (axes, *personas, new)] == [began] * 4
        assert model.rendering.record() == later
        again, _ = make_studio({**UNCALIBRATED, "extraction.seed": 1}).extract_axes()
        assert again.metadata["rendering"] == later


def test_an_interrupt_in_the_middle_of_a_batch_loses_that_batch_only(
    make_studio: MakeStudio, extracted: PersonaStudio
) -> None:
    studio = make_studio(on_step=stops_after(90, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        studio.extract_axes()
    assert kept(studio)
    again = make_studio()
    again.extract_axes()
    assert_same_vectors(again.manager, extracted.manager)


def test_finished_vectors_are_saved_before_the_job_ends(make_studio: MakeStudio) -> None:
    first = make_studio()
    finished: list[str] = []

    def stop_in_the_second_calibration(done: int, total: int, note: str) -> None:
        if note.startswith(f"{ARCHETYPES[1]}: "):
            fresh = make_studio().manager
            finished.extend(name for name in ARCHETYPES if fresh.get(name).calibration is not None)
            raise JobCancelled("cancelled")

    studio = make_studio(on_progress=stop_in_the_second_calibration)
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    assert finished == [ARCHETYPES[0]]
    assert first.manager.list_available() == sorted(ARCHETYPES), "both can be used"
    assert (studio.manager.vectors_dir / "axes.safetensors").is_file()


def test_going_on_is_said(make_studio: MakeStudio) -> None:
    lines: list[str] = []
    studio = make_studio(UNCALIBRATED, checkpoint=stops_after(3, JobCancelled("cancelled")))
    studio.partial._log = lines.append
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    assert lines == ["Stopped. Finished work is kept: run the same command to resume."]
    again = make_studio(UNCALIBRATED)
    again.partial._log = lines.append
    again.extract_axes()
    assert lines[1:] == ["Resuming where it was interrupted."]


def test_other_settings_start_anew_and_say_so(make_studio: MakeStudio, answered: list[int]) -> None:
    lines: list[str] = []
    studio = make_studio(UNCALIBRATED, checkpoint=stops_after(3, JobCancelled("cancelled")))
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    answered.clear()
    other = make_studio({**UNCALIBRATED, "extraction.temperature": 0.5, "extraction.max_new_tokens": 11})
    other.partial._log = lines.append
    other.extract_axes()
    assert lines == [
        "Interrupted before with other settings (extraction.max_new_tokens, extraction.temperature): "
        "starting again."
    ]
    done = sum(answered)
    answered.clear()
    make_studio(
        {**UNCALIBRATED, "extraction.temperature": 0.5, "extraction.max_new_tokens": 11}
    ).extract_axes()
    assert sum(answered) == done


def test_another_batch_size_goes_on(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    studio = make_studio(UNCALIBRATED, checkpoint=stops_after(2, JobCancelled("cancelled")))
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    axes, _ = make_studio({**UNCALIBRATED, "extraction.batch_size": 5}).extract_axes()
    assert extracted.manager.axes is not None
    for recipe, axis in axes.safety.items():
        torch.testing.assert_close(axis, extracted.manager.axes.safety[recipe], atol=1e-4, rtol=1e-4)


def test_a_damaged_file_is_done_again(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    studio = make_studio(checkpoint=stops_after(6, JobCancelled("cancelled")))
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    lines: list[str] = []
    for path in studio.partial.folder.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1  # one bit
        path.write_bytes(data)
    again = make_studio()
    again.partial._log = lines.append
    again.extract_axes()
    assert any("damaged" in line and "done again" in line for line in lines)
    assert_same_vectors(again.manager, extracted.manager)


def test_a_part_that_was_taken_over_but_not_yet_removed_counts_once(tmp_path: Path) -> None:
    store = PartialStore(tmp_path, tmp_path)

    def session(item: int) -> frozenset[int]:
        with pytest.raises(JobCancelled), store.job("test", {"a": "b"}):
            stage = store.stage(["stage"])
            done = stage.done
            stage.add(Tally(frozenset([item]), {"x": torch.tensor([10**item])}))
            assert int(stage.tally.sums["x"]) == sum(10**each for each in range(item + 1))
            raise JobCancelled("cancelled")
        return done

    assert session(0) == set()
    (first,) = store.folder.glob("test.*.safetensors")
    before = first.read_bytes()
    assert session(1) == {0}
    assert not first.exists()
    first.write_bytes(before)  # as if the process had been killed before it could remove the file
    assert session(2) == {0, 1}
    assert not first.exists()


def test_a_persona_goes_on_where_the_axes_job_was_stopped(
    make_studio: MakeStudio, extracted: PersonaStudio, answered: list[int]
) -> None:
    """What an interrupted job has of a persona serves the job that makes this persona alone."""
    studio = make_studio(UNCALIBRATED)
    assert extracted.manager.axes is not None

    def stop_at_the_safety_prompts(done: int, total: int, note: str) -> None:
        if note == "safe prompts":
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        make_studio(UNCALIBRATED, on_progress=stop_at_the_safety_prompts).extract_axes()
    studio.manager.save_axes(extracted.manager.axes)
    answered.clear()
    persona = make_studio(UNCALIBRATED).create_from_archetype("sage", "sage")
    assert answered == []
    assert torch.equal(persona.mean["response"], extracted.manager.get("sage").mean["response"])


def test_written_prompts_are_kept(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    assert extracted.manager.axes is not None
    make_studio().manager.save_axes(extracted.manager.axes)

    def create(studio: PersonaStudio, **arguments: object) -> None:
        generator = DatasetGenerator(studio.extractor.model, **arguments)  # type: ignore[arg-type]
        studio.create_from_description("elf", "A merry elf who sings", generator)

    with pytest.raises(JobCancelled):
        create(make_studio(UNCALIBRATED, checkpoint=stops_after(1, JobCancelled("cancelled"))))
    steps: list[int] = []
    studio = make_studio(UNCALIBRATED)
    create(studio, on_step=lambda: steps.append(1))
    assert steps == []
    assert not studio.partial.folder.exists()


def test_two_writers(make_studio: MakeStudio) -> None:
    studio = make_studio()
    with only_writer(studio.partial.folder, "axes"), pytest.raises(WorkspaceError, match=r"process \d+ is"):
        studio.extract_axes()


def test_a_workspace_that_goes_away(make_studio: MakeStudio, tmp_path: Path) -> None:
    calls = 0

    def take_it_away() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            tmp_path.rename(tmp_path.with_name("moved"))

    studio = make_studio(checkpoint=take_it_away)
    with pytest.raises(WorkspaceError, match="is gone"):
        studio.extract_axes()
    assert not tmp_path.exists()
    tmp_path.with_name("moved").rename(tmp_path)
    make_studio(UNCALIBRATED).extract_axes()


def test_a_manifest_of_nonsense_starts_anew(make_studio: MakeStudio) -> None:
    studio = make_studio(UNCALIBRATED)
    for text in ("", "[1]", "{", '{"model": 3}', "[" * 100_000, json.dumps({"a": {"b": "c"}})):
        studio.partial.folder.mkdir(parents=True, exist_ok=True)
        (studio.partial.folder / "axes.json").write_text(text)
        with studio.partial.job("axes", {"model": "x"}):
            assert json.loads((studio.partial.folder / "axes.json").read_text()).keys() == {"model"}


def test_sums_do_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [10.0**power for power in range(-6, 4)] * 9
    values = [torch.randn(3, 8, generator=generator) * size for size in sizes]
    rows = [Activations((1, 2, 3), value, -value, n_tokens=2) for value in values]

    def total(order: list[int]) -> ActivationSums:
        sums = ActivationSums((1, 2, 3))
        for place in order:
            sums.add(rows[place])
        return sums

    forwards = total(list(range(len(rows))))
    for seed in range(3):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        halves = total(order[:40]).tally(order[:40]) + total(order[40:]).tally(order[40:])
        for recipe, mean in ActivationSums.of((1, 2, 3), halves).means().items():
            assert torch.equal(mean, forwards.mean(recipe))
    exact = torch.stack(values).double().mean(0)
    torch.testing.assert_close(forwards.mean("response").double(), exact, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_activations_that_are_no_numbers_are_an_error(value: float) -> None:
    bad = torch.zeros(2, 4)
    bad[1, 2] = value
    with pytest.raises(GenerationError, match="layer 7 has activations"):
        ActivationSums((5, 7)).add(Activations((5, 7), bad, torch.zeros(2, 4), n_tokens=1))


def test_nothing_is_kept_outside_of_a_job(model: ModelWrapper, extracted: PersonaStudio) -> None:
    extractor = ActivationExtractor(model, extracted.extractor.settings)
    extractor.extract_batch([{"system": None, "user": "Hi"}])
    assert not Path("partial").exists()
