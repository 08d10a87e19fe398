"""What the app draws holds no control character of anybody else's."""

from __future__ import annotations

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from persona_tui.tui.terminal import clean_output


def test_a_sequence_in_a_text_is_not_drawn() -> None:
    console = Console(color_system="truecolor")
    plain = Strip([Segment("sage ", Style(bold=True)), Segment("0.30")])
    before = plain.render(console)
    clean_output()
    clean_output()
    assert Strip([Segment("sage ", Style(bold=True)), Segment("0.30")]).render(console) == before
    nasty = ["\x1b]52;c;cm0gLXJm\x07", "\x9b31m", "\x1b[2J\x1b[H", "\x1b]8;;http://x\x1b\\", "\x7f\x00"]
    for text in nasty:
        drawn = Strip([Segment(f"sage{text}", Style(bold=True))]).render(console)
        assert drawn.replace("\x1b[1m", "", 1).replace("\x1b[0m", "", 1).isprintable(), repr(drawn)
