"""What the benchmarks of speed and memory share: taking turns, medians, models of any shape, tables.

Nothing here loads torch before it needs it: a process that only starts others should not weigh anything.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from persona_tui.project.project import Project

REPOSITORY = Path(__file__).resolve().parent.parent
BUILTIN = "builtin"

# Hidden size, MLP, blocks, heads, key-value heads; vocabulary; tied embeddings: as in the models' configs.
_QWEN = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
SHAPES: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "tiny": ((64, 128, 4, 4, 2), 4096, True),
    "deep": ((256, 704, 24, 4, 4), 4096, True),
    "0.5b-8": ((896, 4864, 8, 14, 2), 151936, True),
    "0.5b": ((896, 4864, 24, 14, 2), 151936, True),
    "7b": ((3584, 18944, 28, 28, 4), 152064, False),
}
SIZE_NAMES = {
    BUILTIN: "tiny model",
    "tiny": "tiny random model",
    "deep": "random model of the built-in one's width, 24 layers",
    "0.5b-8": "Qwen2.5-0.5B's shape, 8 layers",
    "0.5b": "Qwen2.5-0.5B's shape, 24 layers",
    "7b": "Qwen2.5-7B's shape",
}


# Time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Seconds per unit of work: on the clock, and of all processor cores together."""

    wall: float
    cpu: float


def timed(work: Callable[[], float]) -> Cost:
    """Run once; `work` returns how many units it did."""
    wall, cpu = time.perf_counter(), time.process_time()
    units = work()
    synchronize()
    return Cost((time.perf_counter() - wall) / units, (time.process_time() - cpu) / units)


def take_turns(sides: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[Cost]]:
    """Run all sides `repetitions` times, one after the other; each has to have run once before, to warm up.

    The order changes from round to round, so that what else the machine does falls on all sides alike.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for turn in range(repetitions):
        for name in rotated(list(sides), turn):
            costs[name].append(timed(sides[name]))
    return costs


def in_step(sides: Mapping[str, Callable[[], Iterator[object]]], repetitions: int) -> dict[str, Cost]:
    """Run several iterators side by side, a step of each at a time: for differences of a few per cent.

    Returns:
        What each side costs from beginning to end: the sum over its steps of their medians over the
        repetitions.
    """
    runs: dict[str, list[list[Cost]]] = {name: [] for name in sides}
    for turn in range(repetitions + 1):
        for name, steps in _one_run_in_step(sides, turn).items():
            runs[name] += [steps] if turn else []  # the first run is to warm up
    return {name: _total([middle(step) for step in zip(*each, strict=True)]) for name, each in runs.items()}


def _one_run_in_step(sides: Mapping[str, Callable[[], Iterator[object]]], turn: int) -> dict[str, list[Cost]]:
    running = {name: begin() for name, begin in sides.items()}
    steps: dict[str, list[Cost]] = {name: [] for name in sides}
    while running:
        for name in rotated(list(running), turn):
            cost, ended = _one_step(running[name])
            steps[name].append(cost)  # also what it does after its last step
            if ended:
                del running[name]
        turn += 1
    return steps


def _one_step(iterator: Iterator[object]) -> tuple[Cost, bool]:
    end = object()
    found: list[object] = []

    def advance() -> float:
        found.append(next(iterator, end))
        return 1

    return timed(advance), found[0] is end


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(each.wall for each in costs), sum(each.cpu for each in costs))


def rotated(names: list[str], turn: int) -> list[str]:
    """The names, beginning with another one each turn."""
    start = turn % len(names)
    return names[start:] + names[:start]


def middle(costs: Sequence[Cost]) -> Cost:
    """Both medians."""
    return Cost(median(each.wall for each in costs), median(each.cpu for each in costs))


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


# Memory -----------------------------------------------------------------------------------------------------


def peak_memory() -> float:
    """The most memory that this process has had at once, in MiB: on a GPU if it used one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` would also count what the parent process had when it started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Look for the most memory anew, where that is possible: loading a model has a peak of its own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# Models -----------------------------------------------------------------------------------------------------


def make_model(
    size: str, device: str = "cpu", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model, or random weights at another model's shape; with the built-in tokenizer either way.

    That tokenizer knows 4096 tokens. A larger vocabulary is there in full, so that embeddings, logits and
    sampling cost what they cost in the model itself; its other tokens have no text.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config
    from transformers.utils import logging

    from persona_tui.model.sources import TINY_WEIGHTS

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(TINY_WEIGHTS)
    kind = getattr(torch, dtype)
    if size == BUILTIN:
        model = AutoModelForCausalLM.from_pretrained(TINY_WEIGHTS, dtype=kind).to(device)
    else:
        torch.manual_seed(0)
        shape, vocabulary, tied = SHAPES[size]
        config = Qwen2Config(
            **dict(zip(_QWEN, shape, strict=True)),
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=kind)
    return model.eval().requires_grad_(False), tokenizer


def set_threads(count: int | None) -> None:
    """Use so many cores; None = as many as torch finds."""
    import torch

    if count is not None:
        torch.set_num_threads(count)


# Scripts about the personas of a workspace ----------------------------------------------------------------


def persona_arguments(about: str | None) -> argparse.ArgumentParser:
    """What such scripts take; `about` is what their help says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--workspace", type=Path, default=Path.cwd(), help="where the personas are")
    parser.add_argument("--personas", nargs="*", help="by default all that there are")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def opened(options: argparse.Namespace) -> Project:
    """The workspace and the model that the arguments name; what is measured, and on what, is printed."""
    import torch

    from persona_tui.project.project import Project

    set_threads(options.threads)
    torch.set_grad_enabled(False)
    project = Project.open(options.workspace, options.model, dtype=options.dtype)
    print(f"{project.model.name}, {project.model.dtype}; {machine()}\n", flush=True)
    return project


# Other processes --------------------------------------------------------------------------------------------


def child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command in the repository; its standard output. Its errors end this program, too."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
    done = subprocess.run(command, cwd=REPOSITORY, env=known, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


# Words ------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with two decimals."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """A number with three digits that matter."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def machine(device: str = "cpu") -> str:
    """What this was measured on, in one line."""
    import torch
    import transformers

    where = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    threads = "" if device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{where}{threads}, {versions}, Python {platform.python_version()}{load}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found: Any = None
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        found = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
        )
    return f"{found or platform.processor() or platform.machine()}, {os.cpu_count()} cores"
