"""A message under the magnifying glass: figures, tokens, and what is known of the one under the cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from persona_tui.core.documents import printable
from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.token_view import Scale, TokenValue, TokenView

if TYPE_CHECKING:
    from persona_tui.pictures.choices import Alternative, TokenChoice
    from persona_tui.pictures.heat import HeatMap

_LEAST_SPAN = 1.0  # on either side of the middle, so that a calm message does not look like a storm
_LEGEND = "▁▂▃▄▅▆▇█"
_OTHERS = 5  # tokens that are told of either side


@dataclass(frozen=True)
class InspectorState:
    """What the inspector shows.

    Attributes:
        message: tells the message from others.
        title: who speaks, which message it is.
        direction: what it is projected on.
        layers: where, in words.
        unit: of the projections.
        floor: where the floor lay, on their scale; None = there was none on this direction.
        tokens: the message.
        note: what there is to say besides; "" = nothing.
        choices: how probable each token was, and what else was likely; empty if that is not known.
        lift: what a lift of 1 is on the scale of the projections; None = the floor is on another direction.
        heat: the direction in the message, layer by layer; None = that is not known.
        asking: whether the probabilities are on their way.
    """

    message: object = None
    title: str = ""
    direction: str = ""
    layers: str = ""
    unit: str = ""
    floor: float | None = None
    tokens: Sequence[TokenValue] = field(default_factory=tuple)
    note: str = ""
    choices: Sequence[TokenChoice] = field(default_factory=tuple)
    lift: float | None = None
    heat: HeatMap | None = None
    asking: bool = False

    @property
    def values(self) -> list[float]:
        """The projections that are known."""
        return [token.value for token in self.tokens if token.value is not None]

    @property
    def scale(self) -> Scale:
        """What the projections are shown against: the floor, or ordinary replies."""
        middle = self.floor or 0.0
        return Scale(middle, max([_LEAST_SPAN, *(abs(value - middle) for value in self.values)]))


class Inspector(Sturdy, Vertical):
    """Shows one state; says which other message or direction is wanted."""

    BORDER_TITLE = "inspector"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("shift+right,d", "turn('direction', 1)", "direction", id="inspect_direction"),
        Binding(
            "shift+left,D",
            "turn('direction', -1)",
            "direction before",
            show=False,
            id="inspect_direction_back",
        ),
        Binding("alt+up", "turn('message', -1)", "message", id="inspect_message_before"),
        Binding("alt+down", "turn('message', 1)", "next message", show=False, id="inspect_message_after"),
    ]
    DEFAULT_CSS = """
    Inspector { layout: vertical; }
    Inspector #inspect-head, Inspector #inspect-foot { height: auto; }
    Inspector TokenView { height: auto; margin: 1 0; scrollbar-size: 0 1; scrollbar-gutter: stable; }
    """

    @dataclass
    class Turned(Message):
        """Another direction or message is wanted: the next (1) or the one before (−1)."""

        what: str
        step: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.state = InspectorState()

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Static("", id="inspect-head", markup=False)
        yield TokenView()
        yield Static("", id="inspect-foot", markup=False)

    @property
    def view(self) -> TokenView:
        """The tokens."""
        return self.query_one(TokenView)

    def show(self, state: InspectorState) -> None:
        """Show a message."""
        anew = state.message != self.state.message
        self.state = state
        self.query_one("#inspect-head", Static).update(_head(state))
        self.view.show(state.tokens, state.scale, anew=anew)
        self._show_foot()

    def action_turn(self, what: str, step: int) -> None:
        """Ask for another direction or message."""
        self.post_message(self.Turned(what, step))

    @on(TokenView.Moved)
    def _show_foot(self) -> None:
        foot = self.query_one("#inspect-foot", Static)
        few_colours = self.app.current_theme.name.startswith("ansi")
        foot.update(_foot(self.state, self.view, self.size.width, few_colours))


def _head(state: InspectorState) -> Content:
    """Return what is said of the whole message."""
    where = f"  {state.layers}" if state.layers else ""
    half = len(_LEGEND) // 2
    low, high = (_LEGEND[:half], "$text-error"), (_LEGEND[half:], "$text-success")
    rows = [
        Content.assemble((printable(state.title), "bold"), "  ", low, high),
        Content.assemble("on ", (state.direction or "—", "bold $text-accent"), (where, "dim")),
        _floor(state),
        _figures(state),
    ]
    if state.note:
        rows.append(Content.styled(state.note, "$text-warning"))
    return Content("\n").join(rows)


def _floor(state: InspectorState) -> Content:
    lifts = [token.lifted for token in state.tokens if token.lifted > 0]
    lifted = len(lifts)
    if state.floor is None and not lifted:
        return Content.styled("no floor here; 0 = ordinary replies", "dim")
    share = lifted / max(len(state.tokens), 1)
    floor = f"floor {state.floor:+.2f}{state.unit} · " if state.floor is not None else ""
    mean = sum(lifts) / lifted * state.lift if lifted and state.lift is not None else None
    by = f", by {mean:.2f}{state.unit} on average" if mean is not None else ""
    capped = f"▴ {lifted} of {len(state.tokens)} capped ({share:.0%}){by}"
    return Content.assemble(floor, (capped, "$text-warning" if lifted else "dim"))


def _figures(state: InspectorState) -> Content:
    values = state.values
    if not values:
        return Content.styled("no projections yet", "dim")
    low, mean, high = min(values), sum(values) / len(values), max(values)
    return Content(f"min {low:+.2f} · mean {mean:+.2f} · max {high:+.2f}{state.unit}")


def _foot(state: InspectorState, view: TokenView, width: int, few_colours: bool) -> Content:
    """Return what is said of the token under the cursor."""
    token = view.current
    if token is None:
        return Content("")
    shown = printable(token.text).replace("\n", "↵") or "(nothing)"
    first = Content.assemble((f"{view.cursor + 1}/{len(view.tokens)} ", "dim"), (f"“{shown}”", "bold"))
    choice = _choice(state.choices[view.cursor]) if view.cursor < len(state.choices) else []
    if state.asking:
        choice = [Content.styled("working out how probable it was …", "dim")]
    layers: Sequence[Content] = ()
    if state.heat is not None:
        from persona_tui.tui.views.heat import strip_rows  # numpy is not imported before the first paint

        layers = strip_rows(state.heat, view.cursor, width, few_colours)
    return Content("\n").join([first, _reading(state, token), *choice, *layers])


def _choice(choice: TokenChoice) -> list[Content]:
    """Say how probable a token was with steering and without, and what else was likely."""
    changed = "$text-success" if choice.nats > 0 else "$text-error"
    first = Content.assemble(
        ("spoken ", "dim"),
        (f"{math.exp(choice.logprob):.1%}", "bold"),
        (f", rank {choice.rank} · unsteered ", "dim"),
        (f"{math.exp(choice.plain_logprob):.1%}", "bold"),
        (f", rank {choice.plain_rank} · ", "dim"),
        (f"{choice.nats:+.2f} nats", changed),
    )
    sides = (("spoken", choice.likeliest), ("unsteered", choice.plain_likeliest))
    return [first, *(Content.assemble((f"{name:<10}", "dim"), _others(side)) for name, side in sides)]


def _others(side: Sequence[Alternative]) -> str:
    return " · ".join(f"{token_text(each.text)} {math.exp(each.logprob):.0%}" for each in side[:_OTHERS])


def token_text(text: str) -> str:
    """Return a token's text so that it can be told from others: `␣the`, `↵`, `(end)`."""
    return printable(text).replace(" ", "␣").replace("\n", "↵").replace("\t", "→") or "(end)"


def _reading(state: InspectorState, token: TokenValue) -> Content:
    if token.value is None:
        return Content.styled("not read", "dim")
    distance = token.value - (state.floor or 0.0)
    what = "the floor" if state.floor is not None else "ordinary"
    side = "above" if distance >= 0 else "below"
    lifted = ""
    if token.lifted > 0:
        before = None if state.lift is None else token.value - token.lifted * state.lift
        lifted = " · ▴ lifted" + (
            "" if before is None else f" from {before:+.2f}{state.unit}, mean of layers"
        )
    return Content.assemble(
        (f"{token.value:+.2f}{state.unit}", "bold $text-accent"),
        f" · {abs(distance):.2f} {side} {what}",
        (lifted, "$text-warning"),
    )
