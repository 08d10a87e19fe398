"""Starting: what is imported, which keys and colours hold, what else writes to the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from persona_tui.core.documents import printable
from persona_tui.core.errors import ConfigError
from persona_tui.tui.bindings import known_ids
from persona_tui.tui.keys import ACTIONS
from persona_tui.tui.theme import choose_theme

from .driving import notes, press, running

THEMES = ("textual-dark", "textual-light", "nord")

HEAVY = "import sys, persona_tui.tui.app; print([m for m in ('torch', 'transformers') if m in sys.modules])"

WRITTEN = r"""
import os
from persona_tui.tui.terminal import written_lines
taken = []
def take(line):
    taken.append(line)
    return "keep" not in line
with written_lines(take):
    os.write(1, b"from native code\n")
    os.write(2, b"one\nkeep me\n")
print(taken)
"""


def run(code: str) -> tuple[str, str]:
    """Run code in a process of its own; its stdout and stderr."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip(), result.stderr.strip()


def test_neither_torch_nor_transformers_before_the_first_paint() -> None:
    assert run(HEAVY) == ("[]", "")


def test_what_libraries_write_is_taken_and_the_rest_is_kept() -> None:
    assert run(WRITTEN) == ("['from native code', 'one', 'keep me']", "keep me")


def test_ids_are_unique_and_can_be_set_on_the_command_line() -> None:
    ids = known_ids()
    assert len(ids) == len(set(ids))
    assert all(name.replace("_", "").isalnum() for name in ids)
    assert all(action.help and action.title for action in ACTIONS)


@pytest.mark.parametrize(
    ("wanted", "colours", "theme"),
    [
        ("auto", "", "textual-dark"),
        ("auto", "0;15", "textual-light"),
        ("auto", "15;0", "textual-dark"),
        ("light", "15;0", "textual-light"),
        ("nord", "", "nord"),
    ],
)
def test_themes(wanted: str, colours: str, theme: str) -> None:
    assert choose_theme(wanted, THEMES, {"COLORFGBG": colours}) == theme


def test_a_terminal_with_16_colours_keeps_its_own() -> None:
    themes = (*THEMES, "ansi-dark", "ansi-light")
    assert choose_theme("auto", themes, {}, "standard") == "ansi-dark"
    assert choose_theme("auto", themes, {"COLORFGBG": "0;15"}, "standard") == "ansi-light"
    assert choose_theme("auto", themes, {}, "256") == "textual-dark"
    assert choose_theme("dark", themes, {}, "standard") == "textual-dark"
    assert choose_theme("auto", themes, {"NO_COLOR": "1"}, "standard") == "textual-dark"


def test_an_unknown_theme_is_named() -> None:
    with pytest.raises(ConfigError, match='Did you mean "nord"'):
        choose_theme("nort", THEMES, {})


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\n\tc\x9b") == "a�[31mb�\n\tc�"


async def test_keys_can_be_remapped(workspace: Path) -> None:
    with (workspace / "config.yaml").open("a", encoding="utf-8") as config:
        config.write("interface: {keys: {personas: f9, prompt_newline: ctrl+n, personaz: f8}}\n")
    async with running(workspace) as (app, pilot):
        assert any('Did you mean "personas"?' in note for note in notes(app))
        await press(pilot, "a", "ctrl+n", "b")
        assert app.main.prompt.text == "a\nb"
        await press(pilot, "f2")
        assert app.focused is app.main.prompt
        await press(pilot, "f9")
        assert app.focused is not None and app.focused.id == "persona-list"
        assert "f9" in app.key_label("personas")
