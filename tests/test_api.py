"""The public API: a transformers model of one's own, steered and measured without a workspace."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import persona_tui
from persona_tui.core.errors import GenerationError, ModelLoadError, VectorFileError
from persona_tui.model import ModelWrapper, Sampling, conversation
from persona_tui.model.architecture import find_blocks
from persona_tui.model.fingerprint import fingerprint, sketch
from persona_tui.model.sources import TINY_WEIGHTS
from persona_tui.vectors.persona import PersonaVector
from tests.model.conftest import make_model
from tools.api_page import PAGE, page

REPOSITORY = Path(__file__).parents[1]
VECTORS = REPOSITORY / "vectors" / "builtin"
QUESTIONS = ["What is bread?", "Hi", "How can I stay calm when everybody around me is in a hurry?"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The tiny model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(TINY_WEIGHTS, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY_WEIGHTS, padding_side="left")


@pytest.fixture(scope="module")
def sage() -> PersonaVector:
    found = persona_tui.load(VECTORS / "personas" / "sage.safetensors")
    assert isinstance(found, PersonaVector)
    return found


@pytest.fixture(autouse=True)
def no_hooks_are_left(model: PreTrainedModel) -> Iterator[None]:
    """What every test here shows besides."""
    yield
    assert not any(block._forward_hooks for block in find_blocks(model))


Write = Callable[..., list[str]]


@pytest.fixture
def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Write:
    """Answers by `generate` of transformers, greedy, all in one batch."""

    def write(*questions: str, use_cache: bool = True) -> list[str]:
        texts = [
            tokenizer.apply_chat_template(conversation(each), tokenize=False, add_generation_prompt=True)
            for each in questions
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False, use_cache=use_cache)
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return write


def test_every_name_is_there_and_importing_the_package_is_quick() -> None:
    assert {name: getattr(persona_tui, name) for name in persona_tui.__all__}
    assert persona_tui.PersonaVectorExtractor.__name__ == "PersonaVectorExtractor"
    with pytest.raises(AttributeError, match="no attribute 'Personas'"):
        persona_tui.Personas  # noqa: B018
    code = (
        "import persona_tui, sys; dir(persona_tui); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_it_steers_as_the_engine_does(model: PreTrainedModel, sage: PersonaVector, write: Write) -> None:
    plain = write(QUESTIONS[0])
    with persona_tui.apply(sage, model, strength=0.5):
        steered = write(QUESTIONS[0])
    assert write(QUESTIONS[0]) == plain != steered
    wrapper = ModelWrapper.load("tiny", device="cpu")
    vectors = {layer: 0.5 * each for layer, each in sage.direction().items()}
    expected = wrapper.generate_with_steering(
        QUESTIONS[0], None, vectors, 1.0, list(vectors), Sampling(max_new_tokens=16, temperature=0)
    )
    assert steered[0].strip() == expected


def test_batches_and_the_cache_change_nothing(
    model: PreTrainedModel, sage: PersonaVector, write: Write
) -> None:
    with persona_tui.apply(sage, model, strength=0.4):
        together = write(*QUESTIONS)
        assert together == [write(question)[0] for question in QUESTIONS]
        assert together == write(*QUESTIONS, use_cache=False)


def test_blocks_are_nested_and_add_up(model: PreTrainedModel, sage: PersonaVector, write: Write) -> None:
    plain = write(QUESTIONS[0])
    with persona_tui.apply(sage, model, strength=0.5):
        steered = write(QUESTIONS[0])
        with persona_tui.apply(sage, model, strength=-0.5):
            assert write(QUESTIONS[0]) == plain
        assert write(QUESTIONS[0]) == steered
    with persona_tui.apply(sage, model, strength=0):
        assert write(QUESTIONS[0]) == plain


def test_an_exception_and_an_abandoned_generator_leave_no_hook(
    model: PreTrainedModel, sage: PersonaVector, write: Write
) -> None:
    plain = write(QUESTIONS[0])
    with pytest.raises(KeyError), persona_tui.apply(sage, model):
        raise KeyError("somebody's own mistake")

    def answers() -> Iterator[str]:
        with persona_tui.apply(sage, model, strength=0.5):
            for question in QUESTIONS:
                yield write(question)[0]

    stream = answers()
    assert next(stream) != plain[0]
    stream.close()
    assert write(QUESTIONS[0]) == plain


def test_a_near_copy_is_steered_with_a_warning_and_another_model_is_refused(
    model: PreTrainedModel, sage: PersonaVector
) -> None:
    own = {"model_fingerprint": fingerprint(model), **sketch(model).record()}
    known = replace(sage, metadata={**sage.metadata, **own})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with persona_tui.apply(known, model):
            pass
    copy, other = deepcopy(model), deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in copy.parameters():
        weight.data *= 1 + 0.02 * torch.randn(weight.shape, generator=generator)
    with (
        pytest.warns(UserWarning, match=r"is a near copy \(its weights differ by 2"),
        persona_tui.apply(known, copy),
    ):
        pass
    for weight in other.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    with (
        pytest.raises(VectorFileError, match="the same shape, but other weights"),
        persona_tui.apply(known, other),
    ):
        pytest.fail("it must not come here")


def test_gradients_pass(model: PreTrainedModel, sage: PersonaVector) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with persona_tui.apply(sage, model):
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    assert embedded.grad is not None and bool(embedded.grad.abs().sum() > 0)


def test_what_does_not_fit_is_refused_and_what_is_another_model_is_said(sage: PersonaVector) -> None:
    small = make_model("llama")
    said = r"this model is 32 wide and has layers 0 to 2\."
    with pytest.raises(VectorFileError, match=said) as caught, persona_tui.apply(sage, small):
        pytest.fail("it must not come here")
    assert '"sage" was made on builtin' in str(caught.value)
    shape = {
        "hidden_size": sage.hidden_size,
        "intermediate_size": 16,
        "num_hidden_layers": sage.layers[-1] + 1,
    }
    other = make_model("llama", **shape)
    with pytest.warns(UserWarning, match="whose weights differ") as warned, persona_tui.apply(sage, other):
        pass
    assert warned[0].filename == __file__
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        other.config.is_encoder_decoder = True
        with persona_tui.apply(sage, other):
            pass
    with pytest.raises(VectorFileError, match="has no vector at layer 0"):
        model = AutoModelForCausalLM.from_pretrained(TINY_WEIGHTS)
        with persona_tui.apply(sage, model, layers=[0]):
            pass


def test_loading_what_is_no_vector_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind, and long enough to have a header")
    for name in ("x.safetensors", "missing.safetensors"):
        with pytest.raises(VectorFileError, match=name):
            persona_tui.load(str(tmp_path / name))


def test_a_reply_is_measured_and_a_trait_steers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sage: PersonaVector, write: Write
) -> None:
    trait = persona_tui.load(VECTORS / "traits" / "empathetic_responsiveness.safetensors")
    assert isinstance(trait, persona_tui.TraitVector)
    question = "My cat died yesterday."
    warm = persona_tui.score(
        trait, model, tokenizer, "I am so sorry. You loved her dearly.", question=question
    )
    cold = persona_tui.score(trait, model, tokenizer, "Cats die. Buy another one.", question=question)
    assert warm > cold
    model.train()
    again = persona_tui.score(
        trait, model, tokenizer, "I am so sorry. You loved her dearly.", question=question
    )
    assert again == warm and model.training
    model.eval()
    with persona_tui.apply(trait, model, strength=0.5):
        assert (
            persona_tui.score(trait, model, tokenizer, "Cats die. Buy another one.", question=question) > cold
        )
        assert write(question)
    with pytest.raises(VectorFileError, match='"sage" is a persona'):
        persona_tui.score(sage, model, tokenizer, "Hello")
    with pytest.raises(GenerationError):
        persona_tui.score(trait, model, tokenizer, "")


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.api_page"


@pytest.mark.parametrize("name", persona_tui.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(persona_tui, name)
    assert inspect.getdoc(value) and f"## {name}" in page()


@pytest.mark.slow
def test_the_readmes_examples_run() -> None:
    """As they stand there, where the repository is the present folder."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text.partition("## From Python")[2], re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        assert len([line for line in code.splitlines() if line.strip()]) <= 8
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()
