"""The pictures as files, drawn by matplotlib, which is optional: `pip install 'persona-tui[plots]'`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError, WorkspaceError
from persona_tui.pictures.cosines import CosineGrid
from persona_tui.pictures.curve import curve_of
from persona_tui.pictures.drift import Drift
from persona_tui.pictures.heat import HeatMap
from persona_tui.pictures.labels import place_labels
from persona_tui.pictures.space import Kind, PersonaMap, Place
from persona_tui.vectors.persona import Calibration

FORMATS = (".svg", ".png", ".pdf")
_MARKERS: dict[Kind, tuple[str, str]] = {
    "persona": ("o", "#2a78b8"),
    "role": (".", "#9cc3df"),
    "assistant": ("s", "#333333"),
    "trait": ("^", "#8a8a8a"),
    "axis": ("D", "#b08020"),
    "mix": ("*", "#c8503c"),
}
_PATH = "#c8503c"
_MARKER = 8.0  # pixels
_LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5}
_WIDEST = 28.0  # inches
_Draw = Callable[[Any], None]


def check_picture(path: Path) -> None:
    """Make sure, before the work, that a picture can be written.

    Raises:
        PersonaTuiError: the file has another ending, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise PersonaTuiError(
            f"{path.name} ends with none of {', '.join(FORMATS)}, which pictures are written as"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise PersonaTuiError("pictures need matplotlib: pip install 'persona-tui[plots]'")


def draw_map(found: PersonaMap, path: Path) -> None:
    """Write a map of persona space.

    Raises:
        PersonaTuiError: see `check_picture`.
        WorkspaceError: the file cannot be written.
    """

    def draw(axes: Any) -> None:
        for kind, (marker, colour) in _MARKERS.items():
            if places := found.of(kind):
                points = [p.x for p in places], [p.y for p in places]
                axes.scatter(*points, marker=marker, color=colour, label=kind)
        turns = found.of("turn")
        if turns:
            path = [p.x for p in turns], [p.y for p in turns]
            axes.plot(*path, "-", color=_PATH, linewidth=1, label="turns")
        first, second = found.shares
        axes.set(
            title=f"Personas at layer {found.layer}",
            xlabel=f"first component, {first:.0%} of the variance",
            ylabel=f"second component, {second:.0%}",
        )
        axes.margins(0.12)
        axes.legend(fontsize="small")
        _label(axes, [place for kind in ("mix", "turn", *_MARKERS) for place in found.of(kind)])

    _write(path, (9, 7), draw)


def _label(axes: Any, places: Sequence[Place]) -> None:
    """Write the places' names so that none covers another; what has no room stays without."""
    places, figure = list(dict.fromkeys(places)), axes.figure
    figure.draw_without_rendering()  # from now on it is known where everything is
    renderer, frame, to_pixels = figure.canvas.get_renderer(), axes.get_window_extent(), axes.transData
    anchors, texts = [], []
    for place in places:
        x, y = to_pixels.transform((place.x, place.y))
        anchors.append((x - frame.x0 - _MARKER / 2, frame.y1 - y - _MARKER / 2))
        colour = _PATH if place.kind == "turn" else "black"
        texts.append(
            axes.text(place.x, place.y, printable(place.name), fontsize=7, color=colour, va="bottom")
        )
        texts[-1].set_in_layout(False)
    boxes = [text.get_window_extent(renderer) for text in texts]
    sizes = [(box.width + 2, box.height + 1) for box in boxes]
    spots = place_labels(anchors, sizes, (frame.width, frame.height), (_MARKER, _MARKER), rings=6)
    for place, text, size, spot in zip(places, texts, sizes, spots, strict=True):
        if spot is None:
            text.remove()
            continue
        bottom = frame.y1 - spot[1] - size[1]
        at = tuple(to_pixels.inverted().transform((frame.x0 + spot[0], bottom)))
        far = abs(bottom + size[1] / 2 - to_pixels.transform((place.x, place.y))[1]) > size[1] * 1.5
        if far and place.kind == "role":  # there may be a hundred: a dot is enough
            text.remove()
            continue
        text.set_position(at)
        if far:
            axes.annotate("", (place.x, place.y), at, arrowprops=_LEADER)  # too far to be seen whose it is


def draw_cosines(grid: CosineGrid, path: Path) -> None:
    """Write a grid of cosines; the errors are those of `draw_map`."""
    count = len(grid.names)

    def draw(axes: Any) -> None:
        image = axes.imshow(grid.cosines, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(np.arange(count), grid.names, rotation=90, fontsize=7)
        axes.set_yticks(np.arange(count), grid.names, fontsize=7)
        if count <= 20:
            for (row, column), value in np.ndenumerate(grid.cosines):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axes.set_title("Cosines of the safe vectors")
        axes.figure.colorbar(image)

    side = min(_WIDEST, 4 + 0.28 * count)
    _write(path, (side + 1, side), draw)


def draw_drift(found: list[Drift], path: Path) -> None:
    """Write a conversation's way along directions; the errors are those of `draw_map`."""

    def draw(axes: Any) -> None:
        for each in found:
            turns = np.arange(1, len(each.readings) + 1)
            (line,) = axes.plot(turns, each.readings, marker="o", label=_marked(each))
            if each.ordinary is not None:
                axes.axhspan(*each.ordinary, color=line.get_color(), alpha=0.08)
            if each.floor is not None:
                axes.axhline(
                    each.floor, color=line.get_color(), linestyle="--", label=f"floor on {each.name}"
                )
        axes.axhline(0, color="#333333", linewidth=0.6)
        axes.set(title="Drift", xlabel="reply", ylabel="reading; shaded: where 95% of ordinary replies lie")
        axes.legend(fontsize="small")

    _write(path, (9, 5), draw)


def draw_heat(found: HeatMap, path: Path) -> None:
    """Write a heat map, as spoken above as read plain; the errors are those of `draw_map`."""
    limit = found.limit
    words = [printable(token).strip() or "·" for token in found.tokens]

    def draw(axes: Any) -> None:
        figure = axes.figure
        axes.remove()
        panels = figure.subplots(2, 1, sharex=True)
        for panel, table, title in zip(
            panels, (found.spoken, found.plain), ("as spoken", "unsteered"), strict=True
        ):
            image = panel.imshow(table, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
            panel.set_yticks(np.arange(len(found.layers)), [str(layer) for layer in found.layers], fontsize=6)
            panel.set(title=f"{_marked(found)}, {title}", ylabel="layer")
        panels[-1].set_xticks(np.arange(len(words)), words, rotation=90, fontsize=6)
        figure.colorbar(image, ax=list(panels), label="share of the stream's length")

    _write(path, (min(_WIDEST, 4 + 0.16 * len(words)), 8), draw)


def _marked(found: Drift | HeatMap) -> str:
    """Return the name of a direction, and that it is weak if so."""
    return f"{found.name} (weak)" if found.weak else found.name


def draw_calibration(name: str, calibration: Calibration, path: Path) -> None:
    """Write a calibration's curve over strength; the errors are those of `draw_map`."""
    points = curve_of(calibration)

    def draw(axes: Any) -> None:
        strengths = [point.strength for point in points]
        axes.plot(strengths, [point.expression for point in points], marker="o", label="expression")
        axes.plot(strengths, [point.loss for point in points], marker="s", label="fluency loss, nats")
        axes.plot(strengths, [point.repetition for point in points], marker="^", label="repetition")
        axes.axvline(calibration.default_strength, color="#333333", linestyle="--", label="chosen")
        axes.axhline(0, color="#333333", linewidth=0.6)
        axes.set(title=f"Calibration of {name}", xlabel="strength")
        axes.legend(fontsize="small")

    _write(path, (8, 5), draw)


def _write(path: Path, size: tuple[float, float], draw: _Draw) -> None:
    check_picture(path)
    # Not pyplot: it would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror or error}.") from error
