"""`plot` and `sweep`: pictures of a model and its personas, and one prompt at several strengths."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from persona_tui.cli.generate import prompt_text
from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.options import (
    Invocation,
    answer_options,
    chosen_weights,
    override_sampling,
    pass_invocation,
)
from persona_tui.cli.output import check_free, echo, force_option, json_option, print_json
from persona_tui.core.errors import PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.chat import Conversation
    from persona_tui.model import Message
    from persona_tui.project.project import Project

KINDS = ("map", "cosines", "drift", "layers", "calibration")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help=".svg, .png or .pdf.",
)
@click.option("--session", "-s", metavar="SESSION", help="A conversation; last = the newest.")
@click.option("--persona", metavar="NAME", help="For map: the present mix, as a point.")
@click.option("--layer", type=int, metavar="N", help="For map: the layer at which personas are compared.")
@force_option
@pass_invocation
def plot(
    invocation: Invocation,
    kind: str,
    name: str | None,
    output: Path,
    session: str | None,
    persona: str | None,
    layer: int | None,
    force: bool,
) -> None:
    """Draw a picture into FILE.

    \b
    map                   personas, traits and axes in the plane of their first two principal
                          components; with --session, the conversation as a path
    cosines               how alike the personas are, ordered by clustering
    drift [NAME]          --session along an axis, a persona or trait:NAME, reply by reply
    layers NAME           a direction over layers and tokens, in the last reply of --session,
                          as it was spoken and as the unsteered model reads it
    calibration NAME      expression and loss of a persona over strength
    """
    from persona_tui.pictures import draw

    draw.check_picture(output)
    check_free(output, force=force)
    if name is None and kind in ("layers", "calibration"):
        raise click.UsageError(f"plot {kind} needs a NAME.", click.get_current_context())
    if name is not None and kind in ("map", "cosines"):
        raise click.UsageError(f"plot {kind} takes no NAME.", click.get_current_context())
    if kind in ("drift", "layers") and session is None:
        raise click.UsageError(f"plot {kind} needs a --session.", click.get_current_context())
    project = invocation.project
    conversation = _conversation(project, session) if session is not None else None
    if kind == "map":
        _map(project, conversation, persona, layer, output)
    elif kind == "cosines":
        _cosines(project, output)
    elif kind == "calibration":
        _calibration(project, str(name), output)
    elif kind == "drift" and conversation is not None:
        _drift(project, conversation, name, output)
    elif conversation is not None:
        _layers(project, conversation, str(name), output)
    echo(f"Wrote {output}.")


def _conversation(project: Project, session: str) -> Conversation:
    from persona_tui.chat import SessionStore

    store = SessionStore(project.workspace)
    return store.load(store.resolve(session))[0]


def _map(
    project: Project, conversation: Conversation | None, persona: str | None, layer: int | None, output: Path
) -> None:
    from persona_tui.chat.reread import turns_of
    from persona_tui.pictures.draw import draw_map
    from persona_tui.pictures.space import persona_map

    turns = turns_of(conversation) if conversation is not None else []
    mix = replace(project.default_mix(), weights={persona: 1.0}) if persona is not None else None
    draw_map(persona_map(project.engine, mix, turns, layer), output)


def _cosines(project: Project, output: Path) -> None:
    from persona_tui.pictures.cosines import cosine_grid
    from persona_tui.pictures.draw import draw_cosines

    draw_cosines(cosine_grid(project.personas), output)


def _calibration(project: Project, name: str, output: Path) -> None:
    from persona_tui.pictures.draw import draw_calibration

    calibration = project.personas.get(name).calibration
    if calibration is None:
        raise PersonaTuiError(f"{name} has no curve: calibrate it first, with system prompts.")
    draw_calibration(name, calibration, output)


def _drift(project: Project, conversation: Conversation, name: str | None, output: Path) -> None:
    from persona_tui.chat.reread import turns_of
    from persona_tui.pictures.draw import draw_drift
    from persona_tui.pictures.drift import drift

    engine, axes = project.engine, project.personas.axes
    names = [name] if name is not None else list(axes.names) if axes is not None else []
    if not names:
        raise PersonaTuiError("Without axes, drift needs a NAME: a persona, or trait:NAME.")
    found = [drift(engine, turns_of(conversation), each) for each in names]
    draw_drift(found, output)
    for each in found:
        if each.weak:
            echo(f"{each.name} is weak: {each.weak}.")
        if each.left_at is not None:
            echo(f"{each.name}: leaves the range of ordinary replies at reply {each.left_at}.")


def _layers(project: Project, conversation: Conversation, name: str, output: Path) -> None:
    from persona_tui.chat.reread import spoken
    from persona_tui.pictures.draw import draw_heat
    from persona_tui.pictures.heat import heat_map

    node = conversation.last_reply()
    if node is None or not node.text.strip():
        raise PersonaTuiError("The conversation has no replies yet.")
    said = spoken(conversation, node.id)
    with project.model.rendered_as(said.rendering):
        found = heat_map(project.engine, said.messages, said.reply, name, said.mixes)
    draw_heat(found, output)


@click.command()
@click.argument("prompt")
@click.option("--persona", metavar="NAME", help="Who answers.")
@click.option("--blend", metavar="A:W,B:W", help="A blend instead.")
@click.option("--strengths", metavar="S,S,...", default="0,0.15,0.3,0.5,0.8", show_default=True)
@answer_options("Seed for every reply.")
@json_option
@pass_invocation
def sweep(
    invocation: Invocation,
    /,
    prompt: str,
    persona: str | None,
    blend: str | None,
    strengths: str,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Answer PROMPT (- reads it from stdin) at several strengths, in one batch with one seed.

    Beside each reply: nats from plain (how much more probable steering made its words), the share of repeated
    phrases, and expression: 0 = unsteered, 1 = what the persona's system prompt achieves on this prompt.

    A guard in the settings is not asked: what comes out is for measuring.
    """
    from persona_tui.core.mix import Mix
    from persona_tui.pictures import sweep as sweeping

    project = invocation.project
    override_sampling(project, max_new_tokens, temperature, seed)
    weights = chosen_weights(project, persona, blend)
    if not weights:
        raise click.UsageError("--persona or --blend is needed.", click.get_current_context())
    chosen = _numbers(strengths)
    for each in chosen:  # a bad one is an error before the model loads
        Mix(weights, each)
    mix = replace(project.default_mix(), weights=weights)
    text = prompt_text(prompt)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    with quick_interrupt():
        rows = sweeping.sweep(project.engine, messages, mix, chosen)
    if as_json:
        print_json({"prompt": text, "weights": weights, "replies": [asdict(row) for row in rows]})
        return
    for row in rows:
        echo(f"--- {', '.join([f'strength {row.strength:g}', *row.figures])}\n{row.text}\n")


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        raise click.BadParameter(
            f'"{text}" is not a list of numbers.', click.get_current_context(), param_hint="--strengths"
        ) from None
