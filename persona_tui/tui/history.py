"""What was sent before, also in earlier runs: for the up key in the prompt."""

from __future__ import annotations

import json
from pathlib import Path

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.files import atomic_write_text

KEPT = 500  # texts in the file


class PromptHistory:
    """Texts, oldest first, and a place among them; its end stands for what is being written now."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: a file with one JSON string a line, which need not exist; None = only this run counts.
        """
        self._path = path
        self._texts = _read(path)[-KEPT:] if path is not None else []
        self._place = len(self._texts)
        self._draft = ""

    def add(self, text: str) -> None:
        """Remember a text, and go back to the end.

        Raises:
            OSError: the file cannot be written; the text is remembered for this run.
        """
        is_new = self._texts[-1:] != [text]
        if is_new:
            self._texts.append(text)
        self._place = len(self._texts)
        if is_new and self._path is not None:
            self._write(self._path, text)

    def move(self, by: int, draft: str) -> str | None:
        """Return the text before or after the present one; None beyond either end.

        Args:
            by: -1 for the one before, 1 for the one after.
            draft: what is written now; it is what comes after the last one.
        """
        place = self._place + by
        if not 0 <= place <= len(self._texts):
            return None
        if self._place == len(self._texts):
            self._draft = draft
        self._place = place
        return self._texts[place] if place < len(self._texts) else self._draft

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(self._texts) > 2 * KEPT:
            self._texts = self._texts[-KEPT:]
            self._place = len(self._texts)
            atomic_write_text(path, "".join(f"{json.dumps(each)}\n" for each in self._texts))
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(text)}\n")


def _read(path: Path) -> list[str]:
    """Return the texts of a file; lines that are none are passed over: at worst one is forgotten."""
    try:
        lines = read_plain(path).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [text for line in lines if (text := _parsed(line))]


def _parsed(line: str) -> str | None:
    try:
        text = json_value(line, halves=True)
    except ValueError:
        return None
    return text if isinstance(text, str) else None
