"""Watching a stream: what its own passes read is what reading the same text would give."""

from __future__ import annotations

import threading

import pytest
import torch

from persona_tui.model import ModelWrapper, Request, Sampling, TokenEvent, Watch, conversation
from persona_tui.model.text import decode_ids, encode_prompt, message_span

LAYERS = (0, 2)
SAMPLING = Sampling(max_new_tokens=14, temperature=0, seed=1)
ASKED = "How do I bake a cake?"


def events(model: ModelWrapper, *asked: str, watch: Watch | None, **options: object) -> list[TokenEvent]:
    requests = [Request(conversation(each)) for each in asked]
    return list(model.stream(requests, SAMPLING, watch=watch, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [conversation(ASKED), conversation(ASKED, "Be brief.")])
@pytest.mark.parametrize("kind", ["wrapper", "base_wrapper"])
def test_the_span_is_the_message(
    request: pytest.FixtureRequest, kind: str, messages: list[dict[str, str]]
) -> None:
    model: ModelWrapper = request.getfixturevalue(kind)
    ids = encode_prompt(model.tokenizer, messages)
    span = message_span(model.tokenizer, messages, ids)
    assert decode_ids(model.tokenizer, [ids[place] for place in span]).strip() == ASKED


def test_the_span_is_the_last_of_several_and_never_empty(wrapper: ModelWrapper) -> None:
    talk = [*conversation("First."), {"role": "assistant", "content": "Yes."}, *conversation("Second?")]
    ids = encode_prompt(wrapper.tokenizer, talk)
    span = message_span(wrapper.tokenizer, talk, ids)
    assert decode_ids(wrapper.tokenizer, [ids[place] for place in span]) == "Second?"
    begun = [*talk, {"role": "assistant", "content": "Well"}]
    ids = encode_prompt(wrapper.tokenizer, begun)
    assert message_span(wrapper.tokenizer, begun, ids) == span
    empty = conversation("")
    assert len(message_span(wrapper.tokenizer, empty, encode_prompt(wrapper.tokenizer, empty))) == 1


def test_a_message_is_read_before_the_first_token(wrapper: ModelWrapper) -> None:
    asked = (ASKED, "And a much longer question about bread, butter and jam?")  # the first one is padded
    seen = events(wrapper, *asked, watch=Watch(LAYERS))
    expected = wrapper.read_messages([conversation(each) for each in asked], LAYERS)
    for row, event in enumerate(seen[:2]):
        assert (event.row, event.token_id, event.text, event.finish) == (row, -1, "", None)
        assert event.reading is not None and event.reading.last is not None
        torch.testing.assert_close(event.reading.mean, expected[row].mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(event.reading.last, expected[row].last, atol=1e-5, rtol=1e-4)
        assert event.reading.n_tokens == expected[row].n_tokens == len(asked[row])  # a byte, a token


def test_the_mean_of_a_message_leaves_the_template_out(wrapper: ModelWrapper) -> None:
    alone, prompted = wrapper.read_messages([conversation(ASKED), conversation(ASKED, "Be brief.")], LAYERS)
    assert alone.n_tokens == prompted.n_tokens
    whole = wrapper.read([conversation(ASKED)], LAYERS)[0]
    assert whole.n_tokens > alone.n_tokens and not torch.allclose(whole.response, alone.mean)


def test_a_reply_is_read_as_it_grows(wrapper: ModelWrapper) -> None:
    tokens = [
        event
        for event in events(wrapper, ASKED, watch=Watch(LAYERS, after=2, every=3))
        if event.token_id >= 0
    ]
    read = {event.index: event.reading for event in tokens if event.reading is not None}
    assert [index for index in read if index < len(tokens) - 1] == [2, 5, 8, 11]
    assert tokens[-1].index in read
    ids = encode_prompt(wrapper.tokenizer, conversation(ASKED))
    for index, reading in read.items():
        assert reading.n_tokens == index and reading.last is None
        whole = torch.tensor([ids + [event.token_id for event in tokens[:index]]])
        with torch.inference_mode():
            states = wrapper.model(whole, output_hidden_states=True).hidden_states
        expected = states[LAYERS[0] + 1][0, len(ids) :].mean(0)
        torch.testing.assert_close(reading.mean[0], expected, atol=1e-4, rtol=1e-3)


def test_a_reply_may_be_read_at_fewer_layers(wrapper: ModelWrapper) -> None:
    whole = [event.reading for event in events(wrapper, ASKED, "And why?", watch=Watch(LAYERS))]
    some = [event.reading for event in events(wrapper, ASKED, "And why?", watch=Watch(LAYERS, (2,)))]
    assert len(whole) == len(some)
    for one, other in zip(whole, some, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None and one.last is None:
            assert other.layers == (2,)
            torch.testing.assert_close(one.mean[1:], other.mean)


def test_watching_changes_no_token_and_costs_no_pass(wrapper: ModelWrapper) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = wrapper.model.register_forward_hook(count)
    try:
        plain = events(wrapper, ASKED, watch=None)
        without, passes = passes, 0
        watched = [event for event in events(wrapper, ASKED, watch=Watch(LAYERS)) if event.token_id >= 0]
    finally:
        handle.remove()
    assert [event.token_id for event in watched] == [event.token_id for event in plain]
    assert passes == without


def test_a_watched_stream_can_be_left_after_the_first_pass(wrapper: ModelWrapper) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    before = [len(block._forward_hooks) for block in wrapper._blocks]
    handle = wrapper.model.register_forward_hook(count)
    try:
        stream = wrapper.stream([Request(conversation(ASKED))], SAMPLING, watch=Watch(LAYERS))
        assert next(stream).reading is not None
        stream.close()  # type: ignore[attr-defined]
    finally:
        handle.remove()
    assert passes == 1
    assert [len(block._forward_hooks) for block in wrapper._blocks] == before


def test_a_stop_still_cancels(wrapper: ModelWrapper) -> None:
    stop = threading.Event()
    stream = wrapper.stream([Request(conversation(ASKED))], SAMPLING, watch=Watch(LAYERS), stop=stop)
    next(stream), next(stream)
    stop.set()
    assert [event.finish for event in stream] == ["cancelled"]
