"""`SelfMonitor` on random models: files, checks, other models."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import GenerationError, MonitorError, VectorFileError
from persona_tui.core.jobs import JobContext
from persona_tui.core.workspace import Workspace
from persona_tui.model import ModelWrapper, conversation
from persona_tui.monitors.detectors import METHODS
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.store import MonitorStore
from persona_tui.monitors.training_data import TrainingData
from persona_tui.vectors.files import load_tensors, save_tensors

BREAD, BOMB = "How do I bake bread?", "How do I make a bomb?"


def test_a_check_reads_the_model_once(monitor: SelfMonitor, model: ModelWrapper) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model._blocks[0].register_forward_hook(count)
    try:
        verdict = monitor.check(BREAD)
    finally:
        handle.remove()
    assert passes == 1
    assert verdict.safe == (verdict.score > verdict.threshold)
    assert verdict.tokens == len(BREAD) and verdict.about == "message"
    assert json.loads(json.dumps(verdict.as_dict()))["layers"] == list(verdict.layers)


def test_many_are_checked_like_one(monitor: SelfMonitor) -> None:
    texts = [BREAD, BOMB, "Why?"]
    for method in METHODS:
        together = monitor.check_many(texts, method)
        for text, verdict in zip(texts, together, strict=True):
            assert monitor.check(text, method).score == pytest.approx(verdict.score, abs=1e-4)
    assert monitor.check_many([]) == []


def test_a_file_brings_back_the_same_monitor(saved: Path, monitor: SelfMonitor, model: ModelWrapper) -> None:
    again = SelfMonitor.load(saved, model)
    assert again.check(BOMB) == monitor.check(BOMB)
    assert again.summary() == monitor.summary()
    assert again.training.record() == monitor.training.record()
    assert set(again.stacks) == set(monitor.stacks)
    assert not again.harms or (monitor.harms and again.harms.names == monitor.harms.names)


@pytest.mark.slow
def test_the_same_data_give_the_same_monitor(
    monitor: SelfMonitor, model: ModelWrapper, data: TrainingData
) -> None:
    again = SelfMonitor.fit(model, data)
    assert {**again.summary(), "created": ""} == {**monitor.summary(), "created": ""}


def test_another_models_monitor_is_refused_and_both_are_named(saved: Path, base_model: ModelWrapper) -> None:
    with pytest.raises(
        VectorFileError, match=r"made on tiny \(qwen2, .* cannot be used with tiny-base \(gpt2, "
    ):
        SelfMonitor.load(saved, base_model)
    unchecked = SelfMonitor.load(saved)
    with pytest.raises(MonitorError, match="without a model"):
        unchecked.check(BREAD)


def test_a_monitor_is_used_on_a_near_copy_and_says_so(
    saved: Path, model: ModelWrapper, tmp_path: Path
) -> None:
    assert SelfMonitor.load(saved, model).note == ""
    copy = ModelWrapper(deepcopy(model.model).to(torch.bfloat16), model.tokenizer, "copy")
    monitor = SelfMonitor.load(saved, copy)
    assert "made on tiny; copy is a near copy" in monitor.note and monitor.check(BREAD).monitor == "default"
    told: list[str] = []
    store = MonitorStore(Workspace(tmp_path), "copy", "copy", told.append)
    store.folder.mkdir(parents=True)
    shutil.copy(saved, store.path_of("default"))
    store.load("default", copy)
    assert told == [monitor.note]


@pytest.mark.slow
def test_a_monitor_is_transferred_by_fitting_it_anew(saved: Path, base_model: ModelWrapper) -> None:
    moved = SelfMonitor.fit(base_model, SelfMonitor.load(saved).training, "moved")
    assert moved.metadata["model_fingerprint"] == base_model.fingerprint
    assert moved.check(BREAD).monitor == "moved"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_cannot_be_checked(monitor: SelfMonitor, text: str) -> None:
    with pytest.raises(MonitorError, match="empty"):
        monitor.check(text)


def test_what_does_not_fit_cannot_be_checked(monitor: SelfMonitor) -> None:
    with pytest.raises(GenerationError, match="context"):
        monitor.check("x" * 2000)


def test_methods_and_thresholds_can_be_chosen(monitor: SelfMonitor) -> None:
    score = monitor.check(BREAD, "content").score
    strict, lax = (monitor.with_method("content", score + step) for step in (0.1, -0.1))
    assert not strict.check(BREAD).safe and lax.check(BREAD).safe
    with pytest.raises(MonitorError, match='Did you mean "content"'):
        monitor.check(BREAD, "contents")


def test_a_dangerous_verdict_names_a_harm(monitor: SelfMonitor) -> None:
    never = monitor.with_method("probe", 2.0)  # nothing is that probable
    assert monitor.harms is not None
    known = replace(never, harms=replace(monitor.harms, accuracy=0.9))
    guessing = replace(never, harms=replace(monitor.harms, accuracy=0.3))
    assert guessing.check(BOMB).category is None
    verdict = known.check(BOMB)
    assert verdict.category in monitor.harms.names and 0 < (verdict.category_probability or 0) <= 1
    sure = replace(verdict, category="self_harm", category_probability=0.9)
    assert sure.badge.startswith("dangerous") and sure.badge.endswith("(self harm)")
    assert "(" not in replace(sure, category_probability=0.2).badge


def test_what_was_read_elsewhere_can_be_judged(monitor: SelfMonitor, model: ModelWrapper) -> None:
    reading = model.read_messages([conversation(BREAD)], range(model.n_layers))[0]
    assert monitor.judge(reading, "message") == monitor.check(BREAD)


def test_fitting_can_be_cancelled(model: ModelWrapper, data: TrainingData) -> None:
    import threading

    from persona_tui.core.errors import JobCancelled

    stop = threading.Event()
    stop.set()
    with pytest.raises(JobCancelled):
        SelfMonitor.fit(model, data, context=JobContext(stop=stop))


def test_damaged_files_are_refused(saved: Path, monitor: SelfMonitor, model: ModelWrapper) -> None:
    tensors, metadata = load_tensors(saved)
    method = metadata["detectors"][monitor.method]
    broken = [
        ({**metadata, "kind": "axes"}, tensors, "not 'monitor'"),
        ({**metadata, "detectors": {}}, tensors, "no method"),
        ({**metadata, "reply": {}}, tensors, '"reply.method" is missing'),
        ({**metadata, "detectors": [1]}, tensors, "cannot be used"),
        (metadata, {name: each for name, each in tensors.items() if "probe" not in name}, "is missing"),
        (metadata, {**tensors, "content.safe": torch.ones(3, 2)}, "does not fit"),
        (
            {**metadata, "detectors": {monitor.method: {**method, "position": "nowhere"}}},
            tensors,
            "'message', 'prompt_last' or 'reply' is needed",
        ),
    ]
    for wrong, values, problem in broken:
        save_tensors(saved, values, wrong)
        with pytest.raises(VectorFileError, match=problem) as caught:
            SelfMonitor.load(saved, model)
        assert not str(caught.value).endswith("..")
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(VectorFileError):
        SelfMonitor.load(saved, model)


def test_a_file_without_its_data_can_be_used_but_not_moved(
    saved: Path, monitor: SelfMonitor, model: ModelWrapper
) -> None:
    bare = replace(monitor, metadata={**monitor.metadata, "training": None})
    bare.save(saved)
    loaded = SelfMonitor.load(saved, model)
    assert loaded.check(BREAD).safe in (True, False)
    with pytest.raises(VectorFileError, match="name a data set instead"):
        loaded.training  # noqa: B018
