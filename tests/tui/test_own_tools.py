"""The user's own programs: editor, clipboard; and what was sent before."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.clipboard import clipboard_command, copy
from persona_tui.tui.editor import edit, editor_command
from persona_tui.tui.widgets.prompt import KEPT, PromptHistory

from .driving import press, running


def program(folder: Path, name: str, code: str) -> Path:
    """Write a program in Python."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{code}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- editor


def test_the_editor_changes_the_text(tmp_path: Path) -> None:
    upper = program(
        tmp_path,
        "upper",
        "p = sys.argv[-1]; t = open(p).read().upper(); open(p, 'w').write(t + sys.argv[1] + '\\n')",
    )
    assert edit("one\ntwo", [str(upper), "!"]) == "ONE\nTWO!"


def test_a_failing_editor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PersonaTuiError, match="ended with status 3"):
        edit("text", [str(program(tmp_path, "fail", "sys.exit(3)"))])


def test_visual_goes_before_editor(tmp_path: Path) -> None:
    one, two = program(tmp_path, "one", ""), program(tmp_path, "two", "")
    assert editor_command({"VISUAL": f"{one} -w", "EDITOR": str(two)}) == [str(one), "-w"]
    assert editor_command({"EDITOR": str(two)}) == [str(two)]
    with pytest.raises(PersonaTuiError, match="nowhere was not found"):
        editor_command({"EDITOR": "nowhere"})


async def test_without_a_terminal_to_hand_over_ctrl_g_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VISUAL", str(program(tmp_path, "one", "")))
    async with running(workspace) as (app, pilot):
        await press(pilot, *"text", "ctrl+g")
        assert any("editor" in toast.message for toast in app._notifications)
        assert app.main.prompt.text == "text"


# --- clipboard


def test_the_program_for_the_clipboard_depends_on_the_display(tmp_path: Path) -> None:
    for name in ("wl-copy", "xclip"):
        program(tmp_path, name, "")
    path = str(tmp_path)
    assert clipboard_command({"PATH": path}) is None
    assert clipboard_command({"PATH": path, "DISPLAY": ":0"}) == ["xclip", "-selection", "clipboard"]
    assert clipboard_command({"PATH": path, "DISPLAY": ":0", "WAYLAND_DISPLAY": "w"}) == ["wl-copy"]


def test_text_is_handed_to_the_program(tmp_path: Path) -> None:
    target = tmp_path / "clipboard"
    keep = program(tmp_path, "keep", f"open({str(target)!r}, 'wb').write(sys.stdin.buffer.read())")
    assert copy("héllo\n", [str(keep)]) is None
    assert target.read_text(encoding="utf-8") == "héllo\n"
    fail = program(tmp_path, "fail", "sys.exit(1)")
    assert copy("x", [str(fail)]) == f"{fail} failed with status 1"
    assert "nowhere" in str(copy("x", ["nowhere"]))


# --- history


def test_history_is_walked_and_the_draft_comes_back(tmp_path: Path) -> None:
    history = PromptHistory(tmp_path / "history")
    for text in ("one", "two", "two"):
        history.add(text)
    assert [history.move(-1, "draft"), history.move(-1, ""), history.move(-1, "")] == ["two", "one", None]
    assert [history.move(1, ""), history.move(1, ""), history.move(1, "")] == ["two", "draft", None]


def test_history_outlives_the_run_and_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "sessions" / "history"
    history = PromptHistory(path)
    for number in range(2 * KEPT + 10):
        history.add(f"text\n{number}")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 2 * KEPT
    path.open("a").write("not json\n7\n" + json.dumps("last") + "\n")
    again = PromptHistory(path)
    assert again.move(-1, "") == "last" and again.move(-1, "") == f"text\n{2 * KEPT + 9}"
