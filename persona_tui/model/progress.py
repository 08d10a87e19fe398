"""Loading under watch: how far it is, by the libraries' own counting, and giving up in between.

transformers counts tensors and huggingface_hub bytes, both with progress bars. Here, the bars report.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files, snapshot_download
from transformers.utils import logging as transformers_logging

from persona_tui.core.errors import JobCancelled
from persona_tui.model.files import WEIGHTS, cached_folder
from persona_tui.model.loader import BUILTIN

Report = Callable[[int, int, str], None]

_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_ELSEWHERE = "*/*"  # copies in other formats lie in folders
_here = threading.local()


class _Bar:
    """What a progress bar of tqdm's is to those who use it."""

    def __init__(self, iterable: Iterable[Any] | None = None, *args: Any, **options: Any) -> None:
        self._iterable = iterable
        self._note = str(options.get("desc") or "loading")
        self._report: Report | None = options.get("report")
        self.total = options.get("total") or (len(iterable) if hasattr(iterable, "__len__") else 0)  # type: ignore[arg-type]
        self.n = options.get("initial") or 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update(1)

    def update(self, amount: float | None = 1) -> None:
        self.n += amount or 0
        if self._report is not None:
            self._report(int(self.n), int(self.total or 0), self._note)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def close(self) -> None:
        pass

    def refresh(self, *args: Any, **options: Any) -> None:
        pass

    set_description = set_description_str = set_postfix = set_postfix_str = reset = clear = refresh


@contextmanager
def watched(report: Report) -> Iterator[None]:
    """Within, on this thread, loading weights reports tensors loaded and in all.

    Args:
        report: given a count, the count in all, and what is counted. It may raise `JobCancelled`.
    """
    hook = getattr(transformers_logging, "set_tqdm_hook", None)  # not in every version
    if hook is not None:
        hook(_make_bar)
    _here.report = report
    try:
        yield
    finally:
        _here.report = None


def _make_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    report = getattr(_here, "report", None)
    return factory(*args, **options) if report is None else _Bar(*args, **{**options, "report": report})


def fetch(name: str, report: Report) -> None:
    """Download what loading a model takes; nothing for a folder, or if its weights are on this machine.

    What goes wrong here goes wrong again when the model is loaded, and is explained there.

    Args:
        name: as `loading.load` has it.
        report: given bytes, bytes in all, and a note. It may raise `JobCancelled`.
    """
    if name == BUILTIN or Path(name).expanduser().exists() or cached_folder(name) is not None:
        return
    report(0, 0, "looking for it on huggingface.co")
    try:
        wanted = _wanted(list_repo_files(name))
        snapshot_download(
            name,
            allow_patterns=wanted,
            ignore_patterns=[_ELSEWHERE],
            tqdm_class=_bytes_bar(report),
        )
    except JobCancelled:
        raise
    except Exception:  # whatever it is, loading meets it again and has the words for it
        return


def _wanted(files: Iterable[str]) -> list[str]:
    """What to download of a model's files."""
    top = [file for file in files if "/" not in file]
    kind = next((each for each in WEIGHTS if fnmatch.filter(top, each)), WEIGHTS[0])
    return [*_TEXTS, kind]


def _bytes_bar(report: Report) -> type[_Bar]:
    """A class of bars that report if they count bytes; those that count files do not."""

    class BytesBar(_Bar):
        def __init__(self, *args: Any, **options: Any) -> None:
            counts = options.get("unit") == "B"
            super().__init__(
                *args, **{**options, "desc": "downloading", "report": report if counts else None}
            )

    return BytesBar
