"""`trait`: directions from contrasted conversations, and what conversations score on them."""

from __future__ import annotations

import click

from persona_tui.cli.trait.data import compare, curate
from persona_tui.cli.trait.making import calibrate, extract, list_
from persona_tui.cli.trait.measuring import check, score


@click.group()
def trait() -> None:
    """Measure conversations: empathy, crises, flattery, limits.

    A trait is made from contrasting conversations (datasets/traits, or a file of your own). Scores are on one
    scale: 1 is where a trait's high examples lie on average, -1 where the low ones do.
    """


for command in (extract, list_, score, check, calibrate, curate, compare):
    trait.add_command(command)
