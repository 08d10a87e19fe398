"""Thinking models: who opens the thoughts, and what is read of a reply that has some."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from persona_tui.model import ModelWrapper, Sampling, Watch, conversation, text
from persona_tui.model.request import Request
from persona_tui.model.text import Rendering

from .conftest import CHATML, make_model, make_tokenizer

HI = conversation("Hi")
OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SWITCH = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


def thinker(template: str) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def model() -> ModelWrapper:
    """A model whose template opens the thoughts, as R1's does."""
    return ModelWrapper(make_model("llama", vocab_size=262), thinker(OPENS), "thinker")


def test_a_template_without_a_switch_has_its_thoughts_closed() -> None:
    tokenizer = thinker(OPENS)
    assert text.render(tokenizer, HI).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text.render(tokenizer, HI, Rendering(thinking=True)).endswith("assistant\n<think>\n")
    assert text.can_think(tokenizer)


def test_a_template_with_a_switch_is_told() -> None:
    tokenizer = thinker(SWITCH)
    assert text.render(tokenizer, HI).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text.render(tokenizer, HI, Rendering(thinking=True)).endswith("assistant\n")
    assert text.can_think(tokenizer) and not text.can_think(make_tokenizer())
    assert text.opened_thought(tokenizer, HI, Rendering(thinking=True)) == ""


@pytest.mark.parametrize("template", [OPENS, SWITCH])
def test_a_reply_that_was_cut_off_in_its_thoughts_goes_on_with_them(template: str) -> None:
    begun = [*HI, {"role": "assistant", "content": "<think>\nHm, let me"}]
    for rendering in (Rendering(), Rendering(thinking=True)):
        written = text.render(thinker(template), begun, rendering)
        assert written.endswith("assistant\n<think>\nHm, let me")


def test_a_model_that_cannot_think_is_recorded_without_it(wrapper: ModelWrapper, model: ModelWrapper) -> None:
    for each, expected in ((wrapper, {}), (model, {"thinking": True})):
        with each.rendered_as({"thinking": True}):
            assert each.rendering.record() == expected
        assert each.rendering.record() == {}
    assert Rendering.from_record({"thinking": True}) == Rendering(thinking=True)


def test_opened_thoughts_are_part_of_the_text(model: ModelWrapper) -> None:
    sampling = Sampling(6, 1.0, 1.0)
    with model.rendered_as({"thinking": True}):
        streamed = "".join(event.text for event in model.stream([Request(HI, seed=1)], sampling))
        written = model.generate([Request(HI, seed=1)], sampling)[0]
    assert streamed.startswith("<think>\n") and written.text.startswith("<think>\n")
    assert streamed.strip() == written.text
    assert not model.generate([Request(HI, seed=1)], sampling)[0].text.startswith("<think>")


def test_what_is_read_of_a_reply_leaves_its_thoughts_out(model: ModelWrapper) -> None:
    begin, end = model.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    requests = [Request(HI, seed=seed) for seed in range(60)]
    with model.rendered_as({"thinking": True}):
        prompt = model.encode(HI)
        replies = model.generate(requests, Sampling(30, 2.0, 1.0), capture_layers=[1])
    ended = unended = 0
    for reply in replies:
        thinking, spoken = True, []
        for place, token in enumerate(reply.token_ids):
            if not thinking and token not in (begin, end):
                spoken.append(place)
            thinking = token != end and (thinking or token == begin)
        assert reply.activations is not None and reply.activations.n_tokens == len(spoken)
        unended += end not in reply.token_ids
        if not spoken:
            assert not reply.activations.response.any()
            continue
        ended += 1
        with torch.inference_mode():
            read = model.model(torch.tensor([[*prompt, *reply.token_ids]]), output_hidden_states=True)
        rows = read.hidden_states[2][0, [len(prompt) + place for place in spoken]]
        torch.testing.assert_close(reply.activations.response[0], rows.mean(0), atol=1e-4, rtol=1e-4)
    assert ended > 2 and unended > 2, "both happen"


def test_a_watch_does_not_read_thoughts(model: ModelWrapper) -> None:
    watch = Watch(layers=(1,), after=1, every=1)
    requests = [Request(HI, seed=seed) for seed in range(20)]
    with model.rendered_as({"thinking": True}):
        events = list(model.stream(requests, Sampling(12, 1.0, 1.0), watch=watch))
    end = model.tokenizer.convert_tokens_to_ids("</think>")
    thinking = {event.row for event in events} - {event.row for event in events if event.token_id == end}
    assert len(thinking) > 10
    read = {event.row for event in events if event.reading is not None and event.token_id >= 0}
    assert not read & thinking


def test_the_token_that_a_template_writes_behind_a_reply_ends_a_turn() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|over|>"]})
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|over|>")
    model = make_model("llama", vocab_size=264)
    model.generation_config.eos_token_id = [1, 2]
    over = tokenizer.convert_tokens_to_ids("<|over|>")
    assert text.end_tokens(model, tokenizer) >= {1, 2, over}
    assert text.end_tokens(model, make_tokenizer(chat=False)) == {1, 2, 3}
