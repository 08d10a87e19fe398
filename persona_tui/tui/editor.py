"""The user's own editor, for long texts: $VISUAL, else $EDITOR, else what is there."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from textual.app import App, SuspendNotSupported

from persona_tui.core.errors import PersonaTuiError

_COMMON = ("nano", "vim", "vi", "emacs")


def editor_command(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the command to which a file's name is added.

    Raises:
        PersonaTuiError: no editor is configured and none was found, or what is configured does not exist.
    """
    values = os.environ if environment is None else environment
    wanted = values.get("VISUAL") or values.get("EDITOR") or ""
    command = shlex.split(wanted) or [name for name in _COMMON if shutil.which(name)][:1]
    if not command:
        raise PersonaTuiError("there is no editor: name one in the environment variable EDITOR")
    if shutil.which(command[0]) is None:
        raise PersonaTuiError(f"the editor {command[0]} was not found: set $VISUAL or $EDITOR")
    return command


def edit(text: str, command: list[str]) -> str:
    """Let the user change a text in an editor, which has the terminal meanwhile.

    Args:
        text: what it begins with.
        command: as `editor_command` returns it.

    Returns:
        The text without a line end at its end.

    Raises:
        PersonaTuiError: the editor failed, or its file is not text.
    """
    with tempfile.TemporaryDirectory(prefix="persona-tui-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            # stdout and stderr are redirected into the log while the app runs; an editor draws on them.
            done = subprocess.run(
                [*command, str(path)], check=False, stdout=sys.__stdout__, stderr=sys.__stderr__
            )
            changed = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PersonaTuiError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise PersonaTuiError(f"{command[0]} ended with status {done.returncode}: the text is unchanged")
    return changed.removesuffix("\n")


def edit_in_own_editor(app: App[None], text: str) -> str:
    """Have a text changed in the user's own editor; the app waits meanwhile, the model's thread does not.

    Raises:
        PersonaTuiError: there is no editor, it failed, or this terminal cannot be handed over.
    """
    command = editor_command()
    try:
        with app.suspend():
            return edit(text, command)
    except SuspendNotSupported as error:
        raise PersonaTuiError("this terminal cannot be handed to an editor") from error
