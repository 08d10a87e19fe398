"""A model is tried once: what would be wrong later is refused when it is loaded, in one line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from persona_tui.core.errors import GenerationError, ModelLoadError
from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.model.trial import try_model

from .architectures import REFUSED, small_model
from .conftest import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is remembered of models; its file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "persona-tui" / "models.json"


def saved(path: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def small(kind: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 3, **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)


def reason(name: str, **arguments: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        ModelWrapper.load(name, **{"device": "cpu", **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_model_is_tried_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved(tmp_path / "llama", make_model("llama"))
    passes = []
    forward = type(make_model("llama")).forward

    def counted(self: PreTrainedModel, *args: object, **kwargs: object) -> object:
        passes.append(kwargs["input_ids"].shape)  # type: ignore[attr-defined]
        return forward(self, *args, **kwargs)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(make_model("llama")), "forward", counted)
    ModelWrapper.load(name, device="cpu")
    assert sum(rows * tokens for rows, tokens in passes) <= 96 and len(passes) == 5
    ModelWrapper.load(name, device="cpu")
    assert len(passes) == 5 and len(json.loads(cache.read_text())) == 1
    ModelWrapper.load(name, device="cpu", dtype="bfloat16")
    assert len(passes) == 10


def test_what_is_remembered_may_be_damaged(tmp_path: Path, cache: Path) -> None:
    name = saved(tmp_path / "llama", make_model("llama"))
    cache.parent.mkdir(parents=True)
    cache.write_text('{"x": ["no trial"]')
    ModelWrapper.load(name, device="cpu")
    assert len(json.loads(cache.read_text())) == 1


def test_steps_that_differ_with_a_cache_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path / "mamba", small("mamba", state_size=8))
    said = reason(name)
    assert "cannot be used: with a cache its output differs" in said
    assert reason(name) == said  # remembered


def test_a_cache_of_its_own_is_used(tmp_path: Path) -> None:
    """MiniMax keeps a state of its own: what it writes is what passes without a cache would choose."""
    model = small(
        "minimax",
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        initializer_range=0.3,
    )
    wrapper = ModelWrapper.load(saved(tmp_path / "minimax", model), device="cpu")
    assert wrapper.own_cache
    requests = [Request(conversation(asked)) for asked in ("Hi", "Tell me all about the sea and the wind.")]
    for row, written in enumerate(wrapper.generate(requests, Sampling(6, temperature=0))):
        ids = wrapper.encode(requests[row].messages)
        for token in written.token_ids:
            with torch.no_grad():
                logits = wrapper.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)
    guided = Interventions(plausibility=1.0)  # a twin from the start; later it cannot be taken in
    assert [each.nats for each in wrapper.stream(requests[:1], Sampling(3), guided)] == pytest.approx(
        [0] * 3, abs=1e-4
    )
    later = iter([Interventions.none(), guided])
    with pytest.raises(GenerationError, match="guide cannot begin in the middle of a reply"):
        list(wrapper.stream(requests[:1], Sampling(3), lambda: next(later)))
    with pytest.raises(GenerationError, match="cannot be compiled"):
        wrapper.compile()


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    name = saved(tmp_path / "loud", model)
    assert "its logits are not finite in float16: try --dtype bfloat16" in reason(name, dtype="float16")
    ModelWrapper.load(name, device="cpu")


def test_a_tokenizer_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    name = saved(tmp_path / "few", make_model("llama", vocab_size=100))
    assert "its tokenizer has the token 25" in reason(name) and "its embedding only 100 rows" in reason(name)


def test_a_template_that_refuses_everything_is_refused(tmp_path: Path) -> None:
    name = saved(tmp_path / "model", make_model("llama"))
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert "chat template refuses this conversation: no" in reason(name)


@pytest.mark.stress
@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_work_is_refused(kind: str) -> None:
    try:
        trial = try_model(small_model(kind), make_tokenizer())
    except ModelLoadError as error:  # no blocks to work on
        assert "decoder blocks" in str(error)
    else:
        assert trial.reason


# While it writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_overflow_is_one_clear_line(wrapper: ModelWrapper, temperature: float) -> None:
    steering = Interventions(steering={1: torch.full((32,), 3e38)})
    with pytest.raises(GenerationError, match=r"^The model's numbers overflowed: lower the strength"):
        wrapper.generate([Request(conversation("Hi"))], Sampling(4, temperature=temperature), steering)


def test_the_smallest_temperature_is_greedy(wrapper: ModelWrapper) -> None:
    asked = [Request(conversation("Hi"), seed=1)]
    cold = wrapper.generate(asked, Sampling(8, temperature=1e-46))
    assert cold == wrapper.generate(asked, Sampling(8, temperature=0))


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0, 101.0])
def test_temperatures_out_of_range(temperature: float) -> None:
    with pytest.raises(GenerationError, match=r"must be a number from 0 .* to 100"):
        Sampling(temperature=temperature)
