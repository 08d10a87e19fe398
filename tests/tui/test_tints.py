"""Replies tinted token by token in the chat itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.mix import Mix
from persona_tui.tui.blocks import MessageBlock

from .driving import notes, press, reply, running, say, until

SAGE = Mix({"sage": 1.0}, 0.5, plausibility=0.005)
COLOURS = ("$warning", "$success", "$error")


def styles(block: MessageBlock) -> set[str]:
    return {str(span.style) for line in block.lines(60) for span in line.spans}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_a_key_tints_by_surprise_steering_and_direction(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        await reply(pilot, app, "Tell me about bread.")
        replies = [block for block in app.main.chat.messages if block.role == "assistant"]
        plain = [[line.plain for line in block.lines(60)] for block in replies]
        for mode in ("surprise", "steering", "direction"):
            await press(pilot, "alt+t")
            assert app.tints.mode == mode
            await until(pilot, lambda: all(block._tint is not None for block in replies), f"tinted by {mode}")
            coloured = styles(replies[0]) | styles(replies[1])
            assert mode == "direction" or any(
                f"on {colour}" in each for each in coloured for colour in COLOURS
            )
        shown = " ".join(" ".join(line.plain for line in replies[1].lines(60)[1:]).split())
        assert shown == " ".join(replies[1].source.split())
        await press(pilot, "alt+t")
        assert [[line.plain for line in block.lines(60)] for block in replies] == plain


@pytest.mark.slow
async def test_the_reply_that_comes_is_tinted_once_it_is_there(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        await say(pilot, "/tint steering")
        await reply(pilot, app, "Who are you?")
        block = next(block for block in app.main.chat.messages if block.role == "assistant")
        await until(pilot, lambda: block._tint is not None, "it is tinted")
        await press(pilot, "alt+up", "t")
        assert app.tints.mode == "direction"
        await say(pilot, "/tint purple")
        assert any("no tint" in note for note in notes(app))
