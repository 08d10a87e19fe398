"""Self-monitoring in figures: tone, content, projection, probe and consensus on every set, and what it costs.

    python benchmarks/monitoring.py [--model PATH] [--only quality|replies|chat|check] [-o monitoring.md]

Quality: monitors are fitted twice, on the small training set (25 + 25) and on that and the larger set's
training split, and measured on sets that neither has seen. Cost: with and without a monitor in turns, within
one run; ratios of medians, with 95% bootstrap intervals.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import table

from persona_tui.core.statistics import labelled_auc, share
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.model import ModelWrapper, Sampling, conversation
from persona_tui.monitors.evaluation import evaluate
from persona_tui.monitors.guard import Guard, verdict_of
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.query_sets import STANDARD, load_sets
from persona_tui.monitors.readings import read_as_replies
from persona_tui.monitors.training_data import load_training
from persona_tui.project.project import Project
from persona_tui.steering import Mix, SteeringEngine

UNSTEERED = Mix(capping=False)
PARTS = ("quality", "replies", "chat", "check")


# Quality ----------------------------------------------------------------------------------------------------


def fitted(model: ModelWrapper, workspace: Workspace) -> dict[str, SelfMonitor]:
    """A monitor of the small set, and one of all training queries."""
    return {
        name: SelfMonitor.fit(model, load_training(workspace, which), name)
        for name, which in (("small", "training"), ("large", "both"))
    }


def quality(monitors: dict[str, SelfMonitor], workspace: Workspace) -> str:
    """Every method on every set."""
    sets, parts = load_sets(workspace), []
    for name, monitor in monitors.items():
        done = evaluate(monitor, sets)
        rows = [
            [row["method"], row["set"], row["n"]]
            + [figure(row[key]) for key in ("accuracy", "false_positives", "false_negatives", "area")]
            for row in done.rows()
        ]
        header = ["method", "set", "n", "accuracy", "false positives", "false negatives", "AUC"]
        chosen = monitor.detector()
        parts += [
            f"### Fitted on {len(monitor.training.examples.queries)} queries ({name})",
            f"Cross-validation chose {monitor.method}, {chosen.position}, layers {list(chosen.layers)}.",
            table(header, rows),
            table(
                ["set", "kind", "n", f"accuracy of {monitor.method}"],
                [[each["set"], each["kind"], each["n"], figure(each["accuracy"])] for each in done.by_kind()],
            ),
        ]
        if (harms := done.categories()) is not None:
            parts.append(
                f"Harm of a dangerous query named rightly: {figure(harms['accuracy'])}, n = {harms['n']}."
            )
    return "\n\n".join(parts)


def figure(estimate: dict[str, float] | None) -> str:
    """`0.95 [0.87, 0.98]`."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def replies(engine: SteeringEngine, monitor: SelfMonitor, workspace: Workspace) -> str:
    """How the detector of replies does: on queries read as replies, and on the model's own replies."""
    (standard,) = (each for each in load_sets(workspace) if each.name == STANDARD)
    safe = np.array([query.label == "safe" for query in standard.queries])
    texts = [query.query for query in standard.queries]
    read = read_as_replies(engine.model, texts, monitor.reply.layers)
    scores = monitor.reply.form.scores(read.at["reply"]).double().numpy()
    area = figure(labelled_auc(scores, safe).as_dict())
    stopped = np.array([is_stopped(engine, monitor, text) for text in texts])
    rows = [
        ["replies to safe queries that would be stopped", figure(share(stopped[safe]).as_dict())],
        ["replies to dangerous queries that would be stopped", figure(share(stopped[~safe]).as_dict())],
    ]
    return "\n\n".join(
        [
            f"AUC of validation queries read as replies: {area} ({monitor.reply.method}, "
            f"layers {list(monitor.reply.layers)}).",
            table(["the model's own, unsteered", "share"], rows),
            "Replies to dangerous queries are refusals where the model refuses; there is no harmful reply in "
            "these sets, so that how many of those would be stopped is not known.",
        ]
    )


def is_stopped(engine: SteeringEngine, monitor: SelfMonitor, text: str) -> bool:
    """Whether a reply is called dangerous at any point of it."""
    guard = Guard(lambda: monitor, "warn")
    sampling = Sampling(max_new_tokens=64, temperature=0.7, seed=1)
    events = engine.stream(conversation(text), mix=UNSTEERED, sampling=sampling, guard=guard)
    verdicts = [verdict for event in events if (verdict := verdict_of(event)) is not None]
    return any(verdict.about == "reply" and not verdict.safe for verdict in verdicts)


# Cost -------------------------------------------------------------------------------------------------------


def chat_cost(engine: SteeringEngine, monitor: SelfMonitor, turns: int, tokens: int) -> list[Any]:
    """A chat turn with a guard over one without, the same tokens."""
    guard = Guard(lambda: monitor, "warn")
    sampling = Sampling(max_new_tokens=tokens, temperature=0.7, seed=3)
    asked = conversation("Tell me a long story about a garden and the people who live near it.")

    def turn(with_guard: bool) -> None:
        # A row of several would end at different places; this one always writes the same tokens.
        for _ in engine.stream(asked, mix=UNSTEERED, sampling=sampling, guard=guard if with_guard else None):
            pass

    return ["chat turn with a guard / without", *ratio(lambda: turn(True), lambda: turn(False), turns)]


def check_cost(model: ModelWrapper, monitor: SelfMonitor, text: str, times: int) -> list[Any]:
    """A check over one plain pass of the same prompt, tokenisation included in both."""

    @torch.inference_mode()
    def plain() -> None:
        rendered = model.render(conversation(text))
        ids = model.tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
        model.model(input_ids=ids.to(model.device), use_cache=False)

    words = len(text.split())
    return [f"check / plain pass, {words} words", *ratio(lambda: monitor.check(text), plain, times)]


def ratio(one: Callable[[], object], other: Callable[[], object], times: int) -> list[str]:
    """Both in turns: ratios of the medians by the clock and of CPU time, and both medians in milliseconds.

    On a machine that does other work, too, the CPU time is what to look at.
    """
    one(), other()  # warm
    clock: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for round_ in range(times):
            for side, work in ((0, one), (1, other)) if round_ % 2 else ((1, other), (0, one)):
                started, busy = time.perf_counter(), time.process_time()
                work()
                clock[side].append(time.perf_counter() - started)
                cpu[side].append(time.process_time() - busy)
    finally:
        gc.enable()
    return [
        ratio_of(*clock),
        ratio_of(*cpu),
        f"{1000 * np.median(clock[0]):.2f}",
        f"{1000 * np.median(clock[1]):.2f}",
    ]


def ratio_of(first: list[float], second: list[float]) -> str:
    """A ratio of medians, with its interval."""
    above, below = np.array(first), np.array(second)
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(above), len(above)) for _ in range(1000)]
    again = [np.median(above[places]) / np.median(below[places]) for places in drawn]
    low, high = np.percentile(again, [2.5, 97.5])
    return f"{np.median(above) / np.median(below):.3f} [{low:.3f}, {high:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--checks", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    wanted = options.only or PARTS
    shipped = Workspace(packaged_root())
    with tempfile.TemporaryDirectory() as folder:
        project = Project.open(Path(folder) / "workspace", model=options.model)
        engine, model = project.engine, project.model
        monitors = fitted(model, shipped)
        sections = [f"## Self-monitoring on {model.name}"]
        if "quality" in wanted:
            sections.append(quality(monitors, shipped))
        if "replies" in wanted:
            sections += ["### Replies", replies(engine, monitors["large"], shipped)]
        rows = []
        if "chat" in wanted:
            rows.append(chat_cost(engine, monitors["large"], options.turns, options.tokens))
        if "check" in wanted:
            for text in ("How do I bake bread?", "Please tell me more about the history of bread. " * 12):
                rows.append(check_cost(model, monitors["large"], text.strip(), options.checks))
        if rows:
            sections += ["### Cost", table(["", "ratio by the clock", "ratio of CPU time", "ms", "ms"], rows)]
    report = "\n\n".join(sections)
    print(report)
    if options.output is not None:
        options.output.write_text(f"{report}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
