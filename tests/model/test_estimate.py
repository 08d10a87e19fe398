"""What is said of a model before it is loaded: what it is, what it takes, what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from persona_tui.core.errors import JobCancelled, ModelLoadError
from persona_tui.model import ModelWrapper
from persona_tui.model.estimate import count_in_words, in_words, look_at, memory
from persona_tui.model.files import cached_folder, cached_models, check_folder
from persona_tui.model.progress import fetch, watched

from .conftest import make_model, make_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("qwen2").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that has the model as `somebody/tiny`."""
    root = tmp_path / "hub"
    snapshot = root / "models--somebody--tiny" / "snapshots" / "abc"
    shutil.copytree(saved, snapshot)
    (root / "models--somebody--tiny" / "refs").mkdir()
    (root / "models--somebody--tiny" / "refs" / "main").write_text("abc")
    (root / "models--somebody--half" / "refs").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return snapshot


def test_numbers_are_counted_in_the_files(folder: Path) -> None:
    model = ModelWrapper.load(str(folder)).model
    facts = look_at(str(folder))
    assert facts.exact and facts.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert (facts.layers, facts.hidden) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert memory(facts, "cpu", "float32").weights == 4 * facts.parameters
    assert memory(facts, "cpu", "bfloat16").weights == 2 * facts.parameters


def test_the_built_in_model_fits() -> None:
    facts = look_at("builtin")
    needed = memory(facts, "cpu")
    assert facts.on_disk is not None and facts.layers == 8
    assert needed.total < 200e6 and needed.fits in (True, None)
    assert needed.tokens == facts.context == 4096


def test_a_config_is_enough_for_an_estimate(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    facts = look_at(str(folder))
    assert not facts.exact
    assert facts.parameters == pytest.approx(8.03e9, rel=0.01)
    assert memory(facts, "cpu", "bfloat16").cache == 2 * 32 * 8 * 128 * 4096 * 2
    assert memory(facts, "cpu", "bfloat16", "8bit").weights == pytest.approx(9.1e9, rel=0.02)
    assert memory(facts, "cpu", "bfloat16", "4bit").weights == pytest.approx(5.7e9, rel=0.02)
    assert memory(facts, "cpu", "float32").fits is not True or memory(facts).available is not None


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a model's config"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (
            lambda folder: (folder / "config.json").write_text('{"is_encoder_decoder": true}'),
            "encoder-decoder",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
            ),
            "one.safetensors and 1 more is missing",
        ),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(folder: Path, spoil: object, problem: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ModelLoadError, match=problem):
        look_at(str(folder))


def test_weights_that_are_cut_short_are_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cut short"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["", "./nowhere", "/nowhere/at/all"])
def test_what_is_no_model_is_named(name: str) -> None:
    with pytest.raises(ModelLoadError):
        look_at(name)


def test_models_in_the_hubs_cache_are_known(cache: Path) -> None:
    assert list(cached_models()) == ["somebody/tiny"]
    assert cached_folder("somebody/half") is None
    assert look_at("somebody/tiny").on_disk == cache
    seen: list[str] = []
    fetch("somebody/tiny", lambda done, total, note: seen.append(note))
    assert seen == [], "nothing is looked for elsewhere"


def test_loading_is_watched_and_can_be_given_up(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    with watched(lambda done, total, note: seen.append((done, total))):
        ModelWrapper.load(str(folder))
    assert seen and seen[-1][0] == seen[-1][1] > 10

    def give_up(done: int, total: int, note: str) -> None:
        raise JobCancelled("cancelled")

    with watched(give_up), pytest.raises(JobCancelled):
        ModelWrapper.load(str(folder))
    ModelWrapper.load(str(folder))


def test_numbers_are_written_for_people() -> None:
    assert (in_words(999), in_words(1_234_567), in_words(2.1e12)) == ("999 B", "1.23 MB", "2.1 TB")
    assert (count_in_words(7_600_000), count_in_words(8.03e9), count_in_words(12)) == (
        "7.6 M",
        "8.03 B",
        "12",
    )
