"""The chat as a widget: following, marking, old messages, what is drawn."""

from __future__ import annotations

from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection

from persona_tui.tui.blocks import Badge, Heading, MessageBlock, Note
from persona_tui.tui.widgets.chat_log import SHOWN, ChatLog

LONG = "word " * 60


class Chat(App[None]):
    """A chat and nothing else."""

    CSS = "ChatLog { height: 1fr; }"

    def __init__(self, messages: int = 0, text: str = "a reply") -> None:
        super().__init__()
        self.log_view = ChatLog()
        self.count, self.text = messages, text
        self.asked: list[tuple[str, int | None]] = []

    def compose(self) -> ComposeResult:
        yield self.log_view

    def on_mount(self) -> None:
        for number in range(self.count):
            self.log_view.add(MessageBlock("assistant", Heading(f"reply {number}"), self.text, key=number))

    def on_chat_log_asked(self, event: ChatLog.Asked) -> None:
        self.asked.append((event.what, event.block.key))


def rows(app: Chat) -> list[str]:
    """Return what is on the screen."""
    chat = app.log_view
    return [chat.render_line(y).text.rstrip() for y in range(chat.size.height)]


async def test_the_end_is_followed_until_the_reader_scrolls() -> None:
    app = Chat(30)
    async with app.run_test(size=(40, 10)) as pilot:
        chat = app.log_view
        assert "reply 29" in " ".join(rows(app))
        chat.scroll_to(y=5, animate=False)
        await pilot.pause()
        chat.note("later")
        assert chat.scroll_y == 5 and "later" not in " ".join(rows(app))
        chat.follow()
        chat.note("latest")
        assert "latest" in " ".join(rows(app))


async def test_a_growing_reply_stays_in_view() -> None:
    app = Chat(3)
    async with app.run_test(size=(40, 10)):
        block = app.log_view.messages[-1]
        for number in range(40):
            block.write(f"\n\nparagraph {number}")
            app.log_view.rearrange()
        assert "paragraph 39" in " ".join(rows(app))


async def test_a_short_chat_stands_above_the_prompt() -> None:
    app = Chat(1)
    async with app.run_test(size=(40, 10)):
        assert rows(app)[-3:] == ["▌ reply 0", "▌ a reply", ""]
        assert rows(app)[0] == ""


async def test_no_row_is_wider_than_the_chat() -> None:
    app = Chat(2, LONG)
    async with app.run_test(size=(33, 10)) as pilot:
        for width in (33, 90, 21):
            await pilot.resize_terminal(width, 10)
            await pilot.pause()
            assert max(app.log_view.render_line(y).cell_length for y in range(10)) <= width
            assert "word" in rows(app)[-2]


async def test_what_is_read_stays_in_view_when_the_size_changes() -> None:
    app = Chat(30, LONG)
    async with app.run_test(size=(60, 12)) as pilot:
        chat = app.log_view
        chat.mark(chat.messages[10])
        await pilot.pause()
        await pilot.resize_terminal(100, 12)
        await pilot.pause()
        assert any("reply 1" in row for row in rows(app))


async def test_old_blocks_come_back_when_the_reader_goes_to_the_top() -> None:
    app = Chat(SHOWN + 50)
    async with app.run_test(size=(40, 10)) as pilot:
        chat = app.log_view
        assert chat._first == 50
        chat.scroll_to(y=0, animate=False)
        await pilot.pause()
        assert chat._first == 0
        assert any("reply 50" in row for row in rows(app)), "the reader is where they were"
        chat.mark(chat.messages[0])
        await pilot.pause()
        assert any("reply 0" in row for row in rows(app))


async def test_keys_walk_the_messages_and_ask() -> None:
    app = Chat(3)
    async with app.run_test(size=(40, 12)) as pilot:
        app.log_view.add(Note("a note"))
        app.set_focus(None)  # it has had the focus since it was empty
        app.set_focus(app.log_view)
        await pilot.pause()
        await pilot.press("up", "up", "y", "down", "e", "left", "right", "c")
        assert app.asked == [("copy", 0), ("edit", 1), ("before", 1), ("after", 1), ("code", 1)]
        assert any(row.startswith("█ reply 1") for row in rows(app)), "the mark is seen without colours"
        app.set_focus(None)
        await pilot.pause()
        assert app.log_view.marked is None


async def test_text_can_be_marked_with_the_mouse() -> None:
    app = Chat(1, "one two three")
    async with app.run_test(size=(40, 10)):
        chat = app.log_view
        assert chat.get_selection(Selection(Offset(4, 1), Offset(7, 1))) == ("two", "\n")


def test_facts_that_do_not_fit_are_left_out() -> None:
    heading = Heading("sage 0.30", "", " ‹1/2›", ["stopped", "57 tokens", "31 tok/s"])
    assert heading.line(80).plain == "sage 0.30 ‹1/2›  stopped · 57 tokens · 31 tok/s"
    assert heading.line(36).plain == "sage 0.30 ‹1/2›  stopped · 57 tokens"
    assert heading.line(16).plain == "sage 0.30 ‹1/2›"
    assert heading.line(8).cell_length == 8


def test_badges_that_do_not_fit_go_on_lines_of_their_own() -> None:
    badges = [Badge("✓ safe 0.05", ""), Badge("! kindness 0.10 < 0.50", ""), Badge("! calm 0.1 < 0.2", "")]
    heading = Heading("sage", "", "", ["57 tokens", "31 tok/s"], badges)
    whole = "sage  ✓ safe 0.05 · ! kindness 0.10 < 0.50 · ! calm 0.1 < 0.2 · 57 tokens · 31 tok/s"
    assert [line.plain for line in heading.lines(100)] == [whole]
    assert [line.plain for line in heading.lines(40)] == [
        "sage  ✓ safe 0.05 · 57 tokens · 31 tok/s",
        "! kindness 0.10 < 0.50",
        "! calm 0.1 < 0.2",
    ]
    assert all(line.cell_length <= 10 for line in heading.lines(10))


def test_code_after_a_ruler_still_is_code() -> None:
    block = MessageBlock("assistant", Heading("sage"))
    block.write("Look:\n\n```python\nx = 1\n")
    block.rule("strength 0.30 → 0.50")
    block.write("y = 2\n```\ndone")
    lines = [line.plain.rstrip() for line in block.lines(40)]
    assert lines[3] == "  x = 1" and lines[4].startswith("── strength") and lines[5] == "  y = 2"
    assert block.source == "Look:\n\n```python\nx = 1\ny = 2\n```\ndone"
    assert block.code_blocks() == ["x = 1\ny = 2\n"]


def test_a_ruler_can_be_changed_later() -> None:
    block = MessageBlock("assistant", Heading("sage"), "one")
    block.rule("0.30 → 0.35")
    block.write("two")
    block.rule("0.30 → 0.40", again=True)
    assert [line.plain[:14] for line in block.lines(30)] == ["sage", "one", "── 0.30 → 0.40", "two"]
