"""A small random Llama, a workspace with vectors for it, and vLLM with the plugin, on a CPU.

These tests need vLLM, in an environment of its own: `make test-vllm`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip(
    "vllm", reason="vLLM is not installed here: `make test-vllm` makes an environment that has it"
)

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # in this process: errors are seen, and it starts in half the time
    HF_HUB_OFFLINE="1",
)

from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from persona_tui.core.workspace import Workspace
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import normalize
from persona_tui.vectors.persona import PersonaVector
from persona_tui.vllm.wire import MODEL, WORKSPACE
from tests.model.conftest import make_tokenizer

LAYERS, WIDTH = 4, 64
NAME = "random"
KEY = "secret"
ROOT = Path(__file__).parents[2]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_model(folder: Path, config: type[LlamaConfig | Qwen2Config], model: Any) -> Path:
    """Save a random model with a byte-level tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    made = config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=2,
    )
    model(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama."""
    return random_model(tmp_path_factory.mktemp("models") / NAME, LlamaConfig, LlamaForCausalLM)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two personas and axes for the random model."""
    root = tmp_path_factory.mktemp("workspaces") / "vllm"
    root.mkdir()
    (root / "config.yaml").write_text("steering: {capping_layers: [2, 3]}\n")
    manager = PersonaManager(root / "vectors" / NAME)
    layers = tuple(range(LAYERS))
    for seed, name in enumerate(("sage", "fool")):
        raw = 4 * drawn(LAYERS, WIDTH, seed=seed)
        stacks = {"mean": {"response": raw + 1}, "raw": {"response": raw}, "safe": {"response": raw}}
        manager.save(
            PersonaVector(name, layers, metadata={"kind": "persona", "target_layers": [1, 2]}, **stacks)
        )
    axis = normalize(drawn(LAYERS, WIDTH, seed=7))
    projections = {"safety": drawn(LAYERS, 50, seed=8).abs().sort(dim=1).values}
    manager.save_axes(Axes(layers, {"response": torch.ones(LAYERS, WIDTH)}, {"response": axis}, projections))
    return root


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "compiled"])
def llm(request: pytest.FixtureRequest, model_folder: Path, workspace: Path) -> Iterator[Any]:
    """vLLM with the plugin and the random model, in float32."""
    from vllm import LLM

    os.environ[WORKSPACE], os.environ[MODEL] = str(workspace), NAME
    yield LLM(
        model=str(model_folder),
        dtype="float32",
        enforce_eager=request.param,
        max_model_len=256,
        max_num_seqs=33,
        enable_prefix_caching=True,
        block_size=32,
    )
    for name in (WORKSPACE, MODEL):
        del os.environ[name]


@dataclass(frozen=True)
class Server:
    """`persona-tui --engine vllm serve --lend`, on its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Wait until it answers; a machine with other work takes minutes."""
        until = time.monotonic() + 500
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=30).read()
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"the server does not start:\n{self.log.read_text()[-6000:]}")


@pytest.fixture(scope="session")
def server(model_folder: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model_folder, workspace, tmp_path_factory.mktemp("serve") / "log") as found:
        yield found


@contextmanager
def serving(model_folder: Path, workspace: Path, log: Path, *more: str) -> Iterator[Server]:
    """Within, a server answers; `more` is for vLLM."""
    named = workspace / "vectors" / Workspace.find(workspace).slug(str(model_folder))
    shutil.copytree(workspace / "vectors" / NAME, named, dirs_exist_ok=True)
    options = ["--engine", "vllm", "--workspace", str(workspace), "--model", str(model_folder)]
    port = free_port()
    words = [
        "--port",
        str(port),
        "--rows",
        "16",
        "--lend",
        "--",
        "--enforce-eager",
        "--max-model-len=512",
        *more,
    ]
    variables = {**os.environ, "PERSONA_TUI_API_KEY": KEY, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as out:
        words = [sys.executable, "-m", "persona_tui", *options, "--dtype", "float32", "serve", *words]
        process = subprocess.Popen(
            words, cwd=ROOT, env=variables, stdout=out, stderr=out, start_new_session=True
        )
    found = Server(f"http://127.0.0.1:{port}", process, log)
    found.wait()
    yield found
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # its engine is a process of its own
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def running(request: pytest.FixtureRequest) -> Iterator[None]:
    """A server that has ended, and was not killed by a test, says why."""
    yield
    if "server" in request.fixturenames:
        served: Server = request.getfixturevalue("server")
        if served.process.poll() not in (None, -signal.SIGKILL):
            pytest.fail(f"the server has ended:\n{served.log.read_text()[-6000:]}")
