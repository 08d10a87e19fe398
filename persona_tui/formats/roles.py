"""Role and trait data sets of assistant-axis and persona_vectors, read as archetypes.

Each file is one JSON object: `instruction`, a list of `{"pos": ..., "neg": ...}`, whose `pos` are system
prompts that ask for the character; `questions` and `eval_prompt`, which are not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import DatasetError
from persona_tui.core.files import safe_name


@dataclass(frozen=True)
class ForeignRole:
    """A character of another project.

    Attributes:
        name: its file's.
        prompts: system prompts that ask for it.
        left_out: what of the file was not read, for people; "" if nothing.
    """

    name: str
    prompts: tuple[str, ...]
    left_out: str = ""

    def lines(self) -> str:
        """Return an archetype's file: one record for each prompt."""
        records = [
            {"id": f"{self.name}_{number:03d}", "system_prompt": prompt}
            for number, prompt in enumerate(self.prompts, 1)
        ]
        return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def read_role_files(path: Path) -> Iterator[ForeignRole]:
    """Read a file, or every `.json` in a folder.

    Raises:
        DatasetError: one line that names the file and what is wrong with it.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f"{path} has no .json files")
    for file in files:
        yield _read(file)


def _read(path: Path) -> ForeignRole:
    try:
        content = json_value(read_plain(path).decode("utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not a JSON document") from error
    pairs = content.get("instruction") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        raise DatasetError(f'{path} has no list "instruction": it is not a role or trait of assistant-axis')
    prompts = [pair.get("pos") for pair in pairs if isinstance(pair, dict)]
    texts = tuple(each.strip() for each in prompts if isinstance(each, str) and each.strip())
    if not texts or len(texts) < len(pairs):
        raise DatasetError(
            f'{path}: {len(pairs) - len(texts)} of {len(pairs)} instructions have no text "pos"'
        )
    opposite = sum(1 for pair in pairs if isinstance(pair, dict) and pair.get("neg"))
    left_out = f"{opposite} prompts that ask for the opposite" if opposite else ""
    return ForeignRole(safe_name(path.stem), texts, left_out)
