"""Scores of replies: one pass per conversation, and the same numbers as a pass per reply."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from persona_tui.core.errors import GenerationError
from persona_tui.datasets.transcripts import BadLine, Transcript, conversations_from_json
from persona_tui.model import ModelWrapper
from persona_tui.model.spans import ReplyReading, read_replies
from persona_tui.traits.score import Scored, TraitScorer, drift_of
from persona_tui.traits.vector import TraitVector

from .conftest import LOUD, QUIET

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello there."},
    {"role": "assistant", "content": "Hi. How are you?"},
    {"role": "user", "content": "I feel low."},
    {"role": "assistant", "content": "I AM SORRY"},
    {"role": "user", "content": "Thank you."},
    {"role": "assistant", "content": "of course"},
]


def told(value: Any) -> Transcript:
    return conversations_from_json(value, "x")[0]


@pytest.fixture(params=["model", "base_model"])
def any_model(request: pytest.FixtureRequest) -> ModelWrapper:
    found: ModelWrapper = request.getfixturevalue(request.param)
    return found


def test_replies_in_one_pass_are_what_single_passes_read(any_model: ModelWrapper) -> None:
    passes: list[int] = []
    handle = any_model.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    found = read_replies(any_model, [TALK], [1, 2])[0]
    handle.remove()
    assert isinstance(found, list)
    assert [reading.message for reading in found] == [2, 4, 6]
    assert len(passes) == 1
    for reading in found:
        alone = any_model.read([TALK[: reading.message + 1]], [1, 2])[0]
        assert reading.n_tokens == alone.n_tokens
        torch.testing.assert_close(reading.mean, alone.response, atol=1e-4, rtol=1e-4)


def test_a_template_that_rewrites_earlier_turns(
    any_model: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_only = (
        "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    )
    monkeypatch.setattr(any_model.tokenizer, "chat_template", last_only)
    found = read_replies(any_model, [TALK], [1])[0]
    assert isinstance(found, list) and len(found) == 3
    for reading in found:
        alone = any_model.read([TALK[: reading.message + 1]], [1])[0]
        torch.testing.assert_close(reading.mean, alone.response, atol=1e-4, rtol=1e-4)


def test_the_oldest_turns_go_when_the_context_is_full(base_model: ModelWrapper) -> None:
    messages = [TALK[0]]
    for turn in range(12):
        messages += [
            {"role": "user", "content": f"question {turn} " * 3},
            {"role": "assistant", "content": f"answer {turn} " * 3},
        ]
    found = read_replies(base_model, [messages], [1])[0]
    assert isinstance(found, list) and len(found) == 12
    forgotten = [reading.forgotten for reading in found]
    assert forgotten[0] == 0 and forgotten[-1] > 0 and all(a <= b for a, b in pairwise(forgotten))
    last = found[-1]
    kept = [messages[0], *messages[1 + last.forgotten :]]
    alone = base_model.read([kept], [1])[0]
    torch.testing.assert_close(last.mean, alone.response, atol=1e-4, rtol=1e-4)


def test_one_that_cannot_be_read_does_not_keep_the_others(base_model: ModelWrapper) -> None:
    long = [TALK[1], {"role": "assistant", "content": "word " * 1000}]
    silent = [TALK[1], {"role": "assistant", "content": " "}]
    found = read_replies(base_model, [long, TALK, silent, [TALK[2]]], [1])
    assert [isinstance(each, GenerationError) for each in found] == [True, False, True, False]
    assert "context holds 256" in str(found[0]) and "no assistant reply" in str(found[2])
    greeting = found[3]
    assert isinstance(greeting, list) and isinstance(greeting[0], ReplyReading) and greeting[0].message == 0


def test_no_hook_stays(model: ModelWrapper) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.model.modules())

    before = hooks()  # transformers may have some of its own
    read_replies(model, [TALK], [0, 2])
    assert hooks() == before


def test_examples_lie_where_the_scale_says(scorer: TraitScorer, trait: TraitVector) -> None:
    loud, quiet = scorer.score([told(LOUD), told(QUIET)])
    assert isinstance(loud, Scored) and isinstance(quiet, Scored)
    assert loud.means["loudness"] > trait.reading.threshold > quiet.means["loudness"]
    reply = loud.replies[0]
    assert reply.scores["loudness"] == pytest.approx(trait.score(reply.projections["loudness"]))
    assert trait.score(trait.centre) == 0
    assert trait.score(trait.centre + trait.half_gap) == pytest.approx(1)


def test_turns_means_and_drift(scorer: TraitScorer) -> None:
    scored = scorer.score([told(TALK)])[0]
    assert isinstance(scored, Scored)
    scores = [reply.scores["loudness"] for reply in scored.replies]
    assert [(reply.turn, reply.user) for reply in scored.replies][1] == (2, "I feel low.")
    assert scored.means["loudness"] == pytest.approx(sum(scores) / 3)
    assert scored.drift["loudness"] == pytest.approx(scores[2] - scores[0])


def test_a_stream_keeps_its_order_and_its_bad_lines(scorer: TraitScorer) -> None:
    bad = BadLine("x:2", 2, "no")
    long = Transcript([TALK[1], {"role": "assistant", "content": "x" * 5000}], "x:4", 4)
    items = [told(LOUD), bad, told(QUIET), long, *[told(LOUD)] * 600]
    found = list(scorer.stream(iter(items)))
    assert found[1] is bad and isinstance(found[3], BadLine) and "context" in found[3].problem
    assert sum(isinstance(each, Scored) for each in found) == 602
    first, later = found[0], found[-1]
    assert isinstance(first, Scored) and isinstance(later, Scored)
    assert first.means["loudness"] == pytest.approx(later.means["loudness"], abs=1e-3)


def test_one_reply(scorer: TraitScorer) -> None:
    assert scorer.score_text("hi", "YES").text == "YES"
    with pytest.raises(GenerationError):
        scorer.score_text("hi", "  ")


def test_turns_of_both_roles_are_measured_where_they_stand(
    any_model: ModelWrapper, scorer: TraitScorer, trait: TraitVector
) -> None:
    own = scorer if any_model is scorer.model else TraitScorer(any_model, [trait])
    turns = own.score_turns(TALK)
    assert [(turn.turn, turn.role, turn.message) for turn in turns] == [
        (1, "user", 1),
        (1, "assistant", 2),
        (2, "user", 3),
        (2, "assistant", 4),
        (3, "user", 5),
        (3, "assistant", 6),
    ]
    replies = own.score([told(TALK)])[0]
    assert isinstance(replies, Scored)
    assert [turn.scores for turn in turns[1::2]] == [reply.scores for reply in replies.replies]
    assert drift_of(turns, "assistant") == replies.drift
    users = [turn.scores["loudness"] for turn in turns[::2]]
    assert drift_of(turns, "user")["loudness"] == users[-1] - users[0]
    assert drift_of(turns[:2], "user") == {}


def test_turns_without_a_reply_and_a_message_that_only_fits_alone(scorer: TraitScorer) -> None:
    assert [turn.role for turn in scorer.score_turns(TALK[:2])] == ["user"]
    assert scorer.score_turns([]) == []
    long = [{"role": "user", "content": "word " * 900}, {"role": "user", "content": "and this one"}]
    with pytest.raises(GenerationError):
        scorer.score_turns(long)
    alone = scorer.score_turns(long[1:])[0]
    assert alone.n_tokens and alone.turn == 1


def test_measuring_turns_pauses_after_every_message_of_the_user(scorer: TraitScorer) -> None:
    steps = scorer.turns_by_steps(TALK)
    assert sum(1 for _ in steps) == 3
    long = [
        {"role": ("user", "assistant")[place % 2], "content": f"this is message {place}"}
        for place in range(40)
    ]
    turns = scorer.score_turns(long)
    assert [turn.message for turn in turns] == list(range(40))
    assert [turn.turn for turn in turns[-2:]] == [20, 20]
