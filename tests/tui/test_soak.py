"""Random keys and sizes while a reply is written and a persona is made: nothing may break."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .driving import press, running, say

NAMED = "enter space tab shift+tab escape up down left right home end pageup pagedown backspace minus"
CONTROL = "ctrl+up ctrl+down ctrl+p ctrl+j f1 f2 f3 f4 f5 f6 f7 alt+left alt+right alt+up"
KEYS = [*NAMED.split(" "), *CONTROL.split(" "), *"ndisca/0.5"]
SIZES = [(80, 24), (120, 40), (200, 60), (30, 8)]
PRESSES = 80


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_key_breaks_anything(workspace: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with running(workspace, SIZES[seed % 2]) as (app, pilot):
        await say(pilot, "/create wizard a grumpy old wizard")
        await say(pilot, "Hello")
        for _ in range(PRESSES):
            if chance.random() < 0.05:
                await pilot.resize_terminal(*chance.choice(SIZES))
            await press(pilot, chance.choice(KEYS))
        assert app.is_running
    model = app.runtime.model.model
    assert not any(module._forward_hooks for module in model.modules())
