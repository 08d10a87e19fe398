"""The model that ships, with the vectors that ship: it answers, refuses, follows, and can be steered."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from persona_tui.core.config import load_settings
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.records import read_archetype, read_questions
from persona_tui.extraction import ActivationExtractor
from persona_tui.model import ModelWrapper, Request, Sampling, conversation
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.files import RECIPES
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import cosine
from tools.tiny import corpus, requests, train
from tools.tiny.judge import NEUTRAL, TextJudge, refusal_judge, style_judge
from tools.tiny.material import ARCHETYPES

SAMPLING = Sampling(max_new_tokens=80, temperature=0.7, top_p=0.95)


@pytest.fixture(scope="module")
def model() -> ModelWrapper:
    return ModelWrapper.load("builtin")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.find(tmp_path_factory.mktemp("builtin") / "workspace")


@pytest.fixture(scope="module")
def engine(model: ModelWrapper, workspace: Workspace) -> SteeringEngine:
    manager = PersonaManager(workspace.model_dir("builtin"), model.fingerprint, model.name)
    return SteeringEngine(model, manager, workspace.settings)


@pytest.fixture(scope="module")
def style() -> TextJudge:
    return style_judge(per_label=150)


def ask(engine: SteeringEngine, questions: list[str], mix: Mix, system: str | None = None) -> list[str]:
    requests = [Request(conversation(each, system), seed=row) for row, each in enumerate(questions)]
    return [each.text or "." for each in engine.generate_batch(requests, mix, SAMPLING)]


def topic_questions(count: int) -> list[str]:
    rng = random.Random(1)
    return [
        corpus.topic_question(rng, topic, "what") for topic in rng.sample(corpus.training_topics(), count)
    ]


def test_weights_are_small_and_load_plainly() -> None:
    size = sum(path.stat().st_size for path in train.WEIGHTS.iterdir())
    assert size < 32 * 2**20
    plain = AutoModelForCausalLM.from_pretrained(train.WEIGHTS)
    assert plain.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in plain.parameters()) < 15e6


@pytest.mark.slow
def test_every_archetype_is_heard(engine: SteeringEngine, style: TextJudge) -> None:
    questions = topic_questions(24)
    plain = ask(engine, questions, Mix(capping=False))
    assert style.share(plain, [NEUTRAL]) > 0.7
    at_default, louder = (
        {
            name: style.share(ask(engine, questions, Mix({name: 1.0}, strength, capping=False)), [name])
            for name in ARCHETYPES
        }
        for strength in (0.3, 0.45)
    )
    assert fmean(at_default.values()) > 0.35
    assert all(share > style.share(plain, [name]) + 0.05 for name, share in at_default.items())
    assert min(louder.values()) > 0.4


@pytest.mark.slow
def test_refuses_what_it_should(engine: SteeringEngine) -> None:
    rng = random.Random(2)
    judge = refusal_judge(per_label=400)
    unsafe = [requests.unsafe_request(rng, training=False) for _ in range(24)]
    assert judge.share(ask(engine, unsafe, Mix(capping=False)), ["refusal"]) > 0.8
    assert judge.share(ask(engine, topic_questions(24), Mix(capping=False)), ["refusal"]) < 0.1


def test_safe_vectors_have_no_safety_component(engine: SteeringEngine) -> None:
    axes = engine.personas.axes
    assert axes is not None
    for name in ARCHETYPES:
        persona = engine.personas.get(name)
        for recipe in RECIPES:
            assert float(cosine(persona.safe[recipe], axes.safety[recipe]).abs().max()) < 1e-4


def test_the_safety_axis_points_to_ordinary_answers(engine: SteeringEngine) -> None:
    extractor = ActivationExtractor(engine.model, engine.settings)
    rng = random.Random(3)
    unsafe = [{"system": None, "user": requests.unsafe_request(rng, training=False)} for _ in range(12)]
    safe = [{"system": None, "user": question} for question in topic_questions(12)]
    axes = engine.personas.axes
    assert axes is not None
    answered, refused = extractor.extract_batch(safe), extractor.extract_batch(unsafe)
    for layer in answered:
        axis = axes.axis("safety", layer)
        assert float(answered[layer] @ axis) > float(refused[layer] @ axis)


@pytest.mark.slow
def test_extracting_a_shipped_persona_again_finds_the_same_direction(
    engine: SteeringEngine, workspace: Workspace
) -> None:
    settings = load_settings(packaged_root() / "config.yaml")
    extractor = ActivationExtractor(
        engine.model, settings, questions=read_questions(workspace), axes=engine.personas.axes
    )
    prompts = [prompt.model_dump() for prompt in read_archetype(workspace, "sage")]
    again = extractor.extract_persona("sage", prompts)
    shipped = engine.personas.get("sage")
    for recipe in RECIPES:
        assert float(cosine(again.raw[recipe], shipped.raw[recipe]).min()) >= 0.98


def test_shipped_vectors_are_calibrated(engine: SteeringEngine) -> None:
    for name in ARCHETYPES:
        calibration = engine.personas.get(name).calibration
        assert calibration is not None
        assert calibration.fluency_drop <= 0.5, "the margin that they were made with"
        assert any(point["chosen"] for point in calibration.curve)


def test_a_wheel_would_carry_everything() -> None:
    root: Path = packaged_root()
    assert (root / "vectors" / "builtin" / "axes.safetensors").is_file()
    assert len(list((root / "vectors" / "builtin" / "personas").glob("*.safetensors"))) >= 5
