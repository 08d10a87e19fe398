"""What a front end and the extraction rely on: streams, seeds, stopping, given text, errors."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from itertools import groupby

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import TopPLogitsWarper

from persona_tui.core.errors import GenerationError, JobCancelled
from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, TokenEvent, conversation
from persona_tui.model.architecture import find_blocks
from persona_tui.model.request import keep_top_p
from persona_tui.model.text import TextStream
from persona_tui.vectors.files import same_model

from .conftest import HIDDEN, make_model, make_tokenizer

GREEDY = Sampling(max_new_tokens=24, temperature=0)
SAMPLED = Sampling(max_new_tokens=24, temperature=1.0, top_p=0.9, seed=3)
Vectors = Callable[..., Tensor]


def ask(*questions: str) -> list[Request]:
    return [Request(conversation(question), seed=at) for at, question in enumerate(questions)]


def no_hooks(wrapper: ModelWrapper) -> bool:
    return not any(module._forward_hooks for module in wrapper.model.modules())


def by_row(events: list[TokenEvent]) -> dict[int, list[TokenEvent]]:
    ordered = sorted(events, key=lambda event: (event.row, event.index))
    return {row: list(group) for row, group in groupby(ordered, key=lambda event: event.row)}


# Streams


def test_a_stream_writes_what_generate_writes(wrapper: ModelWrapper) -> None:
    requests = ask("What is bread?", "Hi", "Tell me about the wind over the sea")
    generations = wrapper.generate(requests, SAMPLED)
    rows = by_row(list(wrapper.stream(requests, SAMPLED)))
    for row, generation in enumerate(generations):
        assert "".join(event.text for event in rows[row]).strip() == generation.text.rstrip("\ufffd").strip()
        assert rows[row][-1].finish == generation.finish
        assert all(event.finish is None for event in rows[row][:-1])
        assert [event.index for event in rows[row]] == list(range(len(rows[row])))


def test_characters_arrive_whole(wrapper: ModelWrapper) -> None:
    events = list(
        wrapper.stream(ask("Anything"), Sampling(max_new_tokens=200, temperature=1.5, top_p=1, seed=1))
    )
    before_the_end = "".join(event.text for event in events[:-1])
    assert before_the_end and not before_the_end.endswith("\ufffd")


def test_a_reply_that_was_begun_goes_on(any_wrapper: ModelWrapper) -> None:
    begun = [*conversation("Tell me a story"), {"role": "assistant", "content": "Once upon"}]
    assert any_wrapper.render(begun) == any_wrapper.render(begun[:1]) + "Once upon"
    asked = any_wrapper.count_tokens(begun[:1])
    assert any_wrapper.count_tokens(begun) == asked + len("Once upon")  # bytes are this tokenizer's tokens
    assert list(any_wrapper.stream([Request(begun)], GREEDY))


def test_what_goes_on_keeps_its_leading_space(wrapper: ModelWrapper) -> None:
    tokenizer = wrapper.tokenizer
    ids = tokenizer(" a time")["input_ids"]
    fresh, continued = TextStream(tokenizer), TextStream(tokenizer, before=tokenizer("upon")["input_ids"])
    assert "".join(map(fresh.feed, ids)) == "a time"
    assert "".join(map(continued.feed, ids)) == " a time"


def test_stop_takes_effect_within_one_token(wrapper: ModelWrapper) -> None:
    stop = threading.Event()
    seen = []
    for event in wrapper.stream(ask("One", "Two"), GREEDY, stop=stop):
        seen.append(event)
        if event.index == 3:
            stop.set()
    rows = by_row(seen)
    assert [event.index for event in rows[0]] == [0, 1, 2, 3, 4]
    assert rows[0][-1].finish == rows[1][-1].finish == "cancelled"
    assert rows[0][-1].token_id == -1


def test_interventions_act_from_the_next_token_on(wrapper: ModelWrapper, random_vector: Vectors) -> None:
    axis = random_vector(1, unit=True)
    wanted: list[Interventions] = []

    def poll() -> Interventions | None:
        return wanted.pop() if wanted else None

    lifted = []
    for event in wrapper.stream(ask("Hello there"), GREEDY, poll, axes={"axis": {1: axis}}):
        lifted.append(event.capped)
        if event.index == 4:
            wanted.append(Interventions(capping={1: Cap(axis, 1000.0)}))
        if event.index == 9:
            wanted.append(Interventions.none())
    assert [value > 0 for value in lifted[:15]] == [False] * 5 + [True] * 5 + [False] * 5


def test_traces_are_projections_averaged_over_layers(wrapper: ModelWrapper, random_vector: Vectors) -> None:
    one, two = random_vector(1), random_vector(2)
    request = ask("What is bread?")[0]
    event = next(wrapper.stream([request], GREEDY, axes={"a": {0: one, 2: two}, "b": {2: one}}))
    read = wrapper.read([request.messages], [0, 2])[0]
    last = read.prompt_last
    assert event.projections["a"] == pytest.approx(float(last[0] @ one + last[1] @ two) / 2, abs=1e-3)
    assert event.projections["b"] == pytest.approx(float(last[1] @ one), abs=1e-3)


def test_log_probability_is_that_of_the_model(wrapper: ModelWrapper) -> None:
    request = ask("What is bread?")[0]
    events = list(wrapper.stream([request], SAMPLED))
    written = [event for event in events if event.token_id != 2]
    generation = wrapper.generate([request], SAMPLED)[0]
    ids = wrapper.tokenizer(wrapper.render(request.messages))["input_ids"]
    logits = wrapper.model(torch.tensor([ids + generation.token_ids])).logits[0].float().log_softmax(-1)
    expected = [logits[len(ids) - 1 + at, token].item() for at, token in enumerate(generation.token_ids)]
    assert [event.logprob for event in written] == pytest.approx(expected, abs=1e-3)


# Hooks


def test_no_hook_survives_an_exception(wrapper: ModelWrapper, random_vector: Vectors) -> None:
    wrapper = ModelWrapper(make_model(), make_tokenizer(), "fresh")

    def give_up() -> None:
        raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        wrapper.generate(
            ask("Hi"), GREEDY, Interventions({1: random_vector(1)}), capture_layers=[0], on_step=give_up
        )
    assert no_hooks(wrapper)
    find_blocks(wrapper.model)[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wrapper.generate(ask("Hi"), GREEDY, Interventions({1: random_vector(1)}))
    assert not find_blocks(wrapper.model)[1]._forward_hooks


def test_an_abandoned_stream_leaves_nothing(random_vector: Vectors) -> None:
    wrapper = ModelWrapper(make_model(), make_tokenizer(), "fresh")
    plain = wrapper.generate(ask("Hi"), GREEDY)[0]
    stream = wrapper.stream(ask("Hi"), GREEDY, Interventions({1: 5 * random_vector(1)}))
    next(stream)
    assert no_hooks(wrapper)
    assert wrapper.generate(ask("Hi"), GREEDY)[0] == plain, "a paused stream must not act on others"
    del stream
    gc.collect()
    assert no_hooks(wrapper)


# Sampling


def test_a_text_depends_on_its_seed_only(wrapper: ModelWrapper) -> None:
    requests = ask("What is bread?", "Hi", "Tell me about the wind over the sea", "And then?")
    backwards = wrapper.generate(requests[::-1], SAMPLED)[::-1]
    for request, one, other in zip(requests, wrapper.generate(requests, SAMPLED), backwards, strict=True):
        assert one.token_ids == other.token_ids == wrapper.generate([request], SAMPLED)[0].token_ids


def test_seeds_make_texts_repeatable_and_different(wrapper: ModelWrapper) -> None:
    same = [Request(conversation("Hi"))] * 3
    first, again = (wrapper.generate(same, SAMPLED) for _ in range(2))
    assert [each.text for each in first] == [each.text for each in again]
    assert len({each.text for each in first}) == 3
    unseeded = Sampling(max_new_tokens=24, temperature=1.0)
    assert wrapper.generate(same, unseeded)[0].text != wrapper.generate(same, unseeded)[0].text


@pytest.mark.parametrize("spread", [0.1, 6.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(spread: float, top_p: float) -> None:
    logits = spread * torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    expected = TopPLogitsWarper(top_p)(None, logits) > -torch.inf  # type: ignore[arg-type]
    assert torch.equal(keep_top_p(logits.softmax(-1), top_p) > 0, expected)


def test_sampling_follows_the_distribution(wrapper: ModelWrapper) -> None:
    request = Request(conversation("Hi"))
    one_token = Sampling(max_new_tokens=1, temperature=2.0, top_p=0.8, seed=0)
    chosen = [
        next(iter(group)).token_id
        for group in by_row(list(wrapper.stream([request] * 2000, one_token))).values()
    ]
    ids = wrapper.tokenizer(wrapper.render(request.messages))["input_ids"]
    probabilities = (wrapper.model(torch.tensor([ids])).logits[0, -1].detach() / 2).softmax(-1)
    ordered = probabilities.sort(descending=True)
    allowed = ordered.indices[: int((ordered.values.cumsum(0) < 0.8).sum()) + 1].tolist()
    assert set(chosen) <= set(allowed)
    top = allowed[0]
    expected = float(probabilities[top] / probabilities[allowed].sum())
    assert chosen.count(top) / len(chosen) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_sampling_refuses_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


# What counts as the response


def test_the_end_of_a_turn_is_no_part_of_the_response() -> None:
    wrapper = ModelWrapper(make_model("qwen2-sliding", seed=4), make_tokenizer(), "tiny")
    sampling = Sampling(max_new_tokens=400, temperature=2.5, top_p=1, seed=0)
    questions = ["Hi", "What is bread made of, and why does it rise in the oven?", "Why?", "Who?"]
    generations = wrapper.generate(ask(*questions) * 4, sampling, capture_layers=[1])
    stopped = [each for each in generations if each.finish == "stop"]
    assert stopped and any(each.finish == "length" for each in generations)
    for question, each in zip(questions * 4, generations, strict=True):
        read = each.activations
        assert read is not None and read.n_tokens == len(each.token_ids)
        assert 2 not in each.token_ids
        ids = wrapper.tokenizer(wrapper.render(conversation(question)))["input_ids"]
        with torch.no_grad():
            states = wrapper.model(
                torch.tensor([ids + each.token_ids]), output_hidden_states=True, use_cache=False
            ).hidden_states[2][0]
        torch.testing.assert_close(read.response[0], states[len(ids) :].mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_rows_keep_their_own_interventions_when_others_finish(random_vector: Vectors) -> None:
    wrapper = ModelWrapper(make_model("qwen2-sliding", seed=4), make_tokenizer(), "tiny")
    sampling = Sampling(max_new_tokens=300, temperature=2.5, top_p=1)
    requests = ask(*(f"Question {number}?" for number in range(8)))
    deltas, axis = random_vector(1, 8), random_vector(2, unit=True)
    caps = [Cap(axis, float(row)) if row % 2 else None for row in range(8)]
    together = wrapper.generate(requests, sampling, Interventions({1: deltas}, {2: caps}), capture_layers=[2])
    assert len({len(each.token_ids) for each in together}) > 4
    for row, request in enumerate(requests):
        cap = caps[row]
        own = Interventions({1: deltas[row]}, {} if cap is None else {2: cap})
        alone = wrapper.generate([request], sampling, own, capture_layers=[2])[0]
        assert alone.token_ids == together[row].token_ids
        assert alone.activations is not None and together[row].activations is not None
        torch.testing.assert_close(
            alone.activations.response, together[row].activations.response, rtol=1e-3, atol=1e-3
        )


def test_base_models_stop_where_the_next_turn_begins(
    base_wrapper: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base_wrapper.render(conversation("Why?", "Be kind.")) == "System: Be kind.\nUser: Why?\nAssistant:"
    script = base_wrapper.tokenizer(" A café.\nUser: more")["input_ids"]

    def scripted(self: object, logits: Tensor, index: int) -> Tensor:
        return torch.tensor([script[index]])

    monkeypatch.setattr("persona_tui.model.request.Sampler.pick", scripted)
    generation = base_wrapper.generate(ask("Why?"), GREEDY, capture_layers=[0, 1])[0]
    assert (generation.text, generation.finish) == ("A café.", "stop")
    expected = base_wrapper.read(
        [[*conversation("Why?"), {"role": "assistant", "content": "A café."}]], [0, 1]
    )[0]
    assert generation.activations is not None
    assert generation.activations.n_tokens == expected.n_tokens
    torch.testing.assert_close(generation.activations.response, expected.response, rtol=1e-4, atol=1e-4)
    events = list(base_wrapper.stream(ask("Why?"), GREEDY))
    assert "".join(event.text for event in events) == "A café."
    assert events[-1].finish == "stop"


# Given text


def test_scores_are_mean_log_probabilities(any_wrapper: ModelWrapper) -> None:
    pairs = [
        (conversation("Hi"), "Hello."),
        (conversation("What is bread?", "You are a pirate."), "A loaf, and another loaf, and a bun."),
        (conversation("Why?"), "No."),
    ]
    scored = any_wrapper.score(pairs)
    for (messages, response), score in zip(pairs, scored, strict=True):
        prompt = any_wrapper.tokenizer(any_wrapper.render(messages))["input_ids"]
        answer = any_wrapper.tokenizer(response)["input_ids"]
        with torch.no_grad():
            logprobs = any_wrapper.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        each = [logprobs[len(prompt) - 1 + at, token].item() for at, token in enumerate(answer)]
        assert score.n_tokens == len(answer)
        assert score.logprob == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_reading_is_the_same_in_any_batch(wrapper: ModelWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | list[dict[str, str]]] = ["a", "some longer text " * 4, conversation("Hi"), "b c"]
    together = wrapper.read(texts, [0, 2])
    monkeypatch.setattr("persona_tui.model.reader.token_budget", lambda model: 1)
    for one, other in zip(together, wrapper.read(texts, [0, 2]), strict=True):
        torch.testing.assert_close(one.response, other.response, rtol=1e-4, atol=1e-4)
        assert one.n_tokens == other.n_tokens and one.layers == (0, 2)


def test_per_row_interventions_follow_their_text_through_the_batching(
    wrapper: ModelWrapper, random_vector: Vectors
) -> None:
    texts = ["a much longer text than the other", "short"]
    deltas = random_vector(1, 2)
    plain = wrapper.read(texts, [1])
    moved = wrapper.read(texts, [1], Interventions({1: deltas}))
    for row in range(2):
        difference = moved[row].response[0] - plain[row].response[0]
        torch.testing.assert_close(difference, deltas[row], rtol=1e-3, atol=1e-3)


# The plan's methods, and errors


def test_the_plans_methods(wrapper: ModelWrapper, random_vector: Vectors) -> None:
    text, activations = wrapper.generate_with_activations("Hi", "Be kind.", sampling=GREEDY)
    assert set(activations) == {0, 1, 2} and activations[0].shape == (HIDDEN,)
    vector = random_vector(1)
    unsteered = wrapper.generate_with_steering("Hi", "Be kind.", vector, 0.0, [1], GREEDY)
    assert unsteered == text != wrapper.generate_with_steering("Hi", "Be kind.", vector, 5.0, [1], GREEDY)
    uncapped = wrapper.generate_with_capping("Hi", "Be kind.", vector / vector.norm(), -1e9, [2], GREEDY)
    assert uncapped == text


def test_a_long_prompt_is_refused_with_both_numbers(base_wrapper: ModelWrapper) -> None:
    with pytest.raises(GenerationError, match=r"31\d tokens.* 256"):
        base_wrapper.generate(ask("x" * 300), GREEDY)


def test_text_ends_where_the_context_does(
    base_wrapper: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_wrapper, "_end_tokens", frozenset())
    requests = [Request(conversation("x" * 230), seed=0), Request(conversation("y"), seed=1)]
    long, short = base_wrapper.generate(
        requests, Sampling(max_new_tokens=60, temperature=1.0), capture_layers=[0]
    )
    assert long.finish == "length" and long.prompt_tokens + len(long.token_ids) == 256
    assert long.activations is not None and long.activations.n_tokens == len(long.token_ids)
    assert short.finish == "length" and len(short.token_ids) == 60


@pytest.mark.parametrize(
    ("interventions", "message"),
    [
        (Interventions({7: torch.zeros(HIDDEN)}), r"Layer 7 does not exist.* 0 to 2"),
        (Interventions({1: torch.zeros(8)}), r"\[8\].* 32 wide"),
        (Interventions({1: torch.zeros(5, HIDDEN)}), r"5 vectors .* 1 row"),
    ],
)
def test_vectors_must_fit(wrapper: ModelWrapper, interventions: Interventions, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        wrapper.generate(ask("Hi"), GREEDY, interventions)


def test_bad_conversations_are_refused(wrapper: ModelWrapper) -> None:
    with pytest.raises(GenerationError, match="empty"):
        wrapper.render([])
    with pytest.raises(GenerationError, match="role"):
        wrapper.render([{"role": "robot", "content": "x"}])


def test_a_template_without_system_turn_gets_it_in_the_first_one() -> None:
    tokenizer = make_tokenizer()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusing + str(tokenizer.chat_template)
    wrapper = ModelWrapper(make_model(), tokenizer, "tiny")
    assert "user\nBe kind.\n\nHi" in wrapper.render(conversation("Hi", "Be kind."))


def test_the_fingerprint_survives_another_precision(wrapper: ModelWrapper) -> None:
    def fingerprint(seed: int, dtype: torch.dtype) -> str:
        model = make_model(seed=seed).to(torch.bfloat16).to(dtype)
        return ModelWrapper(model, make_tokenizer(), "tiny").fingerprint

    assert fingerprint(0, torch.float32) == fingerprint(0, torch.bfloat16)
    assert fingerprint(0, torch.float32) != fingerprint(1, torch.float32)
    assert same_model(fingerprint(0, torch.float32), fingerprint(0, torch.float16))
    assert not same_model(fingerprint(1, torch.float32), fingerprint(0, torch.float16))


def test_a_fine_tune_of_the_matrices_alone_is_another_model(wrapper: ModelWrapper) -> None:
    """Embeddings, norms and biases as they were, and a change that would survive rounding to bfloat16."""
    for name in ("q_proj", "down_proj"):
        tuned = make_model("qwen2-sliding")
        matrix = next(each for key, each in tuned.named_parameters() if name in key and each.dim() == 2)
        matrix.data *= 1.01
        found = ModelWrapper(tuned, make_tokenizer(), "tuned").fingerprint
        assert found != wrapper.fingerprint and not same_model(found, wrapper.fingerprint)
        assert found.partition(".")[0] == wrapper.fingerprint.partition(".")[0]


def test_a_vocabulary_beyond_the_whole_numbers_of_a_float() -> None:
    """Qwen2.5-7B's embeddings have 544,997,376 numbers; here they are all the same one, in no memory."""
    model = make_model("llama")
    vast = torch.zeros(1, dtype=torch.bfloat16).expand(152_064 * 3_584).view(152_064, 3_584)
    model.get_input_embeddings().weight = torch.nn.Parameter(vast, requires_grad=False)
    assert ModelWrapper(model, make_tokenizer(), "vast").fingerprint


def test_steering_in_bfloat16(random_vector: Vectors) -> None:
    wrapper = ModelWrapper(make_model().to(torch.bfloat16), make_tokenizer(), "tiny")
    axis = random_vector(1, unit=True)
    interventions = Interventions({1: random_vector(2)}, {1: Cap(axis, 3.0)})
    generation = wrapper.generate(ask("Hi"), GREEDY, interventions, capture_layers=[1])[0]
    assert generation.activations is not None
    assert float(generation.activations.prompt_last[0] @ axis) >= 3.0 - 0.1


def test_what_cannot_fit_is_refused_before_it_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelWrapper(make_model("qwen2", max_position_embeddings=256), make_tokenizer(), "tiny")
    rendered: list[int] = []
    plain = type(model.tokenizer).apply_chat_template

    def counted(self: object, messages: list[dict[str, str]], *args: object, **options: object) -> object:
        rendered.append(len(messages[0]["content"]))
        return plain(self, messages, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.tokenizer), "apply_chat_template", counted)
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    asked = [{"role": "user", "content": "x" * 3_000_000}]
    with pytest.raises(GenerationError, match="context holds 256"):
        model.encode(asked)
    assert model.count_tokens(asked) > 256
    assert max(rendered, default=0) < 3_000_000
    assert model.count_tokens([{"role": "user", "content": "x" * 100}]) >= 100
