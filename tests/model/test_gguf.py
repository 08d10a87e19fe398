"""GGUF files and Ollama's models: the numbers, tokens and template of the model that they hold."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from persona_tui.core.errors import JobCancelled, ModelLoadError
from persona_tui.model import ModelWrapper, conversation, sources
from persona_tui.model.catalogue import described, models, remove
from persona_tui.model.estimate import look_at
from persona_tui.model.gguf import unpack
from persona_tui.model.progress import fetch
from persona_tui.model.sources import resolve

from .conftest import make_model, make_tokenizer
from .gguf_files import put_in_ollama, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.1, 1.5],
    "long_factor": [1.1, 6.0],
    "attention_factor": 1.2,
    "original_max_position_embeddings": 200,
}
# What people have: each family as it is, and with the rotary positions of its longer versions.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"head_dim": 8}),
    "llama untied": ("llama", {"head_dim": 8, "tie_word_embeddings": False}),
    "llama 3": ("llama", {"head_dim": 8, "rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen2 with yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "gemma 3": (
        "gemma3_text",
        {"query_pre_attn_scalar": 8, "num_hidden_layers": 6, "sliding_window_pattern": 6},
    ),
    "phi 3": ("phi3", {}),
    "phi 3, long": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 200}),
}
TEXT = "Why is the sky blue, and why are sunsets red? Nobody here could say for certain." * 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches."""
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small Llama."""
    return write_gguf(tmp_path / "small.gguf", make_model("llama", head_dim=8), make_tokenizer())


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([make_tokenizer()(TEXT)["input_ids"]])
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[name]
    original, tokenizer = make_model(family, **changes), make_tokenizer()
    path = write_gguf(tmp_path / "model.gguf", original, tokenizer)
    wrapper = ModelWrapper.load(str(path), device="cpu")
    torch.testing.assert_close(logits(wrapper.model), logits(original), rtol=0, atol=1e-4)
    messages = conversation("Why is the sky blue?", "Be brief.")
    assert wrapper.render(messages) == ModelWrapper(original, tokenizer, "x").render(messages)
    assert wrapper.tokenizer.eos_token_id == tokenizer.eos_token_id
    assert len(wrapper.tokenizer) == original.config.vocab_size, "no token without an embedding"
    ids = wrapper.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert wrapper.tokenizer.decode(ids) == TEXT and wrapper.tokenizer("<|im_end|>")["input_ids"][-1:] == [2]
    if family not in ("gemma3_text", "phi3"):
        assert ids == tokenizer(TEXT)["input_ids"]


def test_a_quantised_file_is_unpacked_once(file: Path, tmp_path: Path, cache: Path) -> None:
    original = make_model("llama", head_dim=8, intermediate_size=64)
    path = write_gguf(tmp_path / "q8.gguf", original, make_tokenizer(), quantise=True)
    first = ModelWrapper.load(str(path), device="cpu")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.source == f"gguf q8.gguf sha256:{digest}"
    folder = resolve(str(path)).folder
    assert folder == cache / f"q8-{digest[:12]}" and described(str(path))["dtype"] == "bfloat16"
    assert (logits(first.model) - logits(original)).std() < 0.1 * logits(original).std()
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    moved = tmp_path / "elsewhere" / "renamed.gguf"
    moved.parent.mkdir()
    path.rename(moved)
    again = ModelWrapper.load(str(moved.parent), device="cpu")  # a folder with one such file
    assert again.fingerprint == first.fingerprint and weights.stat().st_mtime_ns == written
    assert [each.name for each in cache.iterdir()] == [folder.name]


def test_it_is_listed_described_and_removed(file: Path, cache: Path) -> None:
    assert look_at(str(file)).layers == 3 and not cache.exists(), "looking unpacks nothing"
    assert described(str(file))["unpacked"] is False
    fetch(str(file), lambda done, total, note: None)
    assert str(file) in [source.name for source in models()]
    assert described(str(file))["path"] == str(remove(str(file)))
    assert file.is_file() and not list(cache.iterdir())


def test_cancelling_leaves_nothing(file: Path, cache: Path) -> None:
    def cancel(done: int, total: int, note: str) -> None:
        if done > 3:
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        unpack(resolve(str(file)), cancel)
    assert not list(cache.iterdir())


def test_what_a_killed_process_left_is_swept_away(file: Path, cache: Path) -> None:
    left = cache / ".small-0123456789ab.999999999.tmp"
    left.mkdir(parents=True)
    ModelWrapper.load(str(file), device="cpu")
    assert not left.exists()


def refusal(name: str | Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        ModelWrapper.load(str(name), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_be_used_get_one_line(file: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is no model.")
    assert "text.gguf is not a GGUF file" in refusal(tmp_path / "text.gguf")
    (tmp_path / "short.gguf").write_bytes(file.read_bytes()[:20_000])
    assert "short.gguf" in refusal(tmp_path / "short.gguf")
    other = file.read_bytes().replace(b"llama", b"zebra")
    (tmp_path / "zebra.gguf").write_bytes(other)
    assert "zebra.gguf cannot be used: transformers cannot read GGUF files of its architecture" in refusal(
        tmp_path / "zebra.gguf"
    )
    shutil.copy(file, tmp_path / "big-00001-of-00002.gguf")
    assert "join the parts" in refusal(tmp_path / "big-00001-of-00002.gguf")
    assert "GGUF files: name one of them" in refusal(tmp_path)
    assert "There is no GGUF file" in refusal("missing.gguf")
    assert not cache.exists() or not list(cache.iterdir())


# Ollama -----------------------------------------------------------------------------------------------------


def test_ollamas_models_load_without_its_server(file: Path, tmp_path: Path) -> None:
    blob = put_in_ollama(file, tmp_path / "ollama", "small", "1b")
    put_in_ollama(file, tmp_path / "ollama", "mine", user="somebody")
    listed = [source.name for source in models() if source.kind == "ollama"]
    assert listed == ["ollama:small:1b", "ollama:somebody/mine:latest"]
    wrapper = ModelWrapper.load("ollama:small:1b", device="cpu")
    original = make_model("llama", head_dim=8)
    torch.testing.assert_close(logits(wrapper.model), logits(original), rtol=0, atol=1e-4)
    digest = blob.name.removeprefix("sha256-")
    assert wrapper.source == f"ollama small:1b sha256:{digest}" and wrapper.slug == "ollama--small--1b"
    # The same blob under another name is the same unpacked folder.
    assert resolve("ollama:somebody/mine").folder == resolve("ollama:small:1b").folder is not None


def test_what_ollama_lacks_gets_one_line(file: Path, tmp_path: Path) -> None:
    assert "`ollama pull llama9` downloads it" in refusal("ollama:llama9")
    blob = put_in_ollama(file, tmp_path / "ollama", "small", "1b")
    assert 'Did you mean "small:1b"?' in refusal("ollama:smal:1b") and "it has small:1b" in refusal(
        "ollama:x"
    )
    blob.unlink()
    assert "is incomplete" in refusal("ollama:small:1b")
    manifest = tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "small" / "1b"
    manifest.write_text("{}")
    assert "cannot be read" in refusal("ollama:small:1b")
