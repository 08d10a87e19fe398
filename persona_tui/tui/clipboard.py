"""The system's clipboard, by whichever program there is for it.

Terminals take text through an escape sequence (OSC 52), and some ignore it. A program such as `xclip` reaches
the clipboard of the machine that the app runs on. Both are tried: neither can tell whether it was heard.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

TIMEOUT = 2.0  # seconds; a clipboard without a display may wait for one

_WAYLAND: Sequence[Sequence[str]] = (("wl-copy",),)
_X11: Sequence[Sequence[str]] = (("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input"))
_ANYWHERE: Sequence[Sequence[str]] = (("pbcopy",), ("clip.exe",), ("termux-clipboard-set",))


def clipboard_command(environment: Mapping[str, str] | None = None) -> list[str] | None:
    """Return the command that takes what should be copied on its stdin; None if there is none here."""
    values = os.environ if environment is None else environment
    candidates = [*_ANYWHERE]
    if values.get("WAYLAND_DISPLAY"):
        candidates = [*_WAYLAND, *candidates]
    if values.get("DISPLAY"):
        candidates = [*candidates, *_X11]
    return next((list(each) for each in candidates if shutil.which(each[0], path=values.get("PATH"))), None)


def copy(text: str, command: Sequence[str]) -> str | None:
    """Hand a text to a clipboard program; blocks for at most `TIMEOUT` seconds.

    Returns:
        What went wrong, in a few words; None if nothing did.
    """
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "surrogatepass"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return f"{command[0]} failed with status {done.returncode}" if done.returncode else None
