"""What a reply says in place of one of its tokens; it goes on from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.core.documents import printable
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.sturdy import RowList
from persona_tui.tui.widgets.inspector import token_text

if TYPE_CHECKING:
    from persona_tui.pictures.choices import TokenChoice

_SHOWN = 36  # characters of what stands before


class ForkScreen(Dialog[str]):
    """A list of likely tokens, and a field. The answer is what stands there instead; "" ends the reply."""

    def __init__(self, before: str, token: str, choice: TokenChoice | None) -> None:
        """
        Args:
            before: the reply's text up to there.
            token: what it said.
            choice: what else was likely; None = that is not known.
        """
        super().__init__()
        self._before, self._token = before, token
        self._steered = {each.text: each.logprob for each in choice.likeliest} if choice is not None else {}
        self._plain = (
            {each.text: each.logprob for each in choice.plain_likeliest} if choice is not None else {}
        )
        usable = [text for text in [*self._steered, *self._plain] if text != token and "\ufffd" not in text]
        self._offered = list(dict.fromkeys(usable))

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        before = " ".join(printable(self._before)[-_SHOWN:].split())
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "say this instead"
            dialog.border_subtitle = "enter goes on from there, as a branch · esc cancels"
            yield Static(f"… {before}  [ {token_text(self._token)} ]", markup=False, classes="question")
            yield RowList(*(Option(self._row(text)) for text in self._offered), compact=True, id="fork-list")
            yield Input(placeholder="or your own words", id="fork-own", compact=True)

    def on_mount(self) -> None:
        """Begin with the likeliest one."""
        rows = self.query_one("#fork-list", RowList)
        rows.display = bool(self._offered)
        rows.highlighted = 0 if self._offered else None
        self.set_focus(rows if self._offered else self.query_one("#fork-own"))

    def _row(self, text: str) -> Content:
        name = (f"{token_text(text):<20}", "bold")
        return Content.assemble(
            name, _share(self._steered, text), (f"  unsteered {_share(self._plain, text)}", "dim")
        )

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._offered[event.option_index])

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip():
            space = self._token[:1].isspace() and not event.value[:1].isspace()
            self.dismiss(f" {event.value}" if space else event.value)


def _share(known: Mapping[str, float], text: str) -> str:
    return f"{math.exp(known[text]):>7.1%}" if text in known else "      –"
