"""`trait extract`, `trait list` and `trait calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.misplaced import with_misplaced
from persona_tui.cli.options import Invocation, Within, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json, print_table
from persona_tui.cli.progress import note, work
from persona_tui.cli.trait.shared import BadLines, conversations, strict_option, trait_scorer, trait_store
from persona_tui.core.mix import Range

if TYPE_CHECKING:
    from persona_tui.datasets.transcripts import BadLine
    from persona_tui.project.project import Project
    from persona_tui.traits.definition import TraitDefinition
    from persona_tui.traits.extract import Recipe
    from persona_tui.traits.score import TraitScorer
    from persona_tui.traits.vector import TraitVector


@click.command()
@click.argument("name", required=False)
@click.option("--all", "all_", is_flag=True, help="Extract every described trait.")
@click.option(
    "--recipe",
    type=click.Choice(["conversations", "prompts"]),
    help="From given conversations (the default, if there are any), or replies under opposed system prompts.",
)
@click.option("--samples", type=int, metavar="N", help="prompts: replies for each system prompt.")
@click.option("--max-new-tokens", type=int, metavar="N", help="prompts: tokens in a reply, at most.")
@click.option("--seed", type=int, metavar="N", help="prompts: the same seed gives the same vectors.")
@json_option
@pass_invocation
def extract(
    invocation: Invocation,
    /,
    name: str | None,
    all_: bool,
    recipe: Recipe | None,
    samples: int | None,
    max_new_tokens: int | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Make a trait's vectors.

    NAME is a trait described in datasets/traits, or a file (.jsonl, .json, .yaml) that describes one, also
    one of persona_vectors' or assistant-axis' traits, whose replies the model then writes itself. Prints
    the layer that was chosen by cross-validation, strength (the length of the difference of both sides'
    means), separation (in standard deviations) and the area under the ROC curve: for left-out replies, and
    for the held-out test. Then the healthy range, and how often test replies leave it: bad ones are caught,
    good and ordinary ones are false alarms.
    """
    project = invocation.project
    given = {"num_samples_per_prompt": samples, "max_new_tokens": max_new_tokens, "seed": seed}
    project.override({f"extraction.{key}": value for key, value in given.items() if value is not None})
    definitions = _definitions(project, name, all_)
    made = work(lambda context: project.extract_traits(definitions, recipe=recipe, context=context))
    for trait in made:
        if trait.reading.weakness is not None:
            note(f"{trait.name} is weak on this model: {trait.reading.weakness}.")
    if as_json:
        print_json([_entry(trait) for trait in made])
        return
    print_table([_row(trait) for trait in made], header=_HEADER)


def _definitions(project: Project, name: str | None, all_: bool) -> list[TraitDefinition]:
    from persona_tui.traits.definition import find_definition, list_definitions

    if (name is None) != all_:
        raise click.UsageError("Give either a NAME or --all.", click.get_current_context())
    names = list(list_definitions(project.workspace)) if name is None else [name]
    return [find_definition(project.workspace, each) for each in names]


_HEADER = ["trait", "layer", "strength", "separation", "AUC left out", "AUC held out", "n", "healthy"]
_HEADER += ["caught", "false alarms"]


def _row(trait: TraitVector) -> list[str]:
    reading = trait.reading
    held_out = reading.held_out
    return [
        trait.name,
        str(reading.layer),
        f"{reading.strength:.2f}",
        f"{reading.separation:.2f}",
        _interval(reading.auc),
        "-" if held_out is None else _interval(held_out.auc),
        "+".join(str(reading.counts.get(side, 0)) for side in ("high", "low"))
        + ("" if held_out is None else f", {held_out.high}+{held_out.low}"),
        _range(reading.healthy.model_dump()),
        *_rates(None if reading.rates is None else reading.rates.model_dump()),
    ]


def _rates(rates: dict[str, Any] | None) -> list[str]:
    """Return what share of bad test replies leaves the healthy range, and of good and of ordinary ones."""
    if rates is None:
        return ["-", "-"]
    ordinary = "" if rates["ordinary"] is None else f", {rates['ordinary']:.0%} of ordinary"
    return [f"{rates['caught']:.0%}", f"{rates['good']:.0%} of good{ordinary}"]


def _interval(interval: Any) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _entry(trait: TraitVector) -> dict[str, Any]:
    from persona_tui.traits.vector import summary

    layers = [each.model_dump() for each in trait.reading.layers]
    return {"name": trait.name, **summary(trait), "layers": layers}


@click.command("list")
@json_option
@pass_invocation
def list_(invocation: Invocation, /, as_json: bool) -> None:
    """List the traits, extracted or only described."""
    from persona_tui.traits.results import overview

    project = invocation.project
    project.check_known()
    entries = overview(project.workspace, trait_store(project, loaded=False))
    entries = with_misplaced(project, entries, project.traits.folder, extracted=False)
    if as_json:
        print_json(entries)
    elif not entries:
        note("No traits are described yet.")
    else:
        header = ["trait", "layer", "AUC", "healthy", "caught", "false alarms", ""]
        print_table([_listed(entry) for entry in entries], header=header)


def _listed(entry: dict[str, Any]) -> list[str]:
    if "error" in entry:
        return [entry["name"], "", "", "", "", "", entry["error"]]
    if not entry["extracted"]:
        return [entry["name"], "", "", _range(entry["healthy"]), "", "", "not extracted yet"]
    auc = (entry["held_out"] or entry)["auc"]
    figure = f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
    what = "weak: " + entry["weak"] if entry["weak"] else entry["description"] or ""
    known = [_range(entry["healthy"]), *_rates(entry["rates"])]
    return [entry["name"], str(entry["layer"]), figure, *known, what]


def _range(healthy: dict[str, float | str | None]) -> str:
    low, high = (
        f"{each:.3g}" if isinstance(each, float) else each
        for each in (healthy.get("min"), healthy.get("max"))
    )
    if low is None and high is None:
        return "-"
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"from {low}" if low is not None else f"up to {high}"


@click.command()
@click.argument("name")
@click.argument("labelled", required=False)
@click.option(
    "--false-alarms",
    type=Within(Range(0, 1)),
    metavar="SHARE",
    help="At most this share of low replies may count as high.",
)
@click.option("--dry-run", is_flag=True, help="Only show it; keep the old threshold.")
@strict_option
@json_option
@pass_invocation
def calibrate(
    invocation: Invocation,
    /,
    name: str,
    labelled: str | None,
    false_alarms: float | None,
    dry_run: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Find a trait's threshold from LABELLED conversations.

    LABELLED is JSON Lines with messages and a label: 1 or "high", 0 or "low". The label is about the last
    reply. Without LABELLED, the trait's own test conversations are used; they then no longer test it.
    From now on it is the trait's limit in `trait check`, and wherever a policy says `calibrated`.
    """
    from persona_tui.traits.thresholds import TEST, fit_threshold

    project = invocation.project
    scorer = trait_scorer(project, [name])
    trait = scorer.traits[0]
    high, low, bad = work(lambda context: _labelled(project, scorer, labelled, strict))
    problems = BadLines()
    for line in bad:
        problems(line)
    fit = fit_threshold(trait, high, low, 1.0 if false_alarms is None else false_alarms)
    if not dry_run:
        source = "standard input" if labelled == "-" else Path(labelled).name if labelled else TEST
        trait_store(project).save(trait.calibrated(fit.threshold, source))
    if as_json:
        print_json({**fit.as_dict(), "n": [len(high), len(low)], "saved": not dry_run, "bad": problems.count})
        return
    rows = [
        ["threshold", f"{fit.threshold:+.3f} (was {fit.before:+.3f})"],
        ["AUC", f"{fit.auc.value:.3f} [{fit.auc.low:.3f}, {fit.auc.high:.3f}]"],
        ["balanced accuracy", f"{fit.accuracy:.3f} (was {fit.accuracy_before:.3f})"],
        ["on unseen replies", f"{fit.accuracy_unseen:.3f}"],
        ["labelled high", f"{fit.confusion['true_high']} right, {fit.confusion['false_low']} wrong"],
        ["labelled low", f"{fit.confusion['true_low']} right, {fit.confusion['false_high']} wrong"],
    ]
    print_table([*rows, ["lines not used", str(problems.count)]] if problems.count else rows)
    echo("Nothing was changed." if dry_run else f"Saved with {trait.name}.")


def _labelled(
    project: Project, scorer: TraitScorer, source: str | None, strict: bool
) -> tuple[list[float], list[float], list[BadLine]]:
    """Return the scores of labelled replies, high and low, and what could not be used."""
    from persona_tui.traits.definition import find_definition
    from persona_tui.traits.thresholds import labelled_scores, reference_scores

    name = scorer.traits[0].name
    if source is not None:
        return labelled_scores(name, scorer.stream(conversations(source, strict)))
    return *reference_scores(scorer, find_definition(project.workspace, name)), []
