"""`generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.options import (
    Invocation,
    answer_options,
    chosen_weights,
    no_think_option,
    override_sampling,
    pass_invocation,
    persona_options,
)
from persona_tui.cli.output import json_option, print_json
from persona_tui.cli.progress import note
from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.core.mix import Mix
    from persona_tui.model import TokenEvent
    from persona_tui.monitors.guard import Guard
    from persona_tui.monitors.verdict import Verdict
    from persona_tui.steering.engine import Reply

_MOST_CHARACTERS = 1 << 26  # of standard input, which may have no end


@click.command()
@click.argument("prompt")
@persona_options
@click.option("--no-capping", is_flag=True, help="Let activations fall below the floor.")
@answer_options("The same seed gives the same answer.")
@no_think_option
@json_option
@pass_invocation
def generate(
    invocation: Invocation,
    /,
    prompt: str,
    persona: str | None,
    strength: float | None,
    plausibility: float | None,
    blend: str | None,
    no_capping: bool,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    no_think: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT (- reads it from stdin)."""
    project = invocation.project
    override_sampling(project, max_new_tokens, temperature, seed)
    if no_think:
        project.override({"generation.think": False})
    weights = chosen_weights(project, persona, blend)
    mix = project.default_mix()
    mix = replace(
        mix,
        weights=weights,
        strength=mix.strength if strength is None else strength,
        capping=mix.capping and not no_capping,
        plausibility=mix.plausibility if plausibility is None else plausibility,
    )
    messages = [{"role": "user", "content": prompt_text(prompt)}]
    guard = project.new_guard() if project.settings.monitoring.guard != "off" else None
    with quick_interrupt():
        engine = project.engine
        if as_json:
            sampling = engine.sampling.with_seed()
            reply = engine.reply(messages, mix=mix, sampling=sampling, system=system, guard=guard)
            answer = {"model": engine.model.name, **_as_json(reply, mix, persona, blend is not None)}
            asked = {"system": system, **asdict(sampling)}
            print_json({**answer, **asked, "guard": guard_as_json(guard), "notes": project.notes})
        else:
            events = engine.stream(messages, mix=mix, system=system, guard=guard)
            write_stream(with_badges(events) if guard is not None else (event.text for event in events))
    if guard is not None and guard.refused:
        click.get_current_context().exit(1)


def prompt_text(prompt: str) -> str:
    """Return the prompt, from stdin if it is a dash."""
    text = sys.stdin.read(_MOST_CHARACTERS + 1) if prompt == "-" else prompt
    if len(text) > _MOST_CHARACTERS:
        raise PersonaTuiError(f"the prompt is longer than {_MOST_CHARACTERS:,} characters")
    if "\0" in text:
        raise PersonaTuiError("the prompt has zero bytes: it is UTF-16, or no text; UTF-8 is needed")
    if not text.strip():
        raise click.UsageError("The prompt is empty.", click.get_current_context())
    return text.strip()


def guard_as_json(guard: Guard | None) -> dict[str, Any] | None:
    """Return what a guard found, as results have it; None = it was off."""
    return None if guard is None or guard.mode == "off" else {**guard.record(), "refused": guard.refused}


def _as_json(reply: Reply, mix: Mix, persona: str | None, blended: bool) -> dict[str, Any]:
    from persona_tui.datasets.turns import turn

    spoken = turn("assistant", reply.text)
    return {
        "response": spoken.content,
        **({"thought": spoken.thought} if spoken.thought else {}),
        "persona": persona,
        "blend": dict(mix.weights) if blended else None,
        "strength": mix.strength,
        "capping": reply.floor is not None,
        "floor": None if reply.floor is None else asdict(reply.floor),
        "plausibility": mix.plausibility,
        "finish": reply.finish,
        "nats_from_plain": None if reply.nats_from_plain is None else round(reply.nats_from_plain, 4),
        "prompt_tokens": reply.prompt_tokens,
        "tokens": reply.tokens,
        "seconds": round(reply.seconds, 3),
        "tokens_per_second": round(reply.tokens / reply.seconds, 2) if reply.seconds > 0 else 0.0,
    }


def write_stream(pieces: Iterable[str]) -> None:
    """Write a reply to stdout as it comes, without white space around it, and end the line."""
    on_screen = sys.stdout.isatty()
    begun = False
    try:
        for piece in trimmed(pieces):
            begun = True
            sys.stdout.write(_dimmed(printable(piece)) if on_screen else piece)
            sys.stdout.flush()
    except PersonaTuiError:
        if begun:
            sys.stdout.write("\n")
        raise
    sys.stdout.write(f"{_NORMAL}\n" if on_screen else "\n")
    sys.stdout.flush()


def with_badges(events: Iterable[TokenEvent]) -> Iterator[str]:
    """Return the texts of a reply; what a guard says of the message, a policy on the way and the guard at
    last of the reply is noted.
    """
    from persona_tui.monitors.guard import breaches_of, verdict_of

    last: Verdict | None = None
    for event in events:
        verdict = verdict_of(event)
        if verdict is not None and verdict.about == "message":
            note(f"guard: message {verdict.badge}")
        if verdict is not None and event.finish == "refused":
            note(verdict.refusal)
        for breach in breaches_of(event):
            note(f"policy: {breach}")
        last = verdict or last
        yield event.text
    if last is not None and last.about == "reply":
        note(f"guard: reply {last.badge}")


_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"


def _dimmed(piece: str) -> str:
    """Return a piece of a reply for a terminal: from `<think>` on dimmed, until `</think>`."""
    return piece.replace("<think>", f"{_DIM}<think>").replace("</think>", f"</think>{_NORMAL}")


def trimmed(pieces: Iterable[str]) -> Iterator[str]:
    """Return the same text without white space at its ends: what may be the end is held back until more
    comes.
    """
    begun, held = False, ""
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        held = text[len(text.rstrip()) :]
        text = text.rstrip()
        if text:
            begun = True
            yield text
