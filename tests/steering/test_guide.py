"""The guide: what a steered row may say, told by an unsteered twin; and the nats from plain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from persona_tui.api import apply
from persona_tui.core.errors import PersonaTuiError
from persona_tui.model import (
    Interventions,
    Message,
    ModelWrapper,
    Request,
    Sampling,
    TokenEvent,
    conversation,
)
from persona_tui.steering import Mix, SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from tests.model.conftest import make_model, make_tokenizer

ASKED = conversation("Who are you?")
LOUD = Mix({"sage": 1}, 1.5)  # capped: the twin must not be
FREE = Mix(capping=False)
GUIDED = replace(LOUD, plausibility=0.3)
SAMPLING = Sampling(40, temperature=1.2, top_p=1.0, seed=3)


def tokens(events: Iterator[TokenEvent] | list[TokenEvent], row: int = 0) -> list[int]:
    return [event.token_id for event in events if event.row == row]


def spoken(engine: SteeringEngine, mix: Mix, sampling: Sampling = SAMPLING) -> list[TokenEvent]:
    return list(engine.stream(ASKED, mix=mix, sampling=sampling))


def plain(model: ModelWrapper, ids: list[int], asked: list[Message] = ASKED) -> Tensor:
    """Log-probabilities `[tokens, vocabulary]` for a reply: one pass, no cache, nothing done to the model."""
    prompt = model.encode(asked)
    with torch.inference_mode():
        logits = model.model(torch.tensor([prompt + ids]), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


def shares(model: ModelWrapper, ids: list[int], asked: list[Message] = ASKED) -> list[float]:
    """By token: its probability under the plain model, as a share of the best token's."""
    found = plain(model, ids, asked)
    chosen = found.gather(1, torch.tensor(ids)[:, None])[:, 0]
    shares: list[float] = (chosen - found.amax(-1)).exp().tolist()
    return shares


# What may be said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plausibility", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_every_token_is_plausible_unsteered(
    engine: SteeringEngine, model: ModelWrapper, plausibility: float, temperature: float, top_p: float
) -> None:
    sampling = Sampling(24, temperature, top_p, seed=3)
    said = tokens(spoken(engine, replace(LOUD, plausibility=plausibility), sampling))
    assert min(shares(model, said)) >= plausibility - 1e-4
    assert min(shares(model, tokens(spoken(engine, LOUD, sampling)))) < plausibility


def test_without_the_guide_nothing_is_changed(engine: SteeringEngine, model: ModelWrapper) -> None:
    by_hand = engine.interventions(LOUD)
    assert by_hand.plausibility == 0
    events = spoken(engine, LOUD)
    assert tokens(events) == tokens(
        list(model.stream([Request(ASKED, SAMPLING.row_seed(0))], SAMPLING, by_hand))
    )
    assert all(event.nats is None for event in events)
    assert engine.reply(ASKED, mix=LOUD, sampling=SAMPLING).nats_from_plain is None


@pytest.mark.parametrize("mix", [replace(GUIDED, strength=0), replace(GUIDED, weights={})])
def test_where_nobody_speaks_it_is_off(engine: SteeringEngine, mix: Mix) -> None:
    mix = replace(mix, capping=False)
    assert engine.interventions(mix) == Interventions.none()
    ours, bare = ([replace(each, projections={}) for each in spoken(engine, way)] for way in (mix, FREE))
    assert ours == bare


def test_plausibility_1_says_what_the_plain_model_finds_best(
    engine: SteeringEngine, model: ModelWrapper
) -> None:
    said = tokens(spoken(engine, replace(LOUD, plausibility=1)))
    best = list(engine.stream(ASKED, mix=FREE, sampling=replace(SAMPLING, temperature=0)))
    assert said == tokens(best)


def test_top_p_counts_what_the_guide_has_left(engine: SteeringEngine, model: ModelWrapper) -> None:
    """The likeliest steered tokens may all be implausible; a small top-p still finds one that is allowed."""
    narrow = replace(SAMPLING, top_p=0.01)
    greedy = replace(SAMPLING, temperature=0)
    assert tokens(spoken(engine, GUIDED, narrow)) == tokens(spoken(engine, GUIDED, greedy))


def test_with_a_cache_as_without(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager
) -> None:
    mix = replace(GUIDED, capping=False)
    said = tokens(spoken(engine, mix, Sampling(30, temperature=0)))
    ids: list[int] = []
    for _ in said:
        prompt = torch.tensor([model.encode(ASKED) + ids])
        with torch.inference_mode():
            unsteered = model.model(prompt, use_cache=False).logits[0, -1]
            with apply(manager.get("sage"), model.model, mix.strength):
                steered = model.model(prompt, use_cache=False).logits[0, -1]
        allowed = unsteered.softmax(-1) >= mix.plausibility * unsteered.softmax(-1).max()
        ids.append(int(steered.where(allowed, -torch.inf).argmax()))
    assert said == ids


# Nats from plain ------------------------------------------------------------------------------------------


def test_nats_are_the_difference_to_a_plain_pass(engine: SteeringEngine, model: ModelWrapper) -> None:
    events = spoken(engine, GUIDED)
    said = tokens(events)
    unsteered = plain(model, said).gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
    found = [event.nats for event in events if event.nats is not None]
    assert found == pytest.approx(
        [event.logprob - each for event, each in zip(events, unsteered, strict=True)], abs=1e-4
    )
    assert all(map(math.isfinite, found)) and max(map(abs, found)) > 0.1
    mean = engine.reply(ASKED, mix=GUIDED, sampling=SAMPLING).nats_from_plain
    assert mean == pytest.approx(sum(found) / len(found))


def test_log_probabilities_are_those_without_the_guide(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager
) -> None:
    events = spoken(engine, replace(GUIDED, capping=False))
    with apply(manager.get("sage"), model.model, GUIDED.strength):
        steered = plain(model, tokens(events))
    for event, row in zip(events, steered, strict=True):
        assert event.logprob == pytest.approx(row[event.token_id].item(), abs=1e-4)
        assert event.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)


# Batches --------------------------------------------------------------------------------------------------


def test_rows_of_different_mixes_are_as_they_are_alone(engine: SteeringEngine) -> None:
    mixes = [FREE, GUIDED, LOUD, replace(GUIDED, weights={"trickster": 1}, plausibility=0.05)]
    together = list(engine.stream_rows(ASKED, mixes, sampling=SAMPLING))
    for row, mix in enumerate(mixes):
        alone = spoken(engine, mix)
        assert tokens(together, row) == tokens(alone)
        nats = [event.nats for event in together if event.row == row]
        assert nats == [
            None if event.nats is None else pytest.approx(event.nats, abs=1e-4) for event in alone
        ]


@pytest.mark.parametrize("family", ["qwen2-sliding", "gpt2"])
def test_rows_that_end_leave_with_their_twins(family: str) -> None:
    """The context ends them, at different tokens; one gets its twin when others have left."""
    model = ModelWrapper(make_model(family), make_tokenizer(), "small")
    lengths = (190, 180, 150, 170, 110)
    requests = [Request(conversation("x" * length), seed) for seed, length in enumerate(lengths)]
    vector = 4 * torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(5))

    def way(row: int, index: int) -> Interventions:
        late = 0.2 if index >= 70 else 0.0
        return Interventions({1: vector}, plausibility=(0.3, 0.0, 0.1, 0.3, late)[row])

    def stream(rows: list[int]) -> list[TokenEvent]:
        index = itertools.count()

        def poll() -> Interventions:
            now = next(index)
            return Interventions.by_row([way(row, now) for row in rows])

        return list(model.stream([requests[row] for row in rows], Sampling(200, 2.0, 1.0), poll))

    together = stream(list(range(5)))
    assert len({len(tokens(together, row)) for row in range(5)}) > 3
    for row, request in enumerate(requests):
        said = tokens(together, row)
        assert said == tokens(stream([row]))
        found = shares(model, said, request.messages)
        limits = [way(row, index).plausibility for index in range(len(said))]
        assert all(share >= limit - 1e-4 for share, limit in zip(found, limits, strict=True))


def test_generate_batch_is_guided_by_the_mix(engine: SteeringEngine, model: ModelWrapper) -> None:
    answer = engine.generate_batch([Request(ASKED, 5)], GUIDED, SAMPLING)[0]
    assert min(shares(model, answer.token_ids)) >= 0.3 - 1e-4


def test_what_a_batch_captures_is_of_the_steered_rows(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager
) -> None:
    way = engine.interventions(replace(GUIDED, capping=False))
    answer = model.generate([Request(ASKED, 5)], SAMPLING, way, capture_layers=[4, 6])[0]
    prompt = model.encode(ASKED)
    with torch.inference_mode(), apply(manager.get("sage"), model.model, GUIDED.strength):
        ids = torch.tensor([prompt + answer.token_ids])
        states = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states
    assert answer.activations is not None and answer.activations.n_tokens == len(answer.token_ids)
    expected = torch.stack([states[layer + 1][0, len(prompt) :].mean(0) for layer in (4, 6)])
    torch.testing.assert_close(answer.activations.response, expected, atol=1e-3, rtol=1e-3)


# Live -----------------------------------------------------------------------------------------------------


def test_a_change_acts_on_the_next_token(engine: SteeringEngine, model: ModelWrapper) -> None:
    """Off, on in the middle of the reply, off again: the twin reads on, and only its limit goes."""
    engine.set_mix(LOUD)
    events = []
    for event in engine.stream(ASKED, sampling=SAMPLING):
        events.append(event)
        if event.index in (9, 24):
            engine.set_mix(replace(LOUD, plausibility=0.5 if event.index == 9 else 0.0))
    said = tokens(events)
    assert said[:10] == tokens(spoken(engine, LOUD))[:10]
    found = shares(model, said)
    assert min(found[:10]) < 0.5 and min(found[25:]) < 0.5
    assert min(found[10:25]) >= 0.5 - 1e-4
    assert [event.nats is None for event in events] == [index < 10 for index in range(len(events))]
    unsteered = plain(model, said).gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
    for event in events[10:]:
        assert event.nats == pytest.approx(event.logprob - unsteered[event.index], abs=1e-4)


def test_a_reply_is_repeated_token_for_token(engine: SteeringEngine) -> None:
    engine.set_mix(LOUD)
    noted: dict[int, Mix] = {}
    events = []
    for event in engine.stream(
        ASKED,
        sampling=SAMPLING,
        on_mix=lambda at, mix: noted.update({at: Mix.from_record(mix, settled=True)}),
    ):
        events.append(event)
        if event.index == 5:
            engine.set_mix(GUIDED)
    assert [mix.plausibility for mix in noted.values()] == [0, 0.3]
    again = list(engine.repeat(ASKED, noted, SAMPLING))
    assert tokens(again) == tokens(events)
    assert [event.nats for event in again] == [event.nats for event in events]
    reread = engine.reread_reply(ASKED, tokens(events), noted)
    assert [event.token_id for event in reread] == tokens(events)


# Records --------------------------------------------------------------------------------------------------


def test_a_record_has_it_and_an_old_one_is_not_guided(engine: SteeringEngine) -> None:
    record = engine.describe(GUIDED)
    assert record["plausibility"] == 0.3
    assert Mix.from_record(record).plausibility == 0.3
    del record["plausibility"]
    assert Mix.from_record(record, settled=True).plausibility == 0


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_it_lies_between_0_and_1(model: ModelWrapper, wrong: float) -> None:
    with pytest.raises(PersonaTuiError, match=r"plausibility must be a number from 0 \(off\) to 1"):
        Mix(plausibility=wrong)
    with pytest.raises(PersonaTuiError, match="plausibility must be"):
        model.generate([Request(ASKED)], SAMPLING, Interventions(plausibility=wrong))
