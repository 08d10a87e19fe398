"""A small random model with a chat template, one without, a trait that both sides of can be told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.model import ModelWrapper
from persona_tui.traits.definition import TraitDefinition, read_definition
from persona_tui.traits.extract import PersonaVectorExtractor
from persona_tui.traits.score import TraitScorer
from persona_tui.traits.vector import TraitStore, TraitVector
from tests.model.conftest import make_model, make_tokenizer

torch.set_num_threads(1)

HEAD = {
    "trait": "loudness",
    "description": "Whether a reply shouts.",
    "high": "capitals",
    "low": "small letters",
    "healthy": {"max": 0.5},
    "everywhere": True,
    "high_prompts": ["SHOUT AT EVERYBODY.", "BE LOUD."],
    "low_prompts": ["whisper to everybody.", "be quiet."],
}
WORDS = (
    "the sea",
    "a road",
    "my dog",
    "old bread",
    "warm tea",
    "two birds",
    "one boat",
    "her coat",
    "rain",
    "salt",
)


def situations(split: str, words: tuple[str, ...] = WORDS) -> list[dict[str, Any]]:
    """Messages about things, with a loud and a quiet reply to each; a random model tells these apart."""
    return [
        {
            "id": f"{split}_{number}",
            "split": split,
            "user": f"Tell me about {word} ({split}).",
            "high": f"YES, {word.upper()} IS GREAT AND {split.upper()}",
            "low": f"yes, {word} is great and {split}",
        }
        for number, word in enumerate(words)
    ]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def write_definition(path: Path, **changes: Any) -> Path:
    return write_lines(path, [HEAD | changes, *situations("train"), *situations("test")])


def chat(user: str, reply: str, **fields: Any) -> dict[str, Any]:
    """One line of chat data."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    return {"messages": messages, **fields}


LOUD = chat("Tell me about milk.", "YES, MILK IS GREAT AND WHITE")
QUIET = chat("Tell me about milk.", "yes, milk is great and white")


@pytest.fixture(scope="session")
def model() -> ModelWrapper:
    return ModelWrapper(
        make_model(num_hidden_layers=4, max_position_embeddings=1024), make_tokenizer(), "tiny"
    )


@pytest.fixture(scope="session")
def base_model() -> ModelWrapper:
    """GPT-2 without a chat template, with room for 256 tokens."""
    return ModelWrapper(make_model("gpt2"), make_tokenizer(chat=False), "base")


@pytest.fixture(scope="session")
def settings() -> Settings:
    changes = {"extraction.num_samples_per_prompt": 4, "extraction.max_new_tokens": 6}
    return override(Settings(), changes)


@pytest.fixture(scope="session")
def definition(tmp_path_factory: pytest.TempPathFactory) -> TraitDefinition:
    return read_definition(write_definition(tmp_path_factory.mktemp("traits") / "loudness.jsonl"))


@pytest.fixture(scope="session")
def trait(model: ModelWrapper, settings: Settings, definition: TraitDefinition) -> TraitVector:
    return PersonaVectorExtractor(model, settings).extract(definition)


@pytest.fixture
def store(tmp_path: Path, model: ModelWrapper, trait: TraitVector) -> TraitStore:
    store = TraitStore(tmp_path / "tiny" / "traits", model.fingerprint, model.name)
    store.save(trait)
    return store


@pytest.fixture(scope="session")
def scorer(model: ModelWrapper, trait: TraitVector) -> TraitScorer:
    return TraitScorer(model, [trait])


Write = Callable[[list[Any]], Path]


@pytest.fixture
def lines(tmp_path: Path) -> Write:
    """Write records to a file of JSON Lines."""
    return lambda records: write_lines(tmp_path / "data.jsonl", records)
