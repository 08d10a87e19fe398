"""What the axes of a model are made of: how much it refuses, and what the axes that it has say of themselves.

    python benchmarks/refusals.py [--model starter] [--dtype bfloat16] [--workspace DIR] [-o refusals.md]

The safety prompts are answered as they are when axes are extracted: same system prompts, seeds and sampling.
A refusal is known by its first words (`extraction.axes.refuses`); how well, is measured on labelled replies:
those of `datasets/safety/refusals.jsonl` that the words were not chosen by. Shares have 95% intervals.

A reply's reading on the safety axis is its mean over the capping layers, in standard deviations of ordinary
replies; 0 lies halfway between both sides. Answers to safe prompts should read above 0, refusals below.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from measuring import machine, table

from persona_tui.core.config import Settings, override
from persona_tui.core.statistics import share
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.records import read_safety, refusals_path
from persona_tui.datasets.schema import SafePrompt
from persona_tui.extraction.axes import CAPPING_TOKENS, refuses
from persona_tui.extraction.runner import item_seed
from persona_tui.model import ModelWrapper, Request, Sampling, conversation
from persona_tui.project.about import axes_in_words
from persona_tui.project.project import Project

BATCH = 25


def known_by_words(workspace: Workspace) -> str:
    """How well the words tell refusals from answers that begin like them."""
    lines = refusals_path(workspace).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    parts = []
    for label in ("refused", "answered"):
        flags = [refuses(row["reply"]) for row in rows if row["label"] == label and row["split"] == "test"]
        parts.append((label, len(flags), _interval(flags)))
    return table(("labelled", "n", "taken for a refusal"), parts)


def _interval(flags: Sequence[bool]) -> str:
    return str(share(np.array(flags)))


def answers(model: ModelWrapper, prompts: Sequence[SafePrompt], settings: Settings) -> list[str]:
    """What a model says to each prompt."""
    sampling = Sampling(CAPPING_TOKENS, settings.extraction.temperature, settings.extraction.top_p)
    requests = [
        Request(
            conversation(each.prompt, each.system), item_seed(settings.extraction.seed, "safety", each.id)
        )
        for each in prompts
    ]
    return [
        each.text
        for start in range(0, len(requests), BATCH)
        for each in model.generate(requests[start : start + BATCH], sampling)
    ]


def shares(prompts: Mapping[str, Sequence[SafePrompt]], replies: Mapping[str, Sequence[str]]) -> str:
    """The refused share of the prompts of either kind, by category."""
    rows: list[tuple[object, ...]] = []
    for kind, asked in prompts.items():
        flags = [refuses(reply) for reply in replies[kind]]
        rows.append((kind, "all", len(flags), sum(flags), _interval(flags)))
        for category in dict.fromkeys(each.category for each in asked):
            part = [flag for flag, each in zip(flags, asked, strict=True) if each.category == category]
            rows.append((kind, category, len(part), sum(part), _interval(part)))
    return table(("prompts", "category", "n", "refused", "share"), rows)


def readings(
    project: Project, prompts: Mapping[str, Sequence[SafePrompt]], replies: Mapping[str, Sequence[str]]
) -> str:
    """Where the replies lie on the safety axis."""
    axes = project.personas.axes
    if axes is None:
        return "This model has no axes."
    scale = axes.scale("safety", project.engine.capping_layers)
    rows: list[tuple[object, ...]] = []
    for kind, asked in prompts.items():
        for label in ("answered", "refused"):
            pairs = [
                (each, reply)
                for each, reply in zip(asked, replies[kind], strict=True)
                if reply and refuses(reply) == (label == "refused")
            ]
            if not pairs:
                continue
            read = project.model.read(
                [
                    [*conversation(each.prompt, each.system), {"role": "assistant", "content": reply}]
                    for each, reply in pairs
                ],
                sorted(scale.vectors),
            )
            found = [
                fmean(
                    float(each.response[row] @ vector)
                    for row, (_, vector) in enumerate(sorted(scale.vectors.items()))
                )
                - scale.ordinary
                for each in read
            ]
            above = _interval([each > 0 for each in found])
            rows.append((kind, label, len(found), f"{fmean(found):+.2f}", above))
    return table(("prompts", "", "n", "mean reading", "above 0"), rows)


def axes(project: Project) -> str:
    """What both axes of the model were made of."""
    found = project.personas.axes
    if found is None:
        return "This model has no axes."
    counts = found.metadata["counts"]
    names = {"assistant": ("baseline", "roles"), "safety": ("safe", "unsafe")}
    rows = [
        (
            name,
            " / ".join(f"{counts[key]} {key}" for key in names[name] if key in counts),
            found.weakness(name) or "-",
            "yes" if name == found.default_capping_axis else "",
        )
        for name in found.names
    ]
    made = table(("axis", "positive / negative side", "weak", "floors by default"), rows)
    return f"{made}\n\n{axes_in_words(found)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--workspace", type=Path, default=packaged_root())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    workspace = Workspace(options.workspace)
    settings = {"model.name": options.model, "model.device": options.device, "model.dtype": options.dtype}
    project = Project(workspace, override(workspace.settings, settings))
    kinds: tuple[Literal["unsafe", "safe"], ...] = ("unsafe", "safe")
    prompts = {kind: read_safety(workspace, kind) for kind in kinds}
    replies = {kind: answers(project.model, prompts[kind], workspace.settings) for kind in kinds}
    parts = [
        f"{machine(options.device)}\n\nmodel: {options.model}",
        f"## Axes\n\n{axes(project)}",
        f"## Known by words\n\n{known_by_words(workspace)}",
        f"## Refusals\n\n{shares(prompts, replies)}",
        f"## Readings\n\n{readings(project, prompts, replies)}",
    ]
    print("\n\n".join(parts))
    if options.output is not None:
        options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
