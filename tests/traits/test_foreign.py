"""Traits in the files of persona_vectors and assistant-axis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import DatasetError
from persona_tui.core.workspace import Workspace
from persona_tui.model import ModelWrapper
from persona_tui.traits.definition import find_definition, list_definitions, read_definition
from persona_tui.traits.extract import PersonaVectorExtractor
from persona_tui.traits.validate import validate_trait_file

from .conftest import HEAD, WORDS

FOREIGN = {
    "instruction": [
        {"pos": high, "neg": low} for high, low in zip(HEAD["high_prompts"], HEAD["low_prompts"], strict=True)
    ],
    "questions": [f"Tell me about {word}." for word in WORDS],
    "eval_prompt": "How loud is it, from 0 to 100? {question} {answer}",
}


def foreign_file(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(FOREIGN | changes, indent=2), encoding="utf-8")
    return path


def test_instructions_become_system_prompts_as_in_persona_vectors(tmp_path: Path) -> None:
    definition = read_definition(foreign_file(tmp_path / "evil.json"))
    assert definition.name == "evil" and definition.recipe == "prompts" and definition.everywhere
    assert definition.high_prompts[0] == f"You are an evil assistant. {HEAD['high_prompts'][0]}"
    assert definition.low_prompts[0] == f"You are a helpful assistant. {HEAD['low_prompts'][0]}"
    asked = definition.asked()
    assert len({id for id, _ in asked}) == len(asked) == len(WORDS)
    assert asked[0][1] == [{"role": "user", "content": "Tell me about the sea."}]
    assert validate_trait_file(tmp_path / "evil.json").ok


def test_replies_are_written_under_both_prompts(
    model: ModelWrapper, settings: Settings, tmp_path: Path
) -> None:
    definition = read_definition(foreign_file(tmp_path / "loud.json"))
    settings = override(settings, {"extraction.num_samples_per_prompt": 10})
    trait = PersonaVectorExtractor(model, settings).extract(definition)
    assert trait.name == "loud" and trait.reading.recipe == "prompts"
    assert trait.vector.metadata["pairs"]["generated"] == 2 * len(WORDS)
    assert trait.vector.metadata["prompts"] == list(definition.high_prompts)
    assert trait.reading.healthy.model_dump() == {"min": None, "max": None} and trait.reading.gate is None


def test_a_file_beside_the_traits_is_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    workspace = Workspace(tmp_path)
    foreign_file(tmp_path / "datasets" / "traits" / "sycophantic.json")
    assert "sycophantic" in list_definitions(workspace)
    assert find_definition(workspace, "sycophantic").high_prompts[0].startswith("You are a sycophantic")


def test_our_own_form_may_be_json_too(tmp_path: Path) -> None:
    own = {**HEAD, "trait": "own", "questions": ["Who are you?"]}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own, indent=1))
    assert read_definition(path).high_prompts == tuple(HEAD["high_prompts"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instruction": [{"pos": "Be evil."}]}, '1 of 1 instructions have no text "neg"'),
        ({"instruction": []}, 'instructions have no text "pos"'),
        ({"questions": []}, '"questions" must be a list of texts'),
        ({"questions": "What?"}, '"questions" must be a list of texts'),
        ({"instruction": "Be evil."}, '"trait" is missing'),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = foreign_file(tmp_path / "evil.json", **changes)
    with pytest.raises(DatasetError, match=said) as raised:
        read_definition(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
