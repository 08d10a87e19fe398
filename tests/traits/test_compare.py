"""Comparisons of two sets of conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from persona_tui.core.errors import DatasetError
from persona_tui.datasets.transcripts import conversations_from_json
from persona_tui.model import ModelWrapper, Sampling
from persona_tui.traits.compare import (
    answers,
    before_last_reply,
    compare,
    held_out_conversations,
    held_out_prompts,
    read_prompts,
)
from persona_tui.traits.definition import TraitDefinition
from persona_tui.traits.score import Scored, TraitScorer

from .conftest import WORDS, chat, write_lines


def scored(scorer: TraitScorer, replies: dict[str, str]) -> list[Scored]:
    said = [conversations_from_json(chat(user, reply), "x")[0] for user, reply in replies.items()]
    found = scorer.score(said)
    assert all(isinstance(each, Scored) for each in found)
    return found  # type: ignore[return-value]


def test_pairs_by_prompt(scorer: TraitScorer) -> None:
    quiet = scored(scorer, {word: f"{word} is fine" for word in WORDS})
    loud = scored(scorer, {word: f"{word.upper()} IS FINE" for word in reversed(WORDS[:8])})
    result = compare(quiet, loud)
    assert (result.paired, result.n_a, result.n_b, result.left_out) == (True, 8, 8, 2)
    row = result.rows[0]
    assert row.difference.value == pytest.approx(row.b.value - row.a.value)
    assert row.difference.low > 0 and row.effect > 1 and row.p == pytest.approx(2 / 2**8)
    turned = compare(loud, quiet).rows[0]
    assert turned.difference.value == pytest.approx(-row.difference.value)


def test_the_same_replies_differ_in_nothing(scorer: TraitScorer) -> None:
    same = scored(scorer, {word: f"{word} is fine" for word in WORDS})
    row = compare(same, same).rows[0]
    assert (row.difference.value, row.effect, row.p, row.p_corrected) == (0, 0, 1, 1)


def test_other_prompts_are_not_paired(scorer: TraitScorer) -> None:
    a = scored(scorer, {f"a {word}": f"{word} is fine" for word in WORDS})
    b = scored(scorer, {f"b {word}": f"{word.upper()} IS FINE" for word in WORDS[:5]})
    result = compare(a, b)
    assert (result.paired, result.n_a, result.n_b, result.left_out) == (False, 10, 5, 0)
    assert result.rows[0].p < 0.01
    with pytest.raises(DatasetError, match="at least two"):
        compare(a, b[:1])


def test_a_trait_is_compared_where_it_applies(scorer: TraitScorer) -> None:
    quiet = scored(scorer, {word: f"{word} is fine" for word in WORDS})
    loud = scored(scorer, {word: f"{word.upper()} IS FINE" for word in WORDS})
    name = scorer.traits[0].name
    about = quiet[:2] + [_outside(each, name) for each in quiet[2:]]
    row = compare(about, loud).rows[0]
    assert (row.n_a, row.n_b) == (2, 2)
    assert row.a.value == pytest.approx(compare(quiet[:2], loud[:2]).rows[0].a.value)
    nowhere = compare([_outside(each, name) for each in quiet], loud)
    assert nowhere.rows == () and nowhere.too_few == (name,)
    others = scored(scorer, {f"other {word}": f"{word} is fine" for word in WORDS})
    row = compare(about, others).rows[0]
    assert (row.n_a, row.n_b) == (2, 10)


def _outside(scored: Scored, trait: str) -> Scored:
    """The same, in a conversation that the trait is not about."""
    return replace(
        scored, replies=tuple(replace(each, outside=frozenset({trait})) for each in scored.replies)
    )


def test_the_same_prompt_twice_makes_two_pairs(scorer: TraitScorer) -> None:
    twice = scored(scorer, {"x": "one"}) * 2
    assert compare(twice, twice).n_a == 2


def test_models_answer_the_held_out_situations(model: ModelWrapper, definition: TraitDefinition) -> None:
    prompts = held_out_prompts([definition, definition])
    assert len(prompts) == 10
    said = answers(model, prompts, Sampling(4, 1.0, 1.0, 1))
    assert 5 <= len(said) <= 10
    assert said[0].messages[:-1] == prompts[said[0].line - 1]
    assert [each.messages for each in answers(model, prompts, Sampling(4, 1.0, 1.0, 1))] == [
        each.messages for each in said
    ]
    assert len(held_out_conversations([definition])) == 20


def test_prompts_from_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"user": "b"}, chat("c", "d")])
    assert [each[-1] for each in read_prompts(path)] == [{"role": "user", "content": word} for word in "abc"]
    text = tmp_path / "p.txt"
    text.write_text("a\n\nb\n")
    assert [each[0]["content"] for each in read_prompts(text)] == ["a", "b"]
    path.write_text('{"prompt": "a"}\n{"x": 1}\n')
    with pytest.raises(DatasetError, match=r'p.jsonl:2: "prompt" or "messages"'):
        read_prompts(path)
    text.write_text("\n")
    with pytest.raises(DatasetError, match="is empty"):
        read_prompts(text)
    assert before_last_reply(chat("c", "d")["messages"]) == [{"role": "user", "content": "c"}]
