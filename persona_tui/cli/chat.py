"""`chat`: the app on a terminal, lines everywhere else."""

from __future__ import annotations

import os
import sys

import click

from persona_tui.cli.options import chosen_weights, persona_options
from persona_tui.cli.root import Invocation, pass_invocation


@click.command()
@persona_options
@click.option("--plain", is_flag=True, help="Lines instead of the full-screen app.")
@pass_invocation
def chat(
    invocation: Invocation, /, persona: str | None, strength: float | None, blend: str | None, plain: bool
) -> None:
    """Talk to the model.

    Opens the app. With --plain, or when input or output is no terminal: one line in, one reply out.
    """
    runtime = invocation.runtime
    weights = chosen_weights(runtime, persona, blend)
    if plain or not has_screen():
        from persona_tui.cli.line_chat import LineSession, line_chat

        line_chat(LineSession.start(runtime, weights, strength))
    else:
        from persona_tui.tui.app import run_app

        run_app(runtime, strength=strength, blend=weights)


def has_screen() -> bool:
    """Whether there is a terminal that a full-screen app can use."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
