"""Replies in the chat, tinted token by token: by surprise, by a direction, or by what steering changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_tui.chat.reread import text_before
from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.tui.widgets.token_view import unit_of

if TYPE_CHECKING:
    from persona_tui.chat import Node
    from persona_tui.tui.inspection import Inspection
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.stage import AppStage

MODES = ("off", "surprise", "steering", "direction")
_STEPS = {"surprise": (1.0, 3.0, 6.0), "steering": (0.5, 1.5, 3.0), "direction": (0.5, 1.0, 2.0)}
_EXPLAINED = {
    "off": "no tint",
    "surprise": "surprise: amber = improbable as it was spoken, from 1, 3 and 6 nats on",
    "steering": "steering: green = it made a token likelier, red = less likely, by 0.5, 1.5 and 3 nats",
}
_SHADES = (20, 40, 60)  # percent
_PLAIN = ("", "bold ", "bold underline ")  # where there are no shades


class Tints:
    """Chooses what replies are tinted by, and has what is not known worked out, the newest reply first."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self.mode = "off"

    def turn(self, replies: ReplyView, inspection: Inspection, mode: str = "") -> str:
        """Tint by something, by default the next in turn; what to say about it.

        Raises:
            PersonaTuiError: the model is loading, or there is no such tint.
        """
        self._app.check_model()
        if mode and mode not in MODES:
            raise PersonaTuiError(f'no tint "{mode}".{nearest(mode, MODES)} There are {", ".join(MODES)}.')
        self.mode = mode or MODES[(MODES.index(self.mode) + 1) % len(MODES)]
        replies.on_shown = lambda: self.apply(inspection)
        self.apply(inspection)
        return _EXPLAINED.get(self.mode) or self._direction_explained(inspection.direction)

    def _direction_explained(self, name: str) -> str:
        from persona_tui.traits.vector import weakness_of

        said = f"direction: green = above 0 on {name}, red = below, by 0.5, 1, 2{unit_of(name)}"
        weak = weakness_of(self._app.project.personas, name)
        return f"{said}. It is weak: {weak}" if weak else said

    def apply(self, inspection: Inspection) -> None:
        """Tint what is known, and ask for the newest reply of which it is not."""
        app = self._app
        for block in reversed(app.main.chat.messages):
            if block.role != "assistant" or block.key is None:
                continue
            node = app.chat.conversation.node(block.key)
            block.tint(None if self.mode == "off" or node.writing else self._pieces(node, inspection))
        app.main.chat.rearrange()

    def _pieces(self, node: Node, inspection: Inspection) -> Sequence[tuple[str, str]] | None:
        """Return a reply's tokens with their styles; None while they are not known."""
        values: list[float | None]
        if self.mode == "direction":
            values = [token.value for token in inspection.values_of(node)]
        else:
            choices = () if inspection.asking else inspection.choices_of(node)
            choices = choices or inspection.known_choices(node)
            values = [each.surprise if self.mode == "surprise" else each.nats for each in choices]
        if not values or len(values) != len(node.token_texts):
            return None
        plain = self._app.current_theme.name.startswith("ansi")
        styled = [
            (text, _style(value, self.mode, plain))
            for text, value in zip(node.token_texts, values, strict=True)
        ]
        return _stripped([(text_before(node, 0), ""), *styled])


def _style(value: float | None, mode: str, plain: bool) -> str:
    """Return the style of a token; none for one that is nothing special."""
    level = sum(abs(value) >= step for step in _STEPS[mode]) if value is not None else 0
    if not level or value is None:
        return ""
    colour = "warning" if mode == "surprise" else "success" if value > 0 else "error"
    return f"{_PLAIN[level - 1]}$text-{colour}" if plain else f"on ${colour} {_SHADES[level - 1]}%"


def _stripped(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without white space at the beginning and the end."""
    kept = list(pieces)
    while kept and not kept[0][0].strip():
        kept.pop(0)
    while kept and not kept[-1][0].strip():
        kept.pop()
    if kept:
        kept[0] = (kept[0][0].lstrip(), kept[0][1])
    return kept
