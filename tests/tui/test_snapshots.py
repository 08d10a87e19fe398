"""What the screen looks like, as text and as contrasts; `UPDATE_SNAPSHOTS=1 pytest ...` takes new ones.

Only still pictures without anything measured: no persona is there, nothing is generated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from persona_tui.chat import Conversation, SessionStore
from persona_tui.core.workspace import Workspace
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.messages import PreparationPriced

from .driving import picture, press, running, until

pytestmark = pytest.mark.slow

NINE_MINUTES = 540.0
SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = [(80, 24), (120, 40), (200, 60)]
THEMES = ["textual-dark", "textual-light"]
LEAST_CONTRAST = 2.5  # of letters and digits; for what is said in passing, too

REPLY = """A plan has **three** parts:

1. begin with what is *near*
2. wait for the rest

```python
for step in plan:
    walk(step)
```
"""


@pytest.fixture
def bare(workspace: Path) -> Path:
    """A workspace without vectors."""
    shutil.rmtree(workspace / "vectors")
    return workspace


def write_session(workspace: Path) -> str:
    """Write a session of two turns; its id."""
    log = SessionStore(Workspace(workspace)).create("builtin")
    conversation = Conversation(log.record)
    for question, answer in (("How do I begin?", REPLY), ("And then?", "Then you *rest*.")):
        conversation.add_user(question)
        reply = conversation.begin_reply()
        conversation.extend(reply, answer)
        conversation.finish(reply, tokens=12)
    log.close()
    return log.id


async def still(pilot: Pilot[None], app: PersonaApp) -> None:
    """Wait until nothing moves: the model is loaded, and everything was painted."""
    await until(pilot, lambda: app.jobs.running is None, "the model's job has ended")
    await until(pilot, lambda: app.people._preparation is not None, "the time is known that preparing takes")
    app.people.preparation_priced(PreparationPriced(app.project, NINE_MINUTES))  # on any machine
    app.clear_notifications()
    await press(pilot, "escape")
    await pilot.pause()
    await until(pilot, lambda: "loading" not in picture(app), "the status")


def compare(name: str, found: str) -> None:
    """Compare with what it looked like when the snapshot was taken."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found + "\n", encoding="utf-8")
    assert found + "\n" == path.read_text(encoding="utf-8")


def contrasts(app: PersonaApp) -> Iterator[tuple[float, str]]:
    """Return the contrast of every piece with letters or digits, as the WCAG have it, from 1 to 21."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            style = segment.style
            if style is None or style.color is None or style.bgcolor is None:
                continue
            if any(character.isalnum() for character in segment.text):
                yield (
                    contrast(style.color.get_truecolor(), style.bgcolor.get_truecolor()),
                    segment.text,
                )


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast of two colours."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: tuple[int, int, int]) -> float:
    """Return how bright a colour is, from 0 to 1."""
    parts = [value / 255 for value in colour]
    red, green, blue = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_an_empty_chat(bare: Path, size: tuple[int, int]) -> None:
    async with running(bare, size) as (app, pilot):
        await still(pilot, app)
        compare(f"empty_{size[0]}x{size[1]}", picture(app))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("theme", THEMES)
async def test_a_conversation(bare: Path, size: tuple[int, int], theme: str) -> None:
    async with running(bare, size, resume=write_session(bare)) as (app, pilot):
        app.theme = theme
        await still(pilot, app)
        compare(f"conversation_{size[0]}x{size[1]}", picture(app))
        weakest = min(contrasts(app))
        assert weakest[0] >= LEAST_CONTRAST, weakest
