"""What is known of a persona, as a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content

if TYPE_CHECKING:
    from persona_tui.vectors.persona import Calibration, PersonaVector

_LABEL_WIDTH = 14
_BAR_WIDTH = 20
_SHOWN = ("description", "source", "prompt_sources", "model_name", "created", "counts")


def details(persona: PersonaVector) -> Content:
    """Return a persona's metadata and its calibration."""
    rows = [
        (name.replace("_", " "), _plain(persona.metadata[name]))
        for name in _SHOWN
        if persona.metadata.get(name)
    ]
    rows.append(("layers", _span(persona.layers)))
    lines = [_row(label, value) for label, value in rows]
    lines.append(Content(""))
    lines += _calibration(persona.calibration, persona.metadata.get("weak_reason"))
    return Content("\n").join(lines)


def _calibration(calibration: Calibration | None, weakness: str | None) -> list[Content]:
    if calibration is None:
        return [Content("Not calibrated: strength is in multiples of the vector's natural size.")]
    lines = [
        Content.styled("calibration", "bold $text-primary"),
        _row("recipe", calibration.recipe),
        _row("added at", f"layer {_span(calibration.layers)}"),
        _row("gain", f"{calibration.gain:.2f}, so that {calibration.default_strength:g} is clear and fluent"),
        _row("expression", f"{calibration.expression:.2f}  (1 = what its system prompts achieve)"),
        _row("fluency", f"{calibration.fluency_drop:+.2f} nats per token lost"),
    ]
    if weakness:
        lines.append(_row("weak", weakness).stylize("$text-warning"))
    return [*lines, Content(""), *_curve(calibration)]


def _curve(calibration: Calibration) -> list[Content]:
    """Return expression and fluency over strength, for the chosen recipe and layers."""
    points = [point for point in calibration.curve if _belongs(point, calibration)]
    by_strength = {point["coefficient"] / calibration.gain: point for point in points if calibration.gain}
    if not by_strength:
        return []
    title = f"{'strength':<10}{'expression':<{_BAR_WIDTH + 7}}nats lost"
    return [Content.styled(title, "bold"), *(_point(at, by_strength[at]) for at in sorted(by_strength))]


def _belongs(point: Mapping[str, Any], calibration: Calibration) -> bool:
    return point.get("recipe") == calibration.recipe and tuple(point.get("layers", ())) == calibration.layers


def _point(strength: float, point: Mapping[str, Any]) -> Content:
    expression = float(point["expression"])
    filled = round(max(0.0, min(1.0, expression)) * _BAR_WIDTH)
    bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
    fluent = "" if point.get("fluent", True) else "  not fluent"
    chosen = "  ← chosen" if point.get("chosen") else ""
    return Content.assemble(
        f"{strength:<10.2f}",
        (bar, "$text-accent"),
        f" {expression:5.2f} {point['fluency_drop']:+.2f}",
        (fluent, "$text-warning"),
        (chosen, "bold"),
    )


def _row(label: str, value: str) -> Content:
    return Content.assemble((f"{label:<{_LABEL_WIDTH}}", "dim"), value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _span(layers: Sequence[int]) -> str:
    """Return layers as `14–21`, or one by one where they are not in a row."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
