"""`VectorStore`: one folder of one model, a vector file for each name. Opening it reads nothing.

What a damaged file means is the same everywhere: it is listed, its summary is the error, and using it raises
that error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from persona_tui.core.errors import PersonaTuiError, VectorFileError, WorkspaceError, nearest
from persona_tui.core.files import atomic_write_text
from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import safe_name
from persona_tui.vectors.files import SUFFIX, check_model, read_metadata

SUMMARY_FILE = "summary.json"
_IMPORTED = (".pt", ".pth", ".bin", ".gguf", ".svec")


class VectorStore:
    """Lists, finds, checks and deletes the vector files in one folder.

    Attributes:
        folder: where the files are; it need not exist.
        fingerprint: of the loaded model; files made on another one are refused. None: not checked.
        model_name: what to call the model in errors.
        sketch: of the loaded model's weights: with it, files made on a near copy of it are used.
        on_copy: told that, in one sentence, whenever such a file is read.
    """

    word: ClassVar[str] = "persona"
    prefix: ClassVar[str] = ""  # what names may begin with, and files do not
    missing: ClassVar[type[PersonaTuiError]] = VectorFileError
    aliases: ClassVar[Mapping[str, str]] = {}  # other names, which are only looked up

    def __init__(
        self,
        folder: Path,
        fingerprint: str | None = None,
        model_name: str | None = None,
        sketch: ModelSketch | None = None,
        on_copy: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.model_name = model_name or folder.parent.name
        self.sketch = sketch
        self.on_copy = on_copy or (lambda note: None)

    def names(self) -> list[str]:
        """Return the names there are, sorted and without a prefix."""
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if _is_vector_file(path))

    def strangers(self) -> list[str]:
        """Return a sentence about each file here that is of a form which is only imported."""
        found = sorted(path for path in self.folder.glob("*") if path.suffix in _IMPORTED)
        return [f"{path} is not read from here: `persona-tui import {path}` does that." for path in found]

    def path_of(self, name: str) -> Path:
        """Return the file of a name, whether it exists or not.

        Raises:
            WorkspaceError: the name cannot be a file name.
        """
        return self.folder / f"{safe_name(name.removeprefix(self.prefix))}{SUFFIX}"

    def find(self, name: str) -> Path:
        """Return the file of a name; nothing is read.

        Raises:
            PersonaTuiError: there is none (of the class that `missing` names).
        """
        path = self.path_of(name)
        if not path.is_file() and (other := self.aliases.get(name.removeprefix(self.prefix))):
            path = self.path_of(other)
        if not path.is_file():
            known = [f"{self.prefix if name.startswith(self.prefix) else ''}{each}" for each in self.names()]
            there = nearest(name, known) or (f" There are {', '.join(known)}." if known else "")
            advice = self._advice(name, bool(there))
            raise self.missing(f'There is no {self.word} "{name}" for {self.model_name}.{there}{advice}')
        return path

    def _advice(self, name: str, others: bool) -> str:
        """What to do where a name does not exist; `others` = the names there are have been told."""
        return "" if others else " There are none yet."

    def check(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Raise VectorFileError if a file's metadata says that it was made on another model."""
        if note := check_model(path, metadata, self.fingerprint, self.model_name, self.sketch):
            self.on_copy(note)

    def about(self, name: str) -> dict[str, Any]:
        """Return a file's metadata without reading its tensors.

        Raises:
            PersonaTuiError: no file has this name (of the class that `missing` names).
            VectorFileError: the file is damaged or belongs to another model.
        """
        path = self.find(name)
        metadata = read_metadata(path)
        self.check(path, metadata)
        return metadata

    def delete(self, name: str) -> bool:
        """Remove a file; False if there is none.

        Raises:
            WorkspaceError: it cannot be deleted.
        """
        path = self.path_of(name)
        if not path.is_file():
            return False
        try:
            path.unlink()
        except OSError as error:
            raise WorkspaceError(f"{path} cannot be deleted: {error.strerror or error}.") from error
        return True

    def described(self, describe: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return what `describe` says of every name; of a file that cannot be used, its `error`."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.names():
            try:
                found[name] = describe(name)
            except PersonaTuiError as error:
                found[name] = {"error": str(error)}
        return found

    def save_summary(self, document: object) -> None:
        """Write the folder's summary for people and programs."""
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        atomic_write_text(self.folder / SUMMARY_FILE, text, inside=self.folder)


def _is_vector_file(path: Path) -> bool:
    try:
        return safe_name(path.stem) == path.stem and path.is_file()
    except WorkspaceError:
        return False
