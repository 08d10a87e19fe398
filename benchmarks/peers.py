"""Speed and memory beside other libraries, in one run.

    python benchmarks/peers.py [--env FOLDER] [-o peers.md]     everything; about an hour on two cores
    python benchmarks/peers.py --quick -o peers.md              the same with fewer repetitions: ten minutes
    python benchmarks/peers.py --device cuda --shape 7b         Qwen2.5-7B's shape in bfloat16 on a GPU

It makes an environment of its own, with persona-tui, steering-vectors and repeng in it, and runs all sides in
one process there: the same torch and transformers, the same weights, the same threads. What is compared takes
turns, so that whatever else the machine does falls on all sides alike; figures are medians, and ratios are
medians of the ratios within each round. Aims are judged by CPU seconds, which other programs hardly
change; on a GPU by time. Every side writes exactly as many tokens: nothing ends a turn early.

The two-pass recipe is the one that persona_vectors and assistant-axis use (generate, then run the model once
more over prompt and response with `output_hidden_states`), written here with nothing but transformers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from measuring import (
    BUILTIN,
    REPOSITORY,
    SHAPES,
    SIZE_NAMES,
    Cost,
    child,
    forget_peak,
    in_step,
    machine,
    middle,
    peak_memory,
    rotated,
    set_threads,
    short,
    table,
    take_turns,
)
from sides import EFFORTS, PEERS, QUICK, TEMPERATURE, Bench, extractor, persona_requests, texts

ALL_LAYERS, MIDDLE_LAYERS = "all layers", "middle layers"
_MEMORY_PROMPTS = (50, 500, 5000)
# What was given back counts as given back, on all sides. Otherwise glibc keeps it, in pieces, and how many of
# them fit the next batch is a matter of luck: 40 MiB more or less at the tiny model's size.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass
class Report:
    """What is printed, and how the aims came out."""

    sections: list[str] = field(default_factory=list)
    aims: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def add(self, title: str, text: str) -> None:
        """Print a section at once: the whole takes long."""
        self.sections.append(f"## {title}\n\n{text}\n")
        print(self.sections[-1], flush=True)

    def aim(self, what: str, where: str, found: float, wanted: float, *, at_least: bool) -> None:
        """Note an aim and what was found."""
        sign, met = ("≥", found >= wanted) if at_least else ("≤", found <= wanted)
        self.aims.append((what, where, f"{found:.3f}", f"{sign} {wanted:g}", "met" if met else "missed"))


# The environment --------------------------------------------------------------------------------------------


def environment(folder: Path) -> Path:
    """A Python with persona-tui's dependencies and the peers, made once per folder."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / ".ready"
    if not ready.is_file():
        print(f"Installing into {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        pins = folder / "constraints.txt"
        wanted = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        kept = [line for line in wanted if not line.startswith("numpy==")]
        pins.write_text("\n".join(kept), encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "-q", "-c", str(pins)]
        # repeng is for numpy 1, and steering-vectors asks for transformers 4: both are tried on the versions
        # that persona-tui needs, so that one process can run all sides. What breaks is said where it breaks.
        child([*install, "-e", ".", "numpy<2", "gguf", "tqdm"])
        child([*install, "--no-deps", *PEERS])
        ready.touch()
    return python


def inside(python: Path, arguments: Sequence[str]) -> int:
    """Run this script in an environment."""
    command = [str(python), __file__, *arguments, "--here"]
    return os.spawnve(os.P_WAIT, str(python), command, {**os.environ, "PYTHONPATH": str(REPOSITORY)})


# Sections ---------------------------------------------------------------------------------------------------


def compared(costs: Mapping[str, Sequence[Cost]], ours: str, unit: str, failed: Mapping[str, str]) -> str:
    """A table: what each side does per second, and its cost beside ours."""
    rows = []
    for name, each in costs.items():
        seconds = median(cost.cpu for cost in each), median(cost.wall for cost in each)
        ratios = relative(each, costs[ours], "cpu"), relative(each, costs[ours], "wall")
        spread = f"{min(ratios[0]):.2f}-{max(ratios[0]):.2f}"
        rows.append(
            (name, short(1 / seconds[0]), median(ratios[0]), spread, short(1 / seconds[1]), median(ratios[1]))
        )
    rows += [(name, "cannot be run here", reason, "", "", "") for name, reason in failed.items()]
    header = (f"{unit} per CPU second", "CPU seconds, ours = 1", "range", f"{unit} per second")
    return table(("", *header, "time, ours = 1"), rows)


def relative(costs: Sequence[Cost], ours: Sequence[Cost], by: str) -> list[float]:
    """What something costs in each round, ours being 1; `by` is "cpu" or "wall"."""
    return [getattr(cost, by) / getattr(mine, by) for cost, mine in zip(costs, ours, strict=True)]


def best(bench: Bench, costs: Mapping[str, Sequence[Cost]], ours: str, names: Sequence[str]) -> float:
    """The lowest cost of several sides, ours being 1."""
    return min(median(relative(costs[name], costs[ours], bench.judged_by)) for name in names)


def given_texts(bench: Bench, size: str, report: Report) -> None:
    """Extraction from texts that are there already."""
    report_lines = []
    for where, layers in ((ALL_LAYERS, bench.layers), (MIDDLE_LAYERS, bench.middle)):
        bench.failed.clear()
        sides = bench.usable(bench.readers(layers))
        costs = take_turns(sides, bench.effort.rounds)
        report_lines.append(f"{where.capitalize()} ({len(layers)} of {len(bench.layers)}):\n")
        report_lines.append(compared(costs, "persona-tui", "pairs", bench.failed) + "\n")
        peers = [name for name in costs if name.startswith(PEERS)]
        if peers:
            found = best(bench, costs, "persona-tui", peers)
            report.aim(f"from given texts, {where}: best peer beside ours", size, found, 1.4, at_least=True)
    lengths = [len(bench.tokenizer(text).input_ids) for text in texts(2 * bench.effort.pairs)]
    report_lines.append(f"Texts of {min(lengths)} to {max(lengths)} tokens, in a random order.")
    if not bench.failed:
        report_lines.append(_same_as_steering_vectors(bench))
    report.add(f"{SIZE_NAMES[size]}: extraction from given texts", "\n".join(report_lines))


def _same_as_steering_vectors(bench: Bench) -> str:
    import torch

    theirs = bench.steering_vectors(bench.layers, 1).layer_activations
    ours = bench.read(bench.layers)[1]
    cosines = [torch.cosine_similarity(ours[i], theirs[i].float().cpu(), dim=0) for i in bench.layers]
    return f"Lowest cosine between persona-tui's and steering-vectors' differences: {min(cosines):.6f}."


def generated(bench: Bench, size: str, report: Report) -> None:
    """Extraction by generating."""
    sides = bench.usable(bench.extractions())
    costs = take_turns(sides, bench.effort.rounds)
    ours, equal, lean, alone = costs
    text = compared(costs, ours, "response tokens", {})
    effort = bench.effort
    text += (
        f"\n\n{effort.prompts} prompts, {effort.tokens} tokens each, batches of {effort.batch}, all layers. "
        f"Lowest cosine between both ways' means of the same greedy responses: {bench.agreement():.6f}."
    )
    where = SIZE_NAMES[size]
    report.add(f"{where}: extraction by generating", text)
    for name, what, wanted in (
        (equal, "by generating: two passes, equal batch", 1.4),
        (lean, "the same without logits in the second", 1.4),
        (alone, "one prompt at a time", 5),
    ):
        report.aim(what, size, best(bench, costs, ours, [name]), wanted, at_least=True)


def added(bench: Bench, size: str, report: Report) -> None:
    """What capture, steering and capping add to the same decoding."""
    effort = bench.effort
    captured = in_step(
        {
            "plain": bench.decoding(effort.batch, effort.tokens),
            "captured": bench.decoding(effort.batch, effort.tokens, capture=bench.layers),
        },
        effort.rounds,
    )
    both = bench.steering(capping=True)
    steered = in_step(
        {
            "plain": bench.decoding(1, effort.decoded),
            "steered": bench.decoding(1, effort.decoded, bench.steering(capping=False)),
            "steered and capped": bench.decoding(1, effort.decoded, both),
        },
        2 * effort.rounds,
    )
    rows = [_added_row(f"capture at every layer, {effort.batch} rows", captured, "captured")]
    rows += [_added_row(f"{name}, one row", steered, name) for name in ("steered", "steered and capped")]
    text = table(("added to decoding", "CPU seconds", "time"), rows)
    text += "\n\nBoth decode in step, one token of each at a time; the median over the rounds of every step."
    report.add(f"{SIZE_NAMES[size]}: what is added", text)
    capture = relative([captured["captured"]], [captured["plain"]], bench.judged_by)[0] - 1
    interventions = relative([steered["steered and capped"]], [steered["plain"]], bench.judged_by)[0] - 1
    report.aim("capture adds to generating", size, capture, 0.03, at_least=False)
    if size != BUILTIN:  # a pass of so small a model takes little longer than starting it does
        report.aim("steering and capping add to decoding", size, interventions, 0.02, at_least=False)


def _added_row(what: str, costs: Mapping[str, Cost], name: str) -> tuple[str, str, str]:
    cost, plain = costs[name], costs["plain"]
    return what, f"{cost.cpu / plain.cpu - 1:+.1%}", f"{cost.wall / plain.wall - 1:+.1%}"


def spoken(bench: Bench, size: str, report: Report) -> None:
    """Single streams."""
    bench.failed.clear()
    costs = take_turns(bench.usable(bench.speakers()), bench.effort.rounds)
    ours = "persona-tui, steered and capped"
    plain = next(iter(costs))
    text = compared(costs, ours, "tokens", bench.failed)
    text += (
        f"\n\nOne prompt, {bench.effort.decoded} tokens, temperature {TEMPERATURE:g}; the prompt is included."
    )
    report.add(f"{SIZE_NAMES[size]}: single streams", text)
    found = 1 / best(bench, costs, ours, [plain])
    report.aim("steered and capped / unsteered `generate`", size, found, 1.02, at_least=False)
    for name in costs:
        if name.startswith(PEERS):
            found = best(bench, costs, ours, [name])
            report.aim(f"{name}, beside ours", size, found, 1.0, at_least=True)


# Memory and start-up ----------------------------------------------------------------------------------------


def memory(options: argparse.Namespace, report: Report) -> None:
    """Peak memory in processes of their own."""
    counts = [_MEMORY_PROMPTS[0], _MEMORY_PROMPTS[-1]] if options.quick else list(_MEMORY_PROMPTS)
    first = options.shape[0]
    rounds = 1 if options.quick else 3
    sides = [("transformers", counts[0]), ("plain", counts[0])] + [("extract", count) for count in counts]
    peaks = _peaks(options, first, sides, rounds=1, tokens=4)
    rows = [(_MEMORY_SIDES[side], str(count), short(peaks[side, count])) for side, count in sides]
    text = [_memory_table(first, rows)]
    flat = peaks["extract", counts[-1]] / peaks["extract", counts[0]]
    report.aim(f"peak memory, {counts[-1]} / {counts[0]} prompts", first, flat, 1.05, at_least=False)
    for size in options.shape:
        sides = [(side, EFFORTS[size].batch) for side in _MEMORY_SIDES]
        tokens = 4 if options.quick else EFFORTS[size].tokens
        peaks = _peaks(options, size, sides, rounds, tokens)
        rows = [(_MEMORY_SIDES[side], str(count), short(peaks[side, count])) for side, count in sides]
        text.append(_memory_table(size, rows))
        plain = peaks["plain", EFFORTS[size].batch]
        found = peaks["extract", EFFORTS[size].batch] / plain
        report.aim("peak memory of extraction / plain generation", size, found, 1.05, at_least=False)
    report.add("Peak memory", "\n\n".join(text))


_MEMORY_SIDES = {
    "transformers": "transformers' `generate`",
    "plain": "persona-tui, generation only",
    "extract": "persona-tui, extraction",
}


def _memory_table(size: str, rows: Sequence[Sequence[object]]) -> str:
    return table((SIZE_NAMES[size], "prompts", "peak, MiB"), rows)


def _peaks(
    options: argparse.Namespace, size: str, sides: Sequence[tuple[str, int]], rounds: int, tokens: int
) -> dict[tuple[str, int], float]:
    """Medians over processes that take turns."""
    found: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, count in sides:
            task = {"size": size, "side": side, "count": count, "tokens": tokens}
            command = [sys.executable, __file__, "--memory-of", json.dumps(task), "--device", options.device]
            threads = [] if options.threads is None else ["--threads", str(options.threads)]
            whole = [*command, "--dtype", options.dtype, *threads]
            found[side, count].append(float(child(whole, _GIVE_BACK)))
    return {side: median(peaks) for side, peaks in found.items()}


def memory_of(task: Mapping[str, Any], device: str, dtype: str) -> float:
    """One side's peak memory, in a process that does nothing else."""
    import torch

    from persona_tui.model import Sampling

    bench = Bench(task["size"], EFFORTS[task["size"]], device, dtype)
    count, tokens, batch = task["count"], task["tokens"], bench.effort.batch
    requests = persona_requests(count)
    forget_peak()
    if task["side"] == "extract":
        extractor(bench.wrapper, bench.layers, batch, tokens).run(requests)
        return peak_memory()
    for start in range(0, count, batch):
        some = requests[start : start + batch]
        if task["side"] == "plain":
            bench.wrapper.generate(some, Sampling(tokens, TEMPERATURE, top_p=1.0))
            continue
        prompts = [bench.wrapper.render(each.messages) for each in some]
        asked = bench.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            bench.model.generate(**asked.to(device), max_new_tokens=tokens, do_sample=True, top_k=0)
    return peak_memory()


def start_up(options: argparse.Namespace, report: Report) -> None:
    """How soon the first words appear."""
    commands = {
        "persona-tui --help": [sys.executable, "-m", "persona_tui", "--help"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(-1, 3 if options.quick else 9):
        for name in rotated(list(commands), turn):
            costs[name] += [started(commands[name])] if turn >= 0 else []
    rows = [(name, f"{middle(each).cpu:.3f}", f"{middle(each).wall:.3f}") for name, each in costs.items()]
    report.add("Start-up", table(("", "CPU seconds", "seconds"), rows))
    ours, theirs = costs["persona-tui --help"], costs["python -c 'import torch'"]
    found = median(relative(ours, theirs, "cpu"))
    report.aim("`--help` / importing torch", "", found, 0.25, at_least=False)


def started(command: Sequence[str]) -> Cost:
    """What a whole process costs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, before = time.perf_counter(), used.ru_utime + used.ru_stime
    child(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime - before)


# All of it --------------------------------------------------------------------------------------------------

BY_SIZE = {"texts": given_texts, "generating": generated, "added": added, "streams": spoken}
ONCE = {"memory": memory, "start-up": start_up}


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--env", type=Path, help="folder of the environment; by default a temporary one")
    result.add_argument("--here", action="store_true", help="measure in the Python that runs this")
    result.add_argument("--shape", nargs="+", choices=[BUILTIN, *SHAPES], default=[BUILTIN, "0.5b-8", "0.5b"])
    result.add_argument("--only", nargs="+", choices=[*BY_SIZE, *ONCE], default=[*BY_SIZE, *ONCE])
    result.add_argument("--quick", action="store_true", help="the same with fewer repetitions")
    result.add_argument("--rounds", type=int, help="repetitions, instead of each size's own")
    result.add_argument("--threads", type=int, help="processor cores to use; by default all")
    result.add_argument("--device", default="cpu")
    result.add_argument("--dtype", help="by default float32, on cuda bfloat16")
    result.add_argument("-o", "--output", type=Path)
    result.add_argument("--memory-of", help=argparse.SUPPRESS)
    return result


def main() -> None:
    """Make the environment and start again in it; or measure."""
    arguments = sys.argv[1:]
    options = parser().parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.memory_of:
        set_threads(options.threads)
        print(memory_of(json.loads(options.memory_of), options.device, options.dtype))
    elif options.here:
        measure(options)
    elif options.env is not None:
        raise SystemExit(inside(environment(options.env.absolute()), arguments))
    else:
        with tempfile.TemporaryDirectory() as folder:
            raise SystemExit(inside(environment(Path(folder)), arguments))


def measure(options: argparse.Namespace) -> None:
    """Print every section, then the aims."""
    set_threads(options.threads)
    report = Report()
    report.add("Measured on", f"{machine(options.device)}; peers: {_installed()}.")
    for size in options.shape:
        effort = QUICK.get(size, EFFORTS[size]) if options.quick else EFFORTS[size]
        if options.rounds:
            effort = replace(effort, rounds=options.rounds)
        bench = Bench(size, effort, options.device, options.dtype)
        for name, section in BY_SIZE.items():
            if name in options.only:
                section(bench, size, report)
    for name, once in ONCE.items():
        if name in options.only:
            once(options, report)
    report.add("Aims", table(("what", "size", "measured", "aim", ""), report.aims))
    if options.output:
        options.output.write_text("\n".join(report.sections), encoding="utf-8")


def _installed() -> str:
    def version(name: str) -> str:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed here"

    return ", ".join(map(version, PEERS))


if __name__ == "__main__":
    main()
