"""Curves on logarithmic scales, as an SVG written by hand: nothing has to be installed for a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 320, 210  # of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 40  # its margins
_COLUMNS = 2


@dataclass(frozen=True)
class Curve:
    """Measured points.

    Attributes:
        title: what is varied.
        unit: what is measured.
        xs, ys: the points, all above 0.
        exponent: the fitted one.
        linear: the exponent of linear growth, drawn as a dashed line through the first point.
    """

    title: str
    unit: str
    xs: Sequence[float]
    ys: Sequence[float]
    exponent: float
    linear: float


def plot(curves: Sequence[Curve]) -> str:
    """All curves, two in a row."""
    rows = -(-len(curves) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT
    places = [(_WIDTH * (at % _COLUMNS), _HEIGHT * (at // _COLUMNS)) for at in range(len(curves))]
    panels = "\n".join(
        f'<g transform="translate({x},{y})">{_panel(curve)}</g>'
        for (x, y), curve in zip(places, curves, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="#333">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{panels}\n</svg>\n'
    )


class _Scale:
    """From values to places, logarithmically."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = math.log10(min(values)), math.log10(max(values))
        if self.high - self.low < 0.3:  # a flat curve is shown as flat
            middle = (self.low + self.high) / 2
            self.low, self.high = middle - 0.5, middle + 0.5
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _panel(curve: Curve) -> str:
    ideal = [curve.ys[0] * (x / curve.xs[0]) ** curve.linear for x in curve.xs]
    across = _Scale(curve.xs, _LEFT, _WIDTH - _RIGHT)
    up = _Scale(curve.ys, _HEIGHT - _BOTTOM, _TOP)
    inside = [(x, y) for x, y in zip(curve.xs, ideal, strict=True) if up.low <= math.log10(y) <= up.high]
    title = f"{curve.unit}: exponent {curve.exponent:.2f} (linear: {curve.linear:g})"
    parts = [
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(curve.title)}</text>",
        _line(inside, across, up, 'stroke="#aaa" stroke-dasharray="4 3"'),
        _line(list(zip(curve.xs, curve.ys, strict=True)), across, up, 'stroke="#1f6fb4" stroke-width="2"'),
        *_dots(curve, across, up),
        *_ticks(curve, across, up),
    ]
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], across: _Scale, up: _Scale, style: str) -> str:
    places = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" {style}/>'


def _dots(curve: Curve, across: _Scale, up: _Scale) -> Iterator[str]:
    for x, y in zip(curve.xs, curve.ys, strict=True):
        yield f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="#1f6fb4"/>'


def _ticks(curve: Curve, across: _Scale, up: _Scale) -> Iterator[str]:
    base = _HEIGHT - _BOTTOM + 14
    for x in curve.xs:
        yield f'<text x="{across(x):.1f}" y="{base}" text-anchor="middle">{x:g}</text>'
    for y in dict.fromkeys((min(curve.ys), max(curve.ys))):
        yield f'<text x="{_LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
