"""Markdown as one block of styled text, cheap enough to be written ten times a second.

Textual's `Markdown` widget mounts a widget per paragraph, and the time that a key takes to reach the screen
grows with their number. A message here is a single widget; what this module gives it is lines of `Content`.
Only the last top-level block of a text can still change while it is being written, so only that one is
parsed again. The parser is imported with the first text: the first paint does not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from textual.content import Content

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*(\S*)")
_SPANS = {"strong": "bold", "em": "italic", "s": "strike", "link": "underline"}
_BULLET = "• "
_QUOTE = "▌ "
_CODE = "  "
_RULE = "─" * 20


@dataclass(frozen=True)
class MarkdownBlock:
    """A piece of text and what stands before its lines."""

    content: Content
    first: str = ""  # before its first line
    rest: str = ""  # before the lines it is wrapped into
    gap: bool = True  # a blank line above it
    wrap: bool = True

    def lines(self, width: int) -> list[Content]:
        """Return the block as lines of at most `width` cells."""
        room = max(width - len(self.first), 1)
        whole = self.content.split("\n", allow_blank=True)
        lines = [part for line in whole for part in line.wrap(room)] if self.wrap else whole
        prefixes = [self.first] + [self.rest] * len(lines)
        return [Content(prefix) + line for prefix, line in zip(prefixes, lines, strict=False)]


def to_lines(blocks: Sequence[MarkdownBlock], width: int) -> list[Content]:
    """Return blocks as lines of at most `width` cells, with blank lines between them."""
    lines: list[Content] = []
    for block in blocks:
        if block.gap and lines:
            lines.append(Content(""))
        lines += block.lines(width)
    return lines


class MarkdownText:
    """A text that grows at its end, as lines for a given width."""

    def __init__(self, source: str = "") -> None:
        self._pieces: list[str] = []
        self._settled: list[MarkdownBlock] = []
        self._unread = ""  # the source of what has not been parsed
        self._tail = ""  # the source of what may still change
        self._open: list[MarkdownBlock] = []
        self._cache: tuple[int, int, list[Content]] = (0, 0, [])  # width, settled blocks, their lines
        self.append(source)

    @property
    def source(self) -> str:
        """The Markdown written so far."""
        return "".join(self._pieces)

    def append(self, text: str) -> None:
        """Add text at the end. It is parsed when the lines are asked for."""
        self._pieces.append(text)
        self._unread += text

    def _read(self) -> None:
        if not self._unread:
            return
        self._tail += self._unread
        self._unread = ""
        tokens = _parser().parse(self._tail)
        last_line = _last_block_line(tokens)
        if last_line:
            kept = "".join(self._tail.splitlines(keepends=True)[:last_line])
            self._settled += parse(kept)
            self._tail = self._tail[len(kept) :]
            tokens = _parser().parse(self._tail)
        self._open = _Builder().build(tokens)

    def lines(self, width: int) -> list[Content]:
        """Return the text as lines of at most `width` cells."""
        self._read()
        settled = self._settled_lines(width)
        open_lines = to_lines(self._open, width)
        gap = [Content("")] if settled and open_lines and self._open[0].gap else []
        return settled + gap + open_lines

    def _settled_lines(self, width: int) -> list[Content]:
        if self._cache[:2] != (width, len(self._settled)):
            self._cache = (width, len(self._settled), to_lines(self._settled, width))
        return self._cache[2]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


def parse(source: str) -> list[MarkdownBlock]:
    """Return Markdown as blocks."""
    return _Builder().build(_parser().parse(source))


def open_fence(source: str) -> str:
    """Return the line that opened the code block in which a text ends, or "" if it ends in none.

    What follows such a text, shown by itself, needs that line to be shown as code.
    """
    opened: re.Match[str] | None = None
    for line in source.splitlines():
        fence = _FENCE.match(line)
        if fence is not None and opened is None:
            opened = fence
        elif fence is not None and opened is not None and fence[1].startswith(opened[1]) and not fence[2]:
            opened = None
    return f"{opened[0]}\n" if opened is not None else ""


def _last_block_line(tokens: Sequence[Token]) -> int:
    """Return the line at which the last top-level block begins; 0 when it is the first."""
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    return starts[-1] if starts else 0


@dataclass
class _Container:
    """An open list item or quote: what it puts before the lines in it."""

    first: str
    rest: str
    used: bool = False

    def take(self) -> str:
        text = self.rest if self.used else self.first
        self.used = True
        return text


class _Builder:
    """Turns parsed tokens into blocks. Methods are named after the tokens they take."""

    def __init__(self) -> None:
        self._blocks: list[MarkdownBlock] = []
        self._containers: list[_Container] = []
        self._numbers: list[int | None] = []  # per open list: its next number, None for bullets
        self._style = ""
        self._tight = False
        self._rows: list[list[Content]] | None = None  # of an open table

    def build(self, tokens: Sequence[Token]) -> list[MarkdownBlock]:
        for token in tokens:
            handler = getattr(self, f"_{token.type}", None)
            if handler is not None:
                handler(token)
        return self._blocks

    def _emit(self, content: Content, *, wrap: bool = True) -> None:
        begins_item = bool(self._containers) and not self._containers[-1].used
        starts_list = begins_item and self._numbers == self._numbers[:1] and self._is_first_item
        gap = not self._tight or starts_list
        first = "".join(container.take() for container in self._containers)
        rest = "".join(container.rest for container in self._containers)
        self._blocks.append(MarkdownBlock(content, first, rest, gap, wrap))
        self._is_first_item = False

    _is_first_item = False

    # --- text

    def _inline(self, token: Token) -> None:
        content = _inline_content(token.children or [])
        if self._rows is not None:
            self._rows[-1].append(content)
            return
        self._emit(content.stylize(self._style) if self._style else content)

    def _paragraph_open(self, token: Token) -> None:
        self._tight = token.hidden

    def _heading_open(self, token: Token) -> None:
        self._tight = False
        self._style = "bold $text-primary" if token.tag in ("h1", "h2") else "bold"

    def _heading_close(self, _: Token) -> None:
        self._style = ""

    def _hr(self, _: Token) -> None:
        self._tight = False
        self._emit(Content.styled(_RULE, "dim"))

    # --- code

    def _fence(self, token: Token) -> None:
        from textual.highlight import highlight

        self._tight = False
        language = token.info.split()[0] if token.info.strip() else "text"
        self._containers.append(_Container(_CODE, _CODE))
        self._emit(highlight(token.content.rstrip("\n"), language=language))
        self._containers.pop()

    _code_block = _fence

    # --- lists and quotes

    def _bullet_list_open(self, _: Token) -> None:
        self._numbers.append(None)
        self._is_first_item = True

    def _ordered_list_open(self, token: Token) -> None:
        self._numbers.append(int(token.attrs.get("start", 1)))
        self._is_first_item = True

    def _bullet_list_close(self, _: Token) -> None:
        self._numbers.pop()
        self._tight = False

    _ordered_list_close = _bullet_list_close

    def _list_item_open(self, _: Token) -> None:
        number = self._numbers[-1]
        marker = _BULLET
        if number is not None:
            marker = f"{number}. "
            self._numbers[-1] = number + 1
        self._containers.append(_Container(marker, " " * len(marker)))

    def _list_item_close(self, _: Token) -> None:
        self._containers.pop()

    def _blockquote_open(self, _: Token) -> None:
        self._containers.append(_Container(_QUOTE, _QUOTE))

    _blockquote_close = _list_item_close

    # --- tables

    def _table_open(self, _: Token) -> None:
        self._rows = []
        self._tight = False

    def _tr_open(self, _: Token) -> None:
        if self._rows is not None:
            self._rows.append([])

    def _table_close(self, _: Token) -> None:
        rows, self._rows = self._rows or [], None
        self._emit(Content("\n").join(_table_lines(rows)), wrap=False)


def _inline_content(tokens: Sequence[Token]) -> Content:
    """Return the text of a paragraph with its emphasis."""
    return Content.assemble(*_inline_parts(tokens))


def _inline_parts(tokens: Sequence[Token]) -> Iterator[str | tuple[str, str]]:
    styles: list[str] = []
    for token in tokens:
        name, _, edge = token.type.rpartition("_")
        if edge == "open":
            styles.append(_SPANS.get(name, ""))
        elif edge == "close":
            styles.pop()
        elif token.type == "code_inline":
            yield token.content, " ".join([*styles, "$text-accent"]).strip()
        else:
            text = "\n" if token.type in ("softbreak", "hardbreak") else token.content
            yield (text, " ".join(styles).strip()) if any(styles) else text


def _table_lines(rows: Sequence[Sequence[Content]]) -> list[Content]:
    """Return a table's rows, its columns as wide as their widest cell."""
    columns = max((len(row) for row in rows), default=0)
    widths = [max(row[i].cell_length for row in rows if i < len(row)) for i in range(columns)]
    lines = [
        Content("  ").join(
            cell.pad_right(width - cell.cell_length) for cell, width in zip(row, widths, strict=False)
        )
        for row in rows
    ]
    return [line.stylize("bold") if number == 0 else line for number, line in enumerate(lines)]
