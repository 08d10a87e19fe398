"""How replies are sampled: temperature, top-p, length, seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal, Vertical
from textual.widgets import Button, Input, Label, Static

from persona_tui.core.config import GenerationSettings, Settings, override
from persona_tui.core.errors import ConfigError
from persona_tui.tui.screens.dialog import Dialog

LABELS = {
    "temperature": "temperature",
    "top_p": "top-p",
    "max_new_tokens": "longest reply",
    "seed": "seed",
}
_HINTS = {
    "temperature": "0 = the likeliest token",
    "top_p": "1 = any token",
    "max_new_tokens": "tokens",
    "seed": "empty = a new one each time",
}


class SamplingScreen(Dialog[dict[str, Any]]):
    """Four fields. The answer is what differs from the settings, by name."""

    def __init__(self, settings: Settings, changes: Mapping[str, Any]) -> None:
        """
        Args:
            settings: what holds unless something else is chosen.
            changes: what has been chosen already.
        """
        super().__init__()
        self._settings = settings
        self._changes = dict(changes)

    def compose(self) -> ComposeResult:
        """Return the form."""
        configured = self._settings.generation.model_dump()
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = "sampling"
            dialog.border_subtitle = "enter uses it · esc cancels"
            with Grid(classes="fields"):
                for name, label in LABELS.items():
                    yield Label(label)
                    yield Input(
                        _text({**configured, **self._changes}[name]),
                        placeholder=_text(configured[name]) or "none",
                        id=name,
                        compact=True,
                    )
                    yield Static(_HINTS[name], markup=False, classes="hint")
            yield Static("It applies from the next reply on, for this run.", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Use it", id="use", variant="primary", compact=True)
                yield Button("As configured", id="reset", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#use")
    def _use(self) -> None:
        try:
            self.dismiss(self._chosen())
        except (ConfigError, ValueError) as error:
            advice = self.query_one("#advice", Static)
            advice.update(str(error).removeprefix("settings: generation."))
            advice.add_class("-error")

    def _chosen(self) -> dict[str, Any]:
        """Return what differs from the settings.

        Raises:
            ConfigError: a value is out of range.
            ValueError: something is not a number.
        """
        typed = {name: _value(name, self.query_one(f"#{name}", Input).value.strip()) for name in LABELS}
        values = {f"generation.{name}": value for name, value in typed.items()}
        chosen = override(self._settings, values).generation.model_dump()
        configured = self._settings.generation.model_dump()
        return {name: value for name, value in chosen.items() if value != configured[name]}

    @on(Button.Pressed, "#reset")
    def _reset(self) -> None:
        self.dismiss({})

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.action_leave()


def summary(settings: GenerationSettings, changes: Mapping[str, Any]) -> str:
    """Return how replies are sampled, in one line."""
    values = {**settings.model_dump(), **changes}
    return " · ".join(f"{label} {_text(values[name]) or 'none'}" for name, label in LABELS.items())


def _text(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> float | int | None:
    if name == "seed" and not text:
        return None
    try:
        return float(text) if name in ("temperature", "top_p") else int(text)
    except ValueError:
        raise ValueError(f'{LABELS[name]} must be a number, not "{text}"') from None
