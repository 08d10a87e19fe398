"""Loading under watch: how far it is, by the libraries' own counting, and giving up in between.

transformers counts tensors and huggingface_hub bytes, both with progress bars. Here, the bars report.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.hf_api import RepoSibling
from transformers.utils import logging as transformers_logging

from persona_tui.core.errors import JobCancelled
from persona_tui.model.files import WEIGHTS
from persona_tui.model.sources import Report, resolve

_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_ELSEWHERE = "*/*"  # copies in other formats lie in folders
_here = threading.local()


class Bar:
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

    def __enter__(self) -> Bar:
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
    return factory(*args, **options) if report is None else Bar(*args, **{**options, "report": report})


def fetch(name: str, report: Report) -> None:
    """Make sure that what loading a model takes is on this machine: download it, unpack a GGUF file.

    What goes wrong with a download goes wrong again when the model is loaded, and is explained there.

    Args:
        name: as `loader.load` has it.
        report: given bytes or tensors, how many there are, and a note. It may raise `JobCancelled`.

    Raises:
        ModelLoadError: there is no such model, or its GGUF file cannot be used.
    """
    source = resolve(name)
    if source.folder is not None:
        return
    if source.gguf is not None:
        from persona_tui.model.gguf import unpack

        unpack(source, report)
        return
    report(0, 0, "looking for it on huggingface.co")
    try:
        download(name, _patterns(list_repo_files(name)), report)
    except JobCancelled:
        raise
    except Exception:  # whatever it is, loading meets it again and has the words for it
        return


def download(name: str, patterns: list[str], report: Report) -> None:
    """Download files of a model on the hub into its cache, going on where an earlier try was stopped."""
    snapshot_download(
        name, allow_patterns=patterns, ignore_patterns=[_ELSEWHERE], tqdm_class=_bytes_bar(report)
    )


def wanted(files: Iterable[RepoSibling]) -> tuple[list[str], int]:
    """Return what to download of a model's files, as patterns, and how many bytes that is."""
    top = {file.rfilename: file.size or 0 for file in files if "/" not in file.rfilename}
    patterns = _patterns(top)
    return patterns, sum(
        size for name, size in top.items() if any(fnmatch.fnmatch(name, each) for each in patterns)
    )


def _patterns(files: Iterable[str]) -> list[str]:
    """Return the patterns of what to download of a model's files."""
    top = [file for file in files if "/" not in file]
    kind = next((each for each in WEIGHTS if fnmatch.filter(top, each)), WEIGHTS[0])
    return [*_TEXTS, kind]


def _bytes_bar(report: Report) -> type[Bar]:
    """Return a class of bars that report if they count bytes; those that count files do not."""

    class BytesBar(Bar):
        def __init__(self, *args: Any, **options: Any) -> None:
            counts = options.get("unit") == "B"
            super().__init__(
                *args, **{**options, "desc": "downloading", "report": report if counts else None}
            )

    return BytesBar
