"""The conversation so far, drawn line by line.

Nothing is mounted: however long a conversation is, only the rows on the screen are drawn, and only a block
that changed is wrapped again. The end is followed until the reader scrolls away from it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.content import Content, Span
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual

from persona_tui.tui.blocks import Block, MessageBlock, Note
from persona_tui.tui.sturdy import Sturdy

WIDEST = 100  # cells of a line of text; longer ones are hard to read
SHOWN = 120  # blocks; older ones wait until the reader comes to the top
_MORE = 100  # of them that appear then
_MARGIN = 2  # columns for the bar
_BAR, _MARKED = "▌ ", "█ "
_NEW_BELOW = "  ↓ new text below · end"


class ChatLog(Sturdy, ScrollView, can_focus=True):
    """Messages, notes and rulers, oldest first. One message can be marked, to do something with it."""

    FOCUS_ON_CLICK: ClassVar[bool] = False  # a click, or marking text with the mouse, leaves the prompt alone
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "mark(-1)", "previous", show=False, id="chat_previous"),
        Binding("down", "mark(1)", "next", show=False, id="chat_next"),
        Binding("y", "ask('copy')", "copy", id="chat_copy"),
        Binding("c", "ask('code')", "copy code", id="chat_code"),
        Binding("e", "ask('edit')", "edit", id="chat_edit"),
        Binding("left", "ask('before')", "‹ version", id="chat_before"),
        Binding("right", "ask('after')", "version ›", id="chat_after"),
        Binding("t", "app.tint", "tint", id="chat_tint"),
        Binding("f5", "ask('again')", "again", id="chat_again"),
        Binding("ctrl+o", "ask('continue')", "go on", show=False, id="chat_continue"),
    ]
    DEFAULT_CSS = "ChatLog { overflow-x: hidden; }"

    virtual_size = Reactive(Size(0, 0))  # a line more moves nothing else on the screen

    @dataclass
    class Asked(Message):
        """The user wants something done with a message: copy, code, edit, before, after, again, continue."""

        what: str
        block: MessageBlock

    @dataclass
    class Marked(Message):
        """Another message is marked."""

        block: MessageBlock

    @dataclass
    class LeftBelow(Message):
        """The mark went down past the last message."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.blocks: list[Block] = []
        self.marked: MessageBlock | None = None
        self._first = 0  # of the blocks that are shown
        self._tops: list[int] = [0]  # the row at which each shown block begins, and the row after the last
        self._strips: LRUCache[tuple[str, tuple[Span, ...]], Strip] = LRUCache(1000)  # by what a line says
        self._fronts: dict[tuple[str, bool], Strip] = {}
        self._empty: Strip | None = None
        self._room = 1  # cells for a line; measured with the blocks

    # --- what is in it

    @property
    def messages(self) -> list[MessageBlock]:
        """The messages, oldest first."""
        return [block for block in self.blocks if isinstance(block, MessageBlock)]

    @property
    def notes(self) -> list[Note]:
        """The notes, oldest first."""
        return [block for block in self.blocks if isinstance(block, Note)]

    def add(self, block: Block) -> None:
        """Add something at the end."""
        self.blocks.append(block)
        self._first = max(self._first, len(self.blocks) - SHOWN) if self.following else self._first
        self.rearrange()

    def note(self, text: str | Content, *, error: bool = False) -> Note:
        """Add a note, and return it."""
        note = Note(text, error=error)
        self.add(note)
        return note

    def take_out(self, block: Block) -> None:
        """Remove something."""
        if block in self.blocks:
            self.blocks.remove(block)
            if self.marked is block:
                self.marked = None
            self.rearrange()

    def cut(self, start: int) -> None:
        """Take out everything from a place on."""
        del self.blocks[start:]
        self._first = min(self._first, max(len(self.blocks) - SHOWN, 0))
        if self.marked not in self.blocks:
            self.marked = None
        self.rearrange()

    def clear(self) -> None:
        """Take out everything."""
        self.cut(0)

    # --- where everything is

    def rearrange(self) -> None:
        """Find out again where every block is, after one of them changed; the end stays in view if it was."""
        following, height = self.following, self._tops[-1]
        self._measure()
        if following:
            self.follow()
        else:
            self._new_below |= self._tops[-1] > height
        self.refresh()

    def _measure(self) -> None:
        width = self.scrollable_content_region.width
        self._room = max(min(width - _MARGIN, WIDEST), 1)
        heights = [len(block.lines(self._room)) + block.gap for block in self.blocks[self._first :]]
        self._tops = [0, *accumulate(heights)]
        self.virtual_size = Size(width, self._tops[-1])

    @property
    def following(self) -> bool:
        """Whether the end is in view."""
        return self.scroll_y >= self.max_scroll_y

    def follow(self) -> None:
        """Go to the end."""
        # By force: whether there is a scrollbar is only known once the screen has been laid out again.
        self.scroll_end(animate=False, immediate=True, force=True)

    def on_resize(self, event: events.Resize) -> None:
        """Wrap for the new width, and keep in view what was."""
        following, place = self._was_following, self._place(self.scroll_offset.y)
        self._strips.clear()
        self._measure()
        if following:
            self.follow()
        else:
            self.scroll_to(y=self._tops[min(place, len(self._tops) - 1)], animate=False, force=True)

    def watch_virtual_size(self, old_value: Size, new_value: Size) -> None:
        """Show the new height in the scrollbar."""
        self._scroll_update(new_value)

    _was_following = True
    _new_below = False  # whether text has come below what is in view

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Show older blocks when the reader comes to the top."""
        super().watch_scroll_y(old_value, new_value)
        self._was_following = self.following
        self._new_below &= not self.following
        if new_value <= 0 < self._first and old_value > new_value:
            self._show_older()

    def _show_older(self) -> None:
        more = min(_MORE, self._first)
        self._first -= more
        self._measure()
        self.scroll_to(y=self._tops[more], animate=False, force=True)

    def _place(self, row: int) -> int:
        """Return which of the shown blocks a row belongs to."""
        return max(min(bisect_right(self._tops, row) - 1, len(self._tops) - 2), 0)

    # --- marking a message

    def action_mark(self, step: int) -> None:
        """Mark the message before or after the marked one; below the last one the chat is left."""
        messages = self.messages
        if not messages:
            return
        if self.marked is None:
            self.mark(messages[-1])
            return
        place = messages.index(self.marked) + step
        if place < len(messages):
            self.mark(messages[max(place, 0)])
        else:
            self.post_message(self.LeftBelow())

    def mark(self, block: MessageBlock | None) -> None:
        """Mark a message and bring it into view."""
        self.marked = block
        if block is not None:
            self._bring(block)
            self.post_message(self.Marked(block))
        self.refresh()

    def _bring(self, block: Block) -> None:
        index = self.blocks.index(block)
        if index < self._first:
            self._first = index
            self._measure()
        top, bottom = self._tops[index - self._first : index - self._first + 2]
        height = self.size.height
        if top < self.scroll_y or bottom - top >= height:
            self.scroll_to(y=top, animate=False, force=True)
        elif bottom > self.scroll_y + height:
            self.scroll_to(y=bottom - height, animate=False, force=True)

    def action_ask(self, what: str) -> None:
        """Say what is wanted of the marked message."""
        if self.marked is not None:
            self.post_message(self.Asked(what, self.marked))

    def on_focus(self) -> None:
        """Mark the last message, unless one is marked."""
        if self.marked is None and self.messages:
            self.mark(self.messages[-1])

    def on_blur(self) -> None:
        """Nothing is marked while the keys go elsewhere."""
        self.mark(None)

    # --- drawing

    @property
    def _lead(self) -> int:
        """Blank rows above a chat that does not fill the screen."""
        return max(self.size.height - self._tops[-1], 0)

    def render_line(self, y: int) -> Strip:
        """Draw one row of the screen; the last one says that there is new text below it."""
        if self._new_below and y == self.size.height - 1:
            return self._strip(Content.styled(_NEW_BELOW, "$text-accent"), self._room + _MARGIN)
        row = self.scroll_offset.y + y - self._lead
        if not 0 <= row < self._tops[-1]:
            return self._blank
        place = self._place(row)
        block, line = self.blocks[self._first + place], row - self._tops[place]
        lines = block.lines(self._room)
        return self._draw(block, lines[line], row) if line < len(lines) else self._blank

    @property
    def _blank(self) -> Strip:
        """An empty row. Its colours are looked up once: that takes longer than drawing it."""
        width = self.scrollable_content_region.width
        if self._empty is None or self._empty.cell_length != width:
            self._empty = Strip.blank(width, self.rich_style)
        return self._empty

    def _draw(self, block: Block, line: Content, row: int) -> Strip:
        line = self._selected(line, row, self.text_selection)
        key = (line.plain, tuple(line.spans))
        strip = self._strips.get(key)
        if strip is None:
            strip = self._strips[key] = self._strip(line)
        front, blank = self._front(block, block is self.marked), self._blank
        rest = blank.crop(front.cell_length + strip.cell_length)
        return Strip.join([front, strip.apply_offsets(0, row), rest]).crop(0, blank.cell_length)

    def _strip(self, line: Content, width: int | None = None) -> Strip:
        room = width or self._room
        strips = Visual.to_strips(self, line, room, 1, self.visual_style, apply_selection=False, pad=True)
        return strips[0].crop(0, room) if strips else Strip.blank(room, self.rich_style)

    def _front(self, block: Block, marked: bool) -> Strip:
        """Return what stands before every line of a block."""
        key = (block.bar, marked)
        if key not in self._fronts:
            bar = (
                Content.styled(_MARKED if marked else _BAR, block.bar)
                if block.bar
                else Content(" " * _MARGIN)
            )
            self._fronts[key] = self._strip(bar, _MARGIN)
        return self._fronts[key]

    def notify_style_update(self) -> None:
        """Draw everything again in the new colours."""
        super().notify_style_update()
        self._strips.clear()
        self._fronts.clear()
        self._empty = None

    # --- marking text with the mouse

    @property
    def allow_select(self) -> bool:
        """Text can be marked and copied."""
        return True

    def _selected(self, line: Content, row: int, selection: Selection | None) -> Content:
        span = selection.get_span(row) if selection is not None else None
        if span is None:
            return line
        start, end = span
        style = Style.from_styles(self.screen.get_component_styles("screen--selection"))
        return line.stylize(style, start, len(line) if end == -1 else end)

    def selection_updated(self, selection: Selection | None) -> None:
        """Draw the text that is marked."""
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text that was marked."""
        rows = [
            line.plain
            for block in self.blocks[self._first :]
            for line in [*block.lines(self._room), *[Content("")] * block.gap]
        ]
        return selection.extract("\n".join(rows)), "\n"
