"""What a chat consists of: messages, notes and rulers. Each gives its lines for a width; none is a widget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from rich.cells import cell_len
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.tui.markdown import MarkdownText, open_fence

_WIDEST = 10_000
_SERIALS = count()
_RULE = "─"
_ARROW = " → "
_FEWEST_CELLS = 10  # of what was before a change
_MUTED = "$foreground-muted"
_THOUGHT_TAG = re.compile(r"(</?think>)")
DIFFERS = "$text-accent"  # the style of words that another answer does not have there
_DOT = Content.styled(" · ", "dim")


class Block:
    """Something in the chat.

    Attributes:
        bar: the style of the bar on its left; "" = none.
        gap: whether a blank line follows it.
        serial: tells it from every other block.
        version: grows with every change.
    """

    bar = ""
    gap = True

    def __init__(self) -> None:
        self.serial = next(_SERIALS)
        self.version = 0
        self._cached: tuple[int, list[Content]] | None = None

    def lines(self, width: int) -> list[Content]:
        """Return it as lines of at most `width` cells."""
        if self._cached is None or self._cached[0] != width:
            self._cached = (width, self._build(max(width, 1)))
        return self._cached[1]

    def changed(self) -> None:
        """Forget the lines: they are not what they were."""
        self.version += 1
        self._cached = None

    def _build(self, width: int) -> list[Content]:
        raise NotImplementedError


class Note(Block):
    """What the app says: the answer to a command, or what went wrong."""

    def __init__(self, content: str | Content, *, error: bool = False) -> None:
        """
        Args:
            content: shown as it is, without markup.
            error: whether something went wrong.
        """
        super().__init__()
        plain = Content(printable(content)) if isinstance(content, str) else content
        self.content = plain.stylize_before("$text-error" if error else _MUTED)
        self.error = error

    def say(self, content: Content) -> None:
        """Say something else."""
        self.content = content.stylize_before(_MUTED)
        self.changed()

    def _build(self, width: int) -> list[Content]:
        return self.content.wrap(width)


class Ruler(Block):
    """A line across the chat: from here on something is different."""

    def __init__(self, text: str, after: int | None = None) -> None:
        """
        Args:
            text: what is different.
            after: the message that it stands after, if it stands between messages.
        """
        super().__init__()
        self.text, self.after = text, after

    def say(self, text: str) -> None:
        """Say something else."""
        if text != self.text:
            self.text = text
            self.changed()

    def _build(self, width: int) -> list[Content]:
        return [ruler_line(self.text, width)]


@dataclass(frozen=True)
class Badge:
    """A judgement of a message, in a few characters, and its style."""

    text: str
    style: str

    def content(self) -> Content:
        """Return it as it is shown."""
        return Content.styled(self.text, self.style)


@dataclass(frozen=True)
class Heading:
    """The first line of a message.

    Attributes:
        who: who speaks.
        style: of that.
        version: which of several versions it is; "" = there is one.
        facts: what to know about it, the most important first; those that do not fit are left out.
        badges: judgements of it, before the facts; those that do not fit go on lines of their own.
    """

    who: str
    style: str = ""
    version: str = ""
    facts: Sequence[str] = ()
    badges: Sequence[Badge] = ()

    def line(self, width: int) -> Content:
        """Return what fits into one line of `width` cells."""
        return self._first(width)[0]

    def lines(self, width: int) -> list[Content]:
        """Return it in lines of at most `width` cells: more than one only if there are many badges."""
        first, shown = self._first(width)
        rest = [badge.content() for badge in self.badges[shown:]]
        return [first, *(line for badge in rest for line in badge.wrap(width))]

    def _first(self, width: int) -> tuple[Content, int]:
        """Return the first line, and how many of the badges are in it."""
        front = Content.assemble((self.who, f"bold {self.style}".strip()), (self.version, "$text-accent"))
        badges = [badge.content() for badge in self.badges]
        facts = [Content.styled(fact, "dim") for fact in self.facts]
        for shown in range(len(badges), -1, -1):
            for told in range(len(facts), -1, -1):
                parts = [*badges[:shown], *facts[:told]]
                line = Content.assemble(front, "  ", _DOT.join(parts)) if parts else front
                if line.cell_length <= width:
                    return line, shown
        return front.truncate(width, ellipsis=True), 0


class MessageBlock(Block):
    """A message: a heading (who speaks, and how) and the text.

    Replies are Markdown and may be interrupted by rulers; what the user wrote is shown as it is.
    """

    def __init__(self, role: str, heading: Heading, text: str = "", key: int | None = None) -> None:
        """
        Args:
            role: "user" or "assistant".
            heading: the first line.
            text: what has been said so far.
            key: the message's number in the conversation.
        """
        super().__init__()
        self.role = role
        self.key = key
        self.bar = "$text-secondary" if role == "user" else "$text-primary"
        self._heading = heading
        self._end = ""
        self._pieces: list[MarkdownText | Ruler] = []
        self._thinking = False
        self._source: list[str] = []
        self._tint: Sequence[tuple[str, str]] | None = None
        if text:
            self.write(text)

    @property
    def source(self) -> str:
        """The text as it was written."""
        return "".join(self._source)

    @property
    def who(self) -> str:
        """Who speaks."""
        return self._heading.who

    @property
    def heading(self) -> str:
        """The first line, without its colours."""
        return self._heading.line(_WIDEST).plain

    def write(self, text: str) -> None:
        """Add text at the end."""
        if not text:
            return
        # Tags of thoughts are tokens of their own: none is divided between two calls.
        for part in _THOUGHT_TAG.split(text) if self.role == "assistant" else [text]:
            if _THOUGHT_TAG.fullmatch(part):
                self._thinking = part == "<think>"
            elif part:
                self._write(part)
            self._source.append(part)
        self.changed()

    def _write(self, text: str) -> None:
        last = self._pieces[-1] if self._pieces else None
        if not isinstance(last, MarkdownText) or isinstance(last, Thought) != self._thinking:
            if not text.strip():
                return
            kind = Thought if self._thinking else MarkdownText
            last = kind("" if self._thinking or isinstance(last, Thought) else open_fence(self.source))
            self._pieces.append(last)
        last.append(printable(text))

    def rule(self, text: str, *, again: bool = False) -> None:
        """Draw a ruler where the text ends now.

        Args:
            text: what it says.
            again: change the last ruler instead, wherever it is; no text removes it.
        """
        last = next((piece for piece in reversed(self._pieces) if isinstance(piece, Ruler)), None)
        if again and last is not None:
            place = self._pieces.index(last)
            self._pieces[place : place + 1] = [Ruler(text)] if text else []
        elif text:
            self._pieces.append(Ruler(text))
        self.changed()

    def set_heading(self, heading: Heading) -> None:
        """Replace the first line."""
        if heading != self._heading:
            self._heading = heading
            self.changed()

    def set_end(self, text: str) -> None:
        """Say below the text why it ended as it did; "" = there is nothing to say."""
        if text != self._end:
            self._end = text
            self.changed()

    def tint(self, pieces: Sequence[tuple[str, str]] | None) -> None:
        """Show the text as it was written, in pieces, each with a style; None = as Markdown again."""
        if pieces != self._tint:
            self._tint = pieces
            self.changed()

    def code_blocks(self) -> list[str]:
        """Return the text's code blocks, first to last."""
        from markdown_it import MarkdownIt

        tokens = MarkdownIt("commonmark").parse(self.source)
        return [token.content for token in tokens if token.type in ("fence", "code_block")]

    def _build(self, width: int) -> list[Content]:
        end = Content.styled(printable(self._end), "$text-error").wrap(width) if self._end else []
        return [*self._heading.lines(width), *self._body(width), *end]

    def _body(self, width: int) -> list[Content]:
        if self.role == "user":
            text = Content(printable(self.source)).stylize_before(_MUTED)
            return text.wrap(width) if self._source else []
        if self._tint is not None:
            return Content.assemble(*((printable(text), style) for text, style in self._tint)).wrap(width)
        lines: list[Content] = []
        for piece in self._pieces:
            lines += piece.lines(width)
            if isinstance(piece, Thought) and piece is not self._pieces[-1]:
                lines.append(Content(""))
        return lines


class Thought(MarkdownText):
    """What a model thinks before it answers: dimmed."""

    def lines(self, width: int) -> list[Content]:
        """Return it as lines of at most `width` cells."""
        return [line.stylize("dim") for line in super().lines(width)]


def ruler_line(text: str, width: int) -> Content:
    """Return `── text ─────` over a whole width; of a change too long for it, the old is cut first."""
    room = max(width - 6, 1)
    before, arrow, after = text.partition(_ARROW)
    if arrow and cell_len(text) > room:
        rest = max(room - cell_len(arrow + after), min(_FEWEST_CELLS, room))
        text = f"{Content(before).truncate(rest, ellipsis=True).plain}{arrow}{after}"
    label = Content.styled(f" {text} ", "$text-accent").truncate(max(width - 4, 1), ellipsis=True)
    rest = max(width - 2 - label.cell_length, 0)
    return Content.assemble((_RULE * 2, "dim"), label, (_RULE * rest, "dim")).truncate(width)
