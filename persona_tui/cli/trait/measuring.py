"""`trait score` and `trait check`."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json, print_table, shortened
from persona_tui.cli.progress import work
from persona_tui.cli.trait.shared import (
    BadLines,
    conversations,
    or_cannot_check,
    signed,
    strict_option,
    tell_gateless,
    trait_scorer,
    trait_store,
)
from persona_tui.core.errors import ConfigError, PersonaTuiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persona_tui.core.jobs import JobContext
    from persona_tui.datasets.transcripts import Item
    from persona_tui.project.project import Project
    from persona_tui.traits.policy import Breach, Policy
    from persona_tui.traits.score import Scored, TraitScorer, TurnScore
    from persona_tui.traits.vector import TraitVector


def _measured(
    source: str,
    scorer: TraitScorer,
    bad: BadLines,
    context: JobContext,
    strict: bool = False,
    thoughts: bool = False,
) -> list[Scored]:
    """Score everything that can be read; the rest is told. With `thoughts`, each after its conversation."""
    from persona_tui.datasets.transcripts import BadLine

    found: list[Scored] = []
    items = conversations(source, strict)
    for item in scorer.stream(_with_thoughts(items) if thoughts else items):
        context.checkpoint()
        if isinstance(item, BadLine):
            bad(item)
        else:
            found.append(item)
            context.progress(len(found), 0, "conversations")
    return found


def _with_thoughts(items: Iterator[Item]) -> Iterator[Item]:
    from persona_tui.datasets.transcripts import Transcript

    for item in items:
        if isinstance(item, Transcript):
            if item.says_something:
                yield item
            yield from item.of_thoughts()
        else:
            yield item


@click.command()
@click.argument("source", metavar="FILE|TEXT|-")
@click.option("--trait", "names", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--users", is_flag=True, help="Also score what the user says.")
@click.option("--thoughts", is_flag=True, help="Also score a reply's thoughts (<think>), separately.")
@strict_option
@json_option
@pass_invocation
def score(
    invocation: Invocation,
    /,
    source: str,
    names: tuple[str, ...],
    users: bool,
    thoughts: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Score every reply of conversations.

    They come as JSON with "messages" (one object, or one per line), as CSV with the columns user and
    assistant, or as text with "User:" and "Assistant:" before the turns. A text without them is one reply.
    Bad lines are reported, and the exit status is then 1. The scale was made with replies: compare users'
    scores only with users' scores.
    """
    project = invocation.project
    scorer = trait_scorer(project, names)
    bad = BadLines()
    found = work(lambda context: _measured(source, scorer, bad, context, strict, thoughts))
    turns = work(lambda context: _turns(found, scorer, context)) if users else None
    if as_json:
        print_json(
            {
                "model": project.settings.model.name,
                "traits": [trait.name for trait in scorer.traits],
                "conversations": [
                    _as_json(each, turns[place] if turns is not None else None)
                    for place, each in enumerate(found)
                ],
                "bad": bad.as_list(),
            }
        )
    elif turns is not None:
        _print_turns(found, turns, scorer.traits)
    elif found:
        _print_scores(found, scorer.traits)
    if bad.count:
        click.get_current_context().exit(1)


def _turns(found: list[Scored], scorer: TraitScorer, context: JobContext) -> list[list[TurnScore]]:
    """Every message of the conversations, measured."""
    measured = []
    for scored in found:
        context.checkpoint()
        measured.append(scorer.score_turns(scored.conversation.messages))
        context.progress(len(measured), len(found), "turns")
    return measured


def _print_turns(found: list[Scored], turns: list[list[TurnScore]], traits: list[TraitVector]) -> None:
    from persona_tui.traits.score import drift_of

    names = [trait.name for trait in traits]
    rows = []
    for scored, each in zip(found, turns, strict=True):
        where = scored.conversation.where
        for turn in each:
            scores = ["n/a" if name in turn.outside else signed(turn.scores[name]) for name in names]
            rows.append([where, str(turn.turn), turn.role, *scores, shortened(turn.text)])
            where = "  ."
        for role in ("user", "assistant"):
            drift = drift_of(each, role)
            if drift:
                rows.append([where, "drift", role, *(signed(drift[name]) for name in names), ""])
    if rows:
        print_table(rows, header=["where", "turn", "role", *names, "text"])


def _as_json(scored: Scored, turns: list[TurnScore] | None = None) -> dict[str, Any]:
    users = [] if turns is None else [turn for turn in turns if turn.role == "user"]
    said = [{"turn": turn.turn, "tokens": turn.n_tokens, "scores": _rounded(turn.scores)} for turn in users]
    return {
        **({} if turns is None else {"users": said}),
        "where": scored.conversation.where,
        "id": scored.conversation.fields.get("id"),
        "replies": [
            {
                "turn": reply.turn,
                "tokens": reply.n_tokens,
                "forgotten_messages": reply.forgotten,
                "scores": _rounded(reply.scores),
                "not_applicable": sorted(reply.outside),
                "projections": _rounded(reply.projections),
            }
            for reply in scored.replies
        ],
        "mean": _rounded(scored.means),
        "drift": _rounded(scored.drift),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _print_scores(found: list[Scored], traits: list[TraitVector]) -> None:
    names = [trait.name for trait in traits]
    rows = []
    for scored in found:
        where = scored.conversation.where if len(found) > 1 else ""
        for reply in scored.replies:
            scores = ["n/a" if name in reply.outside else signed(reply.scores[name]) for name in names]
            row = [str(reply.turn), *scores, shortened(reply.text)]
            rows.append([where, *row] if where else row)
            where = "  ." if where else ""
        if len(scored.replies) > 1:
            for label, values in (("mean", scored.means), ("drift", scored.drift)):
                row = [label, *(signed(values[name]) for name in names), ""]
                rows.append([where, *row] if where else row)
    header = ["turn", *names, "reply"]
    print_table(rows, header=["where", *header] if len(found) > 1 else header)
    if len(found) > 1:
        means = (f"{name} {signed(fmean(each.means[name] for each in found))}" for name in names)
        echo(f"{len(found)} conversations: {', '.join(means)}")


@click.command()
@click.argument("source", metavar="FILE|TEXT|-")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="FILE|RULE",
    help='YAML with limits, its name, or a rule: "harmful_validation>0.3". [default: the healthy ranges]',
)
@strict_option
@json_option
@pass_invocation
def check(
    invocation: Invocation, /, source: str, policies: tuple[str, ...], strict: bool, as_json: bool
) -> None:
    """Check conversations against limits.

    The exit status is 0 if all keep them, 1 if one does not, and 2 if the check could not be made: a bad
    policy, a missing trait, a conversation that cannot be read.
    """
    bad = BadLines()
    try:
        policy, scorer = _policy(invocation.project, policies)
        found = work(lambda context: _measured(source, scorer, bad, context, strict))
    except PersonaTuiError as error:
        raise or_cannot_check(error) from error
    policy = policy.on_model(scorer.traits)
    tell_gateless(scorer.traits)
    breaches = [(scored, policy.check(scored)) for scored in found]
    broken = [(scored, each) for scored, each in breaches if each]
    if as_json:
        print_json(_verdict(policy, found, broken, bad))
    else:
        for scored, each in broken:
            for breach in each:
                echo(f"{scored.conversation.where}: {breach}")
        unread = bad.count or not found
        verdict = "breach" if broken else "no verdict: not everything could be read" if unread else "pass"
        echo(f"{verdict}: {len(broken)} of {len(found)} conversations break {policy.name}")
        replies = sum(len(scored.replies) for scored in found)
        for name, count in _outside(found).items():
            echo(f"not applicable: {name}, to {count} of {replies} replies")
    status = 2 if bad.count or not found else 1 if broken else 0
    click.get_current_context().exit(status)


def _policy(project: Project, given: tuple[str, ...]) -> tuple[Policy, TraitScorer]:
    """Return the policy, and what measures the traits that it names. Mistakes are found before the model
    loads.
    """
    from persona_tui.traits.policy import Policy

    store = trait_store(project, loaded=False)
    if given:
        policy: Policy | None = Policy.read(given, project.workspace)
    else:
        policy = Policy.healthy(store.select())
    if policy is None:
        raise ConfigError("no trait has a healthy range: give a --policy")
    policy = policy.among(store.names())
    return policy, trait_scorer(project, list(policy.traits))


def _outside(found: list[Scored]) -> Counter[str]:
    """By trait, how many replies it is not about, most first."""
    counted = Counter(name for scored in found for reply in scored.replies for name in reply.outside)
    return Counter(dict(counted.most_common()))


def _verdict(
    policy: Policy, found: list[Scored], broken: list[tuple[Scored, list[Breach]]], bad: BadLines
) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "pass": not broken and not bad.count and bool(found),
        "limits": {
            name: each.model_dump(include={"min", "max", "reason"}) for name, each in policy.traits.items()
        },
        "conversations": len(found),
        "replies": sum(len(scored.replies) for scored in found),
        "not_applicable": dict(_outside(found)),
        "broken": [
            {"where": scored.conversation.where, "breaches": [breach.as_dict() for breach in each]}
            for scored, each in broken
        ],
        "bad": bad.as_list(),
    }
