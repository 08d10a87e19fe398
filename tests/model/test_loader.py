"""Loading from disk, and the one line that each way to fail gives."""

from __future__ import annotations

import json
import socketserver
import threading
from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from persona_tui.core.errors import ModelLoadError
from persona_tui.model import ModelWrapper, Request, Sampling, conversation, loader, sources
from persona_tui.model.architecture import find_blocks

from .conftest import make_model, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model folder whose weights lie in several files."""
    path = tmp_path / "model"
    make_model("llama").save_pretrained(path, max_shard_size="30KB")
    make_tokenizer().save_pretrained(path)
    return path


def reason(name: str | Path, **arguments: str) -> str:
    """The line that a failing load gives."""
    with pytest.raises(ModelLoadError) as caught:
        ModelWrapper.load(str(name), **{"device": "cpu", **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_loads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrapper = ModelWrapper.load(str(folder), device="cpu")
    assert wrapper.device.type == "cpu" and next(wrapper.model.parameters()).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in wrapper.model.parameters())
    original = ModelWrapper(make_model("llama"), make_tokenizer(), "x")
    request = [Request(conversation("Hi"))]
    greedy = Sampling(max_new_tokens=8, temperature=0)
    assert wrapper.generate(request, greedy) == original.generate(request, greedy)
    assert wrapper.fingerprint == original.fingerprint
    written = capfd.readouterr()
    assert written.out == written.err == ""


def test_dtype(folder: Path) -> None:
    wrapper = ModelWrapper.load(str(folder), device="cpu", dtype="bfloat16")
    assert next(wrapper.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tiny", "builtin"])
def test_tiny_is_the_packaged_folder(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "TINY_WEIGHTS", folder)
    wrapper = ModelWrapper.load(name, device="cpu")
    assert (wrapper.name, wrapper.slug, wrapper.source) == (name, "builtin", "tiny")
    monkeypatch.setattr(sources, "TINY_WEIGHTS", tmp_path / "nowhere")
    assert "tiny model's files are missing" in reason(name)


def test_wrong_paths(tmp_path: Path) -> None:
    assert reason(tmp_path / "nothing") == f"There is no model folder {tmp_path / 'nothing'}."
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in reason(tmp_path / "empty")


def test_missing_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert "has no weights" in reason(folder)


def test_a_missing_shard(folder: Path) -> None:
    next(folder.glob("model-00002*")).unlink()
    assert "is incomplete" in reason(folder) and "model-00002" in reason(folder)


def test_a_shard_that_lacks_tensors(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    kept = next(iter(set(content["weight_map"].values())))
    content["weight_map"] = {key: file for key, file in content["weight_map"].items() if file == kept}
    index.write_text(json.dumps(content))
    assert "incomplete" in reason(folder)


def test_a_damaged_file(folder: Path) -> None:
    next(folder.glob("model-00002*")).write_bytes(b"not tensors")
    assert str(folder) in reason(folder)


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in reason(folder)


def test_another_kind_of_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "a-new-one"}))
    assert "not a causal language model" in reason(folder)


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in reason("some-organisation/some-model")


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    class Mute(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.request.recv(4096).decode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mute) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}"
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        try:
            said = reason("some-organisation/some-model")
        finally:
            server.shutdown()
    assert said == "some-organisation/some-model is not on this machine and huggingface.co cannot be reached."
    assert len(asked) == 1 and "some-organisation/some-model" in asked[0]


def test_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(loader.AutoModelForCausalLM, "from_pretrained", fail)
    assert "does not fit into memory" in reason(folder)


def test_wrong_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'Did you mean "cuda"' in reason(folder, device="cudaa")
    assert 'Did you mean "bfloat16"' in reason(folder, dtype="bfloat")
    assert 'Did you mean "8bit"' in reason(folder, quantization="8bits")
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    assert "pip install bitsandbytes" in reason(folder, quantization="4bit")


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=20, d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4)
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        find_blocks(T5ForConditionalGeneration(config))


def test_the_text_part_of_a_multimodal_model_is_found() -> None:
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 260,
        "sliding_window": 24,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8})
    wrapper = ModelWrapper(Gemma3ForConditionalGeneration(config), make_tokenizer(), "tiny")
    assert (wrapper.n_layers, wrapper.hidden_size) == (3, 32)
    assert "vision" not in type(find_blocks(wrapper.model)[0]).__name__.lower()
    requests = [Request(conversation("Hi")), Request(conversation("Tell me more"))]
    generations = wrapper.generate(requests, Sampling(max_new_tokens=5, temperature=0), capture_layers=[1])
    assert generations[1].activations is not None
    read = wrapper.read([conversation("Hi"), conversation("Tell me more")], [1])
    torch.testing.assert_close(
        generations[1].activations.prompt_last, read[1].prompt_last, rtol=1e-3, atol=1e-3
    )


def test_gated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(loader.AutoTokenizer, "from_pretrained", fail)
    assert "is gated: accept its terms" in reason(folder)
