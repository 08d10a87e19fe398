"""What the trait commands share: the model's traits, conversations from arguments, tables."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from persona_tui.cli.progress import note
from persona_tui.core.errors import DatasetError, JobCancelled, PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.datasets.transcripts import BadLine, Item
    from persona_tui.project.project import Project
    from persona_tui.traits.score import TraitScorer
    from persona_tui.traits.vector import TraitStore, TraitVector

_MOST_NOTES = 20  # bad lines that are told one by one
_FILE_ENDINGS = (".json", ".jsonl", ".txt", ".md", ".yaml", ".yml", ".csv", ".tsv")

strict_option = click.option("--strict", is_flag=True, help="Refuse a text without turns.")


class CannotCheck(click.ClickException):
    """A check that could not be made. Its exit status must not look like a verdict."""

    exit_code = 2


def trait_store(project: Project, loaded: bool = True) -> TraitStore:
    """Return the model's traits.

    Args:
        project: the workspace and its model.
        loaded: load the model, so that traits of another one are refused.
    """
    if loaded:
        project.model  # noqa: B018  # from here on, traits of another model are told from this one's
    return project.traits


def trait_scorer(project: Project, names: Sequence[str] = ()) -> TraitScorer:
    """Return what measures, with some of the model's traits or all of them.

    Raises:
        VectorFileError: a trait is missing; found out before the model loads.
    """
    from persona_tui.traits.score import TraitScorer

    trait_store(project, loaded=False).select(names)
    return TraitScorer(project.model, trait_store(project).select(names))


def tell_doubts(traits: Sequence[TraitVector]) -> None:
    """Say of traits that are weak, or without a gate so that they judge everything; a line for either."""
    weak = [trait.name for trait in traits if trait.reading.weakness is not None]
    if weak:
        note(f"weak on this model: {', '.join(weak)}. `trait list` says why; a weak trait catches little.")
    names = [trait.name for trait in traits if trait.gate is None and not trait.reading.everywhere]
    if names:
        one = len(names) == 1
        note(
            f"{', '.join(names)} {'has' if one else 'have'} no gate, so every reply is judged by "
            f"{'it' if one else 'them'}. `trait extract` makes one."
        )


def conversations(source: str, strict: bool = False) -> Iterator[Item]:
    """Yield the conversations in a file, in standard input (`-`) or in a text itself.

    What was not read of them is told in the end, each kind once.

    Args:
        source: an argument of the command line.
        strict: whether a text in which no turns are found is bad, rather than one reply.

    Raises:
        DatasetError: there is nothing, or no text.
    """
    from persona_tui.datasets.transcripts import ONE_REPLY, BadLine, Transcript

    notes: Counter[str] = Counter()
    for item in _items(source):
        if strict and isinstance(item, Transcript) and ONE_REPLY in item.notes:
            yield BadLine(item.where, item.line, "no turns found (without --strict it is one reply)")
            continue
        if isinstance(item, Transcript):
            notes.update(item.notes)
        yield item
    tell_notes(notes, source)


def tell_notes(notes: Counter[str], source: str) -> None:
    """Tell what was not read of a source, and how often."""
    name = "standard input" if source == "-" else "the text" if _as_file(source) is None else source
    for text, count in notes.items():
        note(f"{name}: {text}" + (f" ({count} times)" if count > 1 else ""))


def _items(source: str) -> Iterator[Item]:
    from persona_tui.datasets.transcripts import read_file, read_stream

    if source == "-":
        yield from read_stream(_stdin(), "standard input")
        return
    path = _as_file(source)
    if path is not None:
        yield from read_file(path)
    elif source.strip():
        yield from read_stream(io.BytesIO(source.encode("utf-8", "replace")), "text")
    else:
        raise DatasetError("the text is empty")


def _as_file(source: str) -> Path | None:
    """Return the file that an argument names, or None if it is a text."""
    if not source.strip():
        return None
    path = Path(source)
    try:
        exists = path.is_file()
        odd = path.is_fifo() or path.is_char_device() or path.is_socket()
        folder = path.is_dir()
    except (OSError, ValueError):  # too long for a name, or with characters that names cannot have
        return None
    if exists:
        return path
    if odd:
        raise DatasetError(f"{source} is not a regular file: give - and pass it to standard input")
    if folder:
        raise DatasetError(f"{source} is a folder: name a file in it")
    looks_like_one = path.suffix in _FILE_ENDINGS and not any(char.isspace() for char in source)
    if looks_like_one:
        raise DatasetError(f"{source} does not exist")
    return None


def _stdin() -> BinaryIO:
    raw: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    return raw if raw is not None else io.BytesIO(sys.stdin.read().encode())


class BadLines:
    """Tells of lines that cannot be read, and counts them."""

    def __init__(self) -> None:
        self.found: list[BadLine] = []
        self.count = 0

    def __call__(self, line: BadLine) -> None:
        """Tell of one."""
        self.count += 1
        if self.count <= _MOST_NOTES:
            self.found.append(line)
            note(str(line))
        elif self.count == _MOST_NOTES + 1:
            note("More lines could not be read; further ones are only counted.")

    def as_list(self) -> list[dict[str, object]]:
        """For JSON: the first of them."""
        return [{"line": each.line, "where": each.where, "error": each.problem} for each in self.found]


def or_cannot_check(error: PersonaTuiError) -> Exception:
    """Return the error as one that ends a check without a verdict."""
    return error if isinstance(error, JobCancelled) else CannotCheck(str(error))


def signed(value: float) -> str:
    """Return a score for a table."""
    return f"{value:+.2f}"
