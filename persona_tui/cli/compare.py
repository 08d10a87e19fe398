"""`compare`: one prompt, two settings, the answers beside each other."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.generate import guard_as_json, prompt_text
from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.options import Invocation, answer_options, override_sampling, pass_invocation
from persona_tui.cli.output import floor_as_json, json_option, print_json
from persona_tui.cli.progress import note
from persona_tui.core.documents import printable
from persona_tui.core.wording import Span, differences

if TYPE_CHECKING:
    from persona_tui.chat.replies import ChatReply, ReplyRow

_NARROWEST = 70  # below this, one answer stands above the other
_GAP = "  "


@click.command()
@click.argument("prompt")
@click.option("--a", "first", metavar="SETTING", required=True, help="For example persona=sage,strength=0.3.")
@click.option(
    "--b",
    "second",
    metavar="SETTING",
    default="persona=none",
    show_default=True,
    help="The setting to compare with.",
)
@answer_options("Seed for both answers.")
@json_option
@pass_invocation
def compare(
    invocation: Invocation,
    /,
    prompt: str,
    first: str,
    second: str,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Answer PROMPT (- reads it from stdin) with two settings, in one batch with one seed.

    A SETTING has persona=NAME (or none) or blend=A:0.5+B:0.3, strength=X, capping=on|off and
    plausibility=Y, with commas between; anything left out is taken from config.yaml. On a terminal the words
    that differ are coloured.
    """
    from persona_tui.chat import Conversation
    from persona_tui.chat.replies import ChatReply
    from persona_tui.chat.voice import parse_setting

    project = invocation.project
    override_sampling(project, max_new_tokens, temperature, seed)
    mixes = [parse_setting(text, project.default_mix()) for text in (first, second)]
    for mix in mixes:
        for name in mix.weights:
            project.personas.get(name)
    reply = ChatReply.beside(Conversation(system=system), mixes, prompt_text(prompt))
    guard = project.new_guard()
    with quick_interrupt():
        engine = project.engine
        for _ in reply.write(engine, engine.sampling, guard):
            pass
    if as_json:
        print_json({**_as_json(reply), "guard": guard_as_json(guard), "notes": project.notes})
    elif guard.refused and reply.empty:
        note(reply.refusal.refusal if reply.refusal is not None else "Not answered.")
    else:
        click.echo(side_by_side(reply.rows, shutil.get_terminal_size().columns))
        for row in reply.rows:
            for verdict in row.verdicts.values():
                note(f"guard: {verdict.about} {verdict.badge}")
        if reply.refusal is not None:
            note(reply.refusal.refusal)
    if guard.refused:
        click.get_current_context().exit(1)


def _as_json(reply: ChatReply) -> dict[str, Any]:
    texts = [answer.text.strip() for answer in reply.rows]
    return {
        "seed": reply.seed,
        "prompt_tokens": reply.prompt_tokens,
        "answers": [
            {
                "response": text,
                "differs": spans,  # the places in it whose words the other answer does not have there
                "weights": dict(answer.mix.weights),
                "strength": answer.mix.strength,
                "capping": answer.floor is not None,
                "floor": floor_as_json(answer.floor),
                "plausibility": answer.mix.plausibility,
                "nats_from_plain": answer.nats_from_plain,
                "finish": answer.finish,
                "tokens": answer.tokens,
                "capped_tokens": answer.capped,
                "seconds": round(answer.seconds, 3),
            }
            for answer, text, spans in zip(reply.rows, texts, differences(*texts), strict=True)
        ],
    }


def side_by_side(answers: list[ReplyRow], width: int) -> str:
    """Two answers in columns, or one above the other where there is no room; what differs has a colour."""
    from persona_tui.chat.voice import setting_in_words

    heads = [
        f"{letter}: {setting_in_words(each.mix, each.floor is not None)}"
        for letter, each in zip("AB", answers, strict=False)
    ]
    on_screen = sys.stdout.isatty()
    texts = [printable(each.text.strip()) if on_screen else each.text.strip() for each in answers]
    columns = (width - len(_GAP)) // 2 if on_screen and width >= _NARROWEST else None
    both = [
        _coloured(_wrapped(text, columns), text, spans if on_screen else ())
        for text, spans in zip(texts, differences(*texts), strict=True)
    ]
    if columns is None:
        return "\n\n".join("\n".join([head, *lines]) for head, lines in zip(heads, both, strict=True))
    left, right = ([head[:columns], "", *lines] for head, lines in zip(heads, both, strict=True))
    return "\n".join(
        f"{one}{' ' * (columns - len(click.unstyle(one)))}{_GAP}{other}".rstrip()
        for one, other in zip_longest(left, right, fillvalue="")
    )


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return text.split("\n")
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]


def _coloured(lines: Sequence[str], text: str, spans: Sequence[Span]) -> list[str]:
    """Colour the parts of a text that differ. Its lines have all of its characters but some white space."""
    if not spans or os.environ.get("NO_COLOR"):
        return list(lines)
    inside = {place for span in spans for place in range(*span)}
    differs = iter([place in inside for place, each in enumerate(text) if not each.isspace()])
    return [_coloured_line(line, differs) for line in lines]


def _coloured_line(line: str, differs: Iterator[bool]) -> str:
    characters = [(each, not each.isspace() and next(differs)) for each in line]
    parts = (
        (different, "".join(each for each, _ in part))
        for different, part in groupby(characters, lambda pair: pair[1])
    )
    return "".join(click.style(part, fg="magenta") if different else part for different, part in parts)
