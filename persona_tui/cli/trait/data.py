"""`trait curate` and `trait compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from persona_tui.cli.options import Invocation, Within, pass_invocation
from persona_tui.cli.output import check_free, echo, force_option, json_option, print_json, print_table
from persona_tui.cli.progress import GOES_ON, work
from persona_tui.cli.trait.shared import (
    BadLines,
    conversations,
    strict_option,
    tell_doubts,
    tell_notes,
    trait_scorer,
    trait_store,
)
from persona_tui.core.errors import DatasetError, VectorFileError
from persona_tui.core.mix import TEMPERATURE

if TYPE_CHECKING:
    from persona_tui.core.jobs import JobContext
    from persona_tui.datasets.transcripts import Transcript
    from persona_tui.model import Message, Sampling
    from persona_tui.project.project import Project
    from persona_tui.traits.compare import TraitComparison
    from persona_tui.traits.curate import Curated
    from persona_tui.traits.policy import Policy
    from persona_tui.traits.score import Scored


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="DATA.jsonl")
@click.option(
    "--rules",
    multiple=True,
    required=True,
    metavar="FILE|RULE",
    help='YAML with limits, or rules: "harmful_validation>0.3". May be repeated.',
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where to write the flagged lines, byte for byte.",
)
@click.option(
    "--reasons",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the reasons. [default: beside the output]",
)
@click.option("--restart", is_flag=True, help="Discard an interrupted run and start again.")
@force_option
@json_option
@pass_invocation
def curate(
    invocation: Invocation,
    /,
    data: Path,
    rules: tuple[str, ...],
    output: Path,
    reasons: Path | None,
    restart: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Flag lines of training data that break rules.

    Data of any size are read line by line. An interrupted run resumes where it stopped. Lines that cannot be
    read are counted and listed with the reasons; they are never flagged.
    """
    from persona_tui.traits.curate import reasons_beside
    from persona_tui.traits.policy import Policy

    check_free(output, reasons or reasons_beside(output), force=force)
    project = invocation.project
    policy = Policy.read(rules, project.workspace).among(trait_store(project, loaded=False).names())
    done = work(lambda context: _curate(project, policy, data, (output, reasons), restart, context), GOES_ON)
    if as_json:
        print_json(
            {
                "lines": done.lines,
                "flagged": done.flagged,
                "bad": done.bad,
                "output": str(done.output),
                "reasons": str(done.reasons),
                "resumed_at": done.resumed_at,
                "seconds": round(done.seconds, 3),
            }
        )
        return
    if done.resumed_at is not None:
        echo(f"Resumed at line {done.resumed_at}.")
    echo(f"{done.flagged} of {done.lines} lines are flagged: {done.output}")
    echo(f"Why: {done.reasons}")
    if done.bad:
        echo(f"{done.bad} lines could not be read; the reasons file lists them.")


def _curate(
    project: Project,
    policy: Policy,
    data: Path,
    outputs: tuple[Path, Path | None],
    restart: bool,
    context: JobContext,
) -> Curated:
    from persona_tui.traits.curate import Curation

    scorer = trait_scorer(project, list(policy.traits))
    tell_doubts(scorer.traits)
    curation = Curation(
        scorer,
        policy.on_model(scorer.traits),
        data,
        *outputs,
        restart=restart,
        progress=context.progress,
        checkpoint=context.checkpoint,
        on_bad=BadLines(),
    )
    done = curation.run()
    tell_notes(curation.notes, str(data))
    return done


# Comparing --------------------------------------------------------------------------------------------------

Kind = Literal["transcripts", "model", "vectors"]


@dataclass(frozen=True)
class _Run:
    """One side: a file of conversations, a model that answers, or a folder of traits that measure."""

    name: str
    kind: Kind


@click.command()
@click.argument("names_of_runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--trait", "names", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Prompts for the models. [default: the held-out situations of all traits]",
)
@click.option(
    "--on",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Conversations that two sets of traits score. [default: the held-out conversations]",
)
@strict_option
@click.option("--max-new-tokens", type=click.IntRange(1), default=96, show_default=True, metavar="N")
@click.option("--temperature", type=Within(TEMPERATURE), default=0.7, show_default=True, metavar="T")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@json_option
@pass_invocation
def compare(
    invocation: Invocation,
    /,
    names_of_runs: tuple[str, ...],
    names: tuple[str, ...],
    prompts: Path | None,
    on: Path | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Compare versions on the same prompts: two, or each of several with the first.

    Each RUN is a file of conversations, a model (a name or a folder), or a folder of extracted traits.
    Replies are all measured with the traits of --model, so that both sides are held to one measure.
    Prints means with 95% intervals, the difference, its size in standard deviations, and p of a
    randomisation test (Holm-corrected for all traits and versions).
    """
    from persona_tui.model import Sampling

    project = invocation.project
    if len(names_of_runs) < 2:
        raise click.UsageError("Give at least two versions to compare.")
    runs = [_run(each) for each in names_of_runs]
    if len({run.kind == "vectors" for run in runs}) > 1:
        raise click.UsageError("A set of traits can only be compared with another set of traits.")
    sampling = Sampling(max_new_tokens, temperature, 1.0, seed)
    sides = partial(_Compare, project, names, sampling, strict)
    found = work(lambda context: sides(context).result(runs, prompts, on))
    if as_json and len(found) == 1:
        print_json({"a": runs[0].name, "b": runs[1].name, "seed": seed, **found[0].as_dict()})
    elif as_json:
        versions = [{"b": run.name, **result.as_dict()} for run, result in zip(runs[1:], found, strict=True)]
        print_json({"a": runs[0].name, "seed": seed, "versions": versions})
    else:
        for run, result in zip(runs[1:], found, strict=True):
            echo(f"a: {runs[0].name}, b: {run.name}")
            _print(result)


def _run(name: str) -> _Run:
    """Return what an argument stands for."""
    path = Path(name)
    if name in ("starter", "tiny", "builtin") or name.startswith("ollama:") or path.suffix == ".gguf":
        return _Run(name, "model")
    if path.is_file():
        return _Run(name, "transcripts")
    if path.is_dir() and not (path / "config.json").is_file() and list(path.glob("*.safetensors")):
        return _Run(name, "vectors")
    if path.is_dir() or (name.count("/") == 1 and path.suffix != ".jsonl"):
        return _Run(name, "model")
    raise DatasetError(f"{name} is not a file of conversations, a model or a folder of traits")


class _Compare:
    """Gets all versions' scores, one after the other: there is room for one model at a time."""

    def __init__(
        self, project: Project, names: Sequence[str], sampling: Sampling, strict: bool, context: JobContext
    ) -> None:
        self._runtime = project
        self._names = names
        self._sampling = sampling
        self._strict = strict
        self._context = context
        self._bad = BadLines()

    def result(self, runs: Sequence[_Run], prompts: Path | None, on: Path | None) -> list[TraitComparison]:
        """Measure all versions, and compare each later one with the first."""
        from persona_tui.traits.compare import compare_all

        if runs[0].kind == "vectors":
            said = self._said(on)
            return compare_all([self._with_traits(run, said) for run in runs])
        trait_store(self._runtime, loaded=False).select(self._names)  # before anything takes long
        spoken = {run: self._conversations(run.name) for run in runs if run.kind == "transcripts"}
        asked = self._asked(prompts, list(spoken.values()))
        for run in runs:
            if run.kind == "model" and run not in spoken:
                spoken[run] = self._answers(run.name, asked)
        return compare_all([self._scored(spoken[run]) for run in runs])

    def _conversations(self, source: str) -> list[Transcript]:
        from persona_tui.datasets.transcripts import BadLine

        found: list[Transcript] = []
        for item in conversations(source, self._strict):
            if isinstance(item, BadLine):
                self._bad(item)
            else:
                found.append(item)
        return found

    def _scored(self, said: list[Transcript]) -> list[Scored]:
        from persona_tui.datasets.transcripts import BadLine

        found: list[Scored] = []
        for item in trait_scorer(self._runtime, self._names).stream(said):
            self._context.checkpoint()
            if isinstance(item, BadLine):
                self._bad(item)
            else:
                found.append(item)
        return found

    def _asked(self, prompts: Path | None, others: list[list[Transcript]]) -> list[list[Message]]:
        """Return the given prompts; else those of the other side's conversations; else the held-out
        situations.
        """
        from persona_tui.traits.compare import before_last_reply, held_out_prompts, read_prompts

        if prompts is not None:
            return read_prompts(prompts)
        if others:
            return [before_last_reply(each.messages) for each in others[0]]
        return held_out_prompts(self._definitions())

    def _definitions(self) -> list[Any]:
        from persona_tui.traits.definition import find_definition, list_definitions

        known = list_definitions(self._runtime.workspace)
        return [
            find_definition(self._runtime.workspace, name)
            for name in known
            if not self._names or name in self._names
        ]

    def _answers(self, name: str, asked: list[list[Message]]) -> list[Transcript]:
        from persona_tui.model import ModelWrapper
        from persona_tui.traits.compare import answers

        chosen = self._runtime.settings.model
        if name == chosen.name:
            model = self._runtime.model
        else:
            model = ModelWrapper.load(name, chosen.device, chosen.dtype, chosen.quantization)
        return answers(model, asked, self._sampling, self._context.progress, self._context.checkpoint)

    def _said(self, on: Path | None) -> list[Transcript]:
        from persona_tui.traits.compare import held_out_conversations

        return self._conversations(str(on)) if on is not None else held_out_conversations(self._definitions())

    def _with_traits(self, run: _Run, said: list[Transcript]) -> list[Scored]:
        """Return the conversations, measured with the traits in one folder."""
        from persona_tui.datasets.transcripts import BadLine
        from persona_tui.traits.score import TraitScorer
        from persona_tui.traits.vector import TraitStore

        model = self._runtime.model
        store = TraitStore(Path(run.name), model.fingerprint, model.name)
        wanted = [name for name in store.names() if not self._names or name in self._names]
        if not wanted:
            raise VectorFileError(f"{run.name} has none of these traits: {', '.join(self._names)}")
        scored = TraitScorer(model, store.select(wanted)).stream(said)
        return [each for each in scored if not isinstance(each, BadLine)]


def _print(result: TraitComparison) -> None:
    if result.paired:
        how = f"{result.n_a} pairs with the same prompts"
        how += f", {result.left_out} conversations without a partner" if result.left_out else ""
    else:
        how = f"{result.n_a} and {result.n_b} conversations, of different prompts: not paired"
    echo(how)
    rows = [
        [
            row.trait,
            str(row.n_a) if result.paired else f"{row.n_a}, {row.n_b}",
            str(row.a),
            str(row.b),
            f"{row.difference.value:+.2f} [{row.difference.low:+.2f}, {row.difference.high:+.2f}]",
            f"{row.effect:+.2f}",
            f"{row.p:.4f}",
            f"{row.p_corrected:.4f}",
        ]
        for row in result.rows
    ]
    if rows:
        print_table(rows, header=["trait", "n", "a", "b", "b - a", "effect", "p", "p corrected"])
    for name in result.too_few:
        echo(f"not applicable: {name}, to all but one or none")
