"""What is known of a persona, as a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content

from persona_tui.pictures.curve import CurvePoint, curve_of
from persona_tui.tui.views.curve import curve_rows

if TYPE_CHECKING:
    from persona_tui.vectors.persona import Calibration, PersonaVector

_LABEL_WIDTH = 14
_LONGEST_NAME = 32
_BAR_WIDTH = 20
_CURVE = (60, 10)  # cells
_KINDS = {"archetype": "archetype", "generated": "described", "prompts": "prompts"}
_ABOUT_KINDS = {"archetype": "from an archetype's prompts", "prompts": "from your own prompts"}
_SHOWN = ("description", "source", "prompt_sources", "model_name", "created", "counts")


def kind_of(about: Mapping[str, Any]) -> str:
    """Return what a persona was made from, in a word; "" if that is not known.

    Args:
        about: its metadata.
    """
    if about.get("problem"):
        return "unusable"
    if about.get("kind") == "trait":
        return "trait"
    return _KINDS.get(str(about.get("source")), str(about.get("source") or ""))


def about_line(about: Mapping[str, Any]) -> str:
    """Return what to know about a persona before choosing it, in a line or two."""
    if about.get("problem"):
        return str(about["problem"])
    calibration = about.get("calibration")
    parts = [str(about.get("description") or _ABOUT_KINDS.get(str(about.get("source")), ""))]
    if calibration is not None:
        strength, effect = calibration["default_strength"], calibration["expression"]
        parts.append(f"at {strength:g}: {effect:.0%} of its prompts' effect")
    elif about.get("kind") == "trait":
        auc = (about.get("trait") or {}).get("auc") or {}
        parts.append(f"tells replies apart with AUC {auc['value']:.2f}" if "value" in auc else "")
    elif about:
        parts.append("not calibrated")
    if about.get("weak_reason"):
        parts.append(f"weak: {about['weak_reason']}")
    return " · ".join(part for part in parts if part)


def details(
    persona: PersonaVector,
    strength: float | None = None,
    others: Mapping[str, float] | None = None,
    axes: Mapping[str, float] | None = None,
) -> Content:
    """Return all that is known of a persona: metadata, calibration with its curve, cosines.

    Args:
        persona: the persona.
        strength: the present one, which is marked on the curve.
        others: its cosines to the other personas.
        axes: its cosines to the axes.
    """
    rows = [
        (name.replace("_", " "), _plain(persona.metadata[name]))
        for name in _SHOWN
        if persona.metadata.get(name)
    ]
    rows.append(("layers", _span(persona.layers)))
    lines = [_row(label, value) for label, value in rows]
    lines += [Content(""), *_calibration(persona.calibration, persona.metadata.get("weak_reason"), strength)]
    lines += _cosines("cosine to the axes (raw vector)", axes or {})
    lines += _cosines("cosine to the other personas", others or {})
    lines += _prompts(persona.metadata.get("prompts") or ())
    return Content("\n").join(lines)


def _cosines(title: str, values: Mapping[str, float]) -> list[Content]:
    if not values:
        return []
    column = max(_LABEL_WIDTH, min(max(map(len, values)), _LONGEST_NAME) + 1)
    return [
        Content(""),
        Content.styled(title, "bold $text-primary"),
        *(
            Content.assemble(
                Content(name).truncate(column - 1, ellipsis=True).plain.ljust(column),
                _signed_bar(value),
                f" {value:+.2f}",
            )
            for name, value in values.items()
        ),
    ]


def _signed_bar(value: float) -> Content:
    """Return a bar from the middle to the left or right; its ends are -1 and 1."""
    half = _BAR_WIDTH // 2
    length = round(min(abs(value), 1.0) * half)
    left, right = (0, length) if value >= 0 else (length, 0)
    return Content.assemble(
        " " * (half - left),
        ("█" * left, "$text-error"),
        ("│", "dim"),
        ("█" * right, "$text-accent"),
        " " * (half - right),
    )


def _prompts(prompts: Sequence[str]) -> list[Content]:
    if not prompts:
        return []
    title = Content.styled("system prompts", "bold $text-primary")
    return [Content(""), title, *(Content(f"{number}. {text}") for number, text in enumerate(prompts, 1))]


def _calibration(
    calibration: Calibration | None, weakness: str | None, strength: float | None
) -> list[Content]:
    if calibration is None:
        return [Content("Not calibrated: a typical gain is used. Calibrate it with c.")]
    lines = [
        Content.styled("calibration", "bold $text-primary"),
        _row("recipe", calibration.recipe),
        _row("added at", f"layer {_span(calibration.layers)}"),
        _row("gain", f"{calibration.gain:.2f}, so that {calibration.default_strength:g} is clear and fluent"),
        *_without_guide(calibration.unguided_gain),
        _row("expression", f"{calibration.expression:.2f}  (1 = what its system prompts achieve)"),
        _row("fluency", f"{calibration.fluency_drop:+.2f} nats per token lost"),
    ]
    if weakness:
        lines.append(_row("weak", weakness).stylize("$text-warning"))
    return [*lines, Content(""), *_curve(calibration, strength)]


def _without_guide(gain: float | None) -> list[Content]:
    return [] if gain is None else [_row("", f"{gain:.2f} without the guide")]


def _curve(calibration: Calibration, strength: float | None) -> list[Content]:
    """Return expression and fluency over strength, for the chosen recipe and layers."""
    points = curve_of(calibration)
    if not points:
        return []
    title = f"{'strength':<10}{'expression':<{_BAR_WIDTH + 7}}nats lost"
    at = [point.strength for point in points]
    now = None if strength is None else min(at, key=lambda each: abs(each - abs(strength)))
    rows = [_point(point, point.strength == now) for point in points]
    drawn = curve_rows(calibration, strength, *_CURVE)
    return [*drawn, Content(""), Content.styled(title, "bold"), *rows]


def _point(point: CurvePoint, is_now: bool) -> Content:
    filled = round(max(0.0, min(1.0, point.expression)) * _BAR_WIDTH)
    bar = ("█" * filled, "$text-accent"), ("─" * (_BAR_WIDTH - filled), "dim")
    chosen = "  ← chosen" if point.chosen else ""
    return Content.assemble(
        f"{point.strength:<10.2f}",
        *bar,
        f" {point.expression:5.2f} {point.loss:+.2f}",
        ("" if point.fluent else "  not fluent", "$text-warning"),
        (chosen, "bold"),
        ("  ← now" if is_now and not chosen else ", now" if is_now else "", "dim"),
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
