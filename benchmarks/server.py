"""What serving costs, and what batching gains.

    python benchmarks/server.py [--model starter] [--clients 32] [--tokens 48] [--rounds 3] [--threads 2]

A server runs in a process of its own. Vectors and axes are random directions as long as those of real
personas: what is said does not matter here. Printed are

1. tokens per second of one client and of many, who take turns, and the ratio;
2. the time to the first token of many clients who come at once (median, and the 95th percentile);
3. the time of the same requests with steering, capping and tracing over that without, as many rows at a
   time; the two take turns, so that other load of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import torch
from measuring import machine

from persona_tui.core.config import Settings, capture_layers
from persona_tui.core.workspace import Workspace
from persona_tui.model import ModelWrapper, conversation
from persona_tui.project.project import Project
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPES
from persona_tui.vectors.maths import normalize
from persona_tui.vectors.persona import PersonaVector

ASKED = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
STEERED = {"persona": "anybody", "strength": 0.3, "capping": True, "plausibility": 0}
PLAIN = {"strength": 0, "capping": False, "plausibility": 0, "trace": []}


def make_workspace(root: Path, model: str) -> None:
    """A persona and axes of random directions for a model."""
    (root / "config.yaml").write_text(f"model: {{name: {model}, dtype: float32}}\n", encoding="utf-8")
    project = Project(Workspace(root), Workspace(root).settings)
    wrapper: ModelWrapper = project.model
    layers = tuple(capture_layers(Settings(), wrapper.n_layers))
    ordinary = wrapper.read([conversation("Who are you?")], layers)[0].response
    noise = torch.Generator().manual_seed(0)

    def direction() -> torch.Tensor:
        unit = normalize(torch.randn(len(layers), wrapper.hidden_size, generator=noise))
        return 0.2 * unit * ordinary.norm(dim=-1, keepdim=True)

    safety, assistant, raw = normalize(direction()), normalize(direction()), direction()
    samples = torch.stack([ordinary + direction() for _ in range(100)])
    projections = {
        name: torch.einsum("nlh,lh->ln", samples, axis).sort(dim=1).values
        for name, axis in (("safety", safety), ("assistant", assistant))
    }
    metadata = {"model_fingerprint": wrapper.fingerprint, "default_capping_axis": "assistant"}
    project.personas.save_axes(
        Axes(
            layers,
            baseline=dict.fromkeys(RECIPES, ordinary),
            safety=dict.fromkeys(RECIPES, safety),
            assistant=dict.fromkeys(RECIPES, assistant),
            projections=projections,
            metadata=metadata,
        )
    )
    means, vectors = dict.fromkeys(RECIPES, ordinary + raw), dict.fromkeys(RECIPES, raw)
    project.personas.save(
        PersonaVector("anybody", layers, mean=means, raw=vectors, safe=vectors, metadata=metadata)
    )


@contextmanager
def served(root: Path, rows: int, threads: int) -> Iterator[str]:
    """A server on a workspace; its address."""
    command = [sys.executable, "-m", "persona_tui", "--workspace", str(root), "serve", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--rows", str(rows)], stderr=log, env=environment)
        try:
            yield _address(process, log.fileno())
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: int) -> str:
    while process.poll() is None:
        said = os.pread(log, 10_000, 0).decode()
        if " at http" in said:
            return said.split(" at ")[1].split(". ")[0]
        time.sleep(0.2)
    raise SystemExit(os.pread(log, 10_000, 0).decode())


async def ask(client: httpx.AsyncClient, voice: dict[str, object], tokens: int) -> tuple[float, int]:
    """One streamed request: the time to its first token, and how many tokens came."""
    body = {
        "model": MODEL[0],
        "messages": ASKED,
        "temperature": 1,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "persona_tui": voice,
    }
    started, first, count = time.monotonic(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            first = first or (
                time.monotonic() - started if '"content":"' in line and '"content":""' not in line else 0.0
            )
            if '"completion_tokens":' in line:
                count = int(line.split('"completion_tokens":')[1].split(",")[0].rstrip("}"))
    return first, count


MODEL = [""]


async def round_of(
    url: str, clients: int, voice: dict[str, object], tokens: int
) -> tuple[float, list[float]]:
    """Clients who come at once: tokens per second of all, and the times to their first tokens."""
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        started = time.monotonic()
        found = await asyncio.gather(*(ask(client, voice, tokens) for _ in range(clients)))
    seconds = time.monotonic() - started
    return sum(count for _, count in found) / seconds, [first for first, _ in found]


async def measure(url: str, clients: int, tokens: int, rounds: int) -> None:
    """Print all figures."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        MODEL[0] = (await client.get("/v1/models")).json()["data"][0]["id"]
    await round_of(url, clients, STEERED, 8)
    one, many, firsts, on_over_off = [], [], [], []
    for _ in range(rounds):
        one.append((await round_of(url, 1, STEERED, tokens))[0])
        on, first = await round_of(url, clients, STEERED, tokens)
        off, _ = await round_of(url, clients, PLAIN, tokens)
        many.append(on)
        firsts += first
        on_over_off.append(off / on)
    ratios = [rest / single for rest, single in zip(many, one, strict=True)]
    firsts.sort()
    print(f"one client: {median(one):.1f} tokens/s; {clients} clients: {median(many):.1f} tokens/s")
    print(f"ratio: {_listed(ratios)}")
    late = firsts[int(0.95 * len(firsts))]
    print(f"time to first token of {clients}: median {median(firsts):.2f} s, p95 {late:.2f} s")
    print(f"steering, capping and tracing on over off, {clients} rows: {_listed(on_over_off)}")


def _listed(values: list[float]) -> str:
    return f"{median(values):.3f} (rounds: {', '.join(f'{each:.3f}' for each in values)})"


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        make_workspace(Path(folder), options.model)
        with served(Path(folder), options.clients, options.threads) as url:
            asyncio.run(measure(url, options.clients, options.tokens, options.rounds))


if __name__ == "__main__":
    main()
