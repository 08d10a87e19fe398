"""Where the names of points go, so that none covers another: in a terminal's cells as in a file's pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: tuple[float, float],
    marker: tuple[float, float] = (1, 1),
    rings: int = 3,
) -> list[tuple[float, float] | None]:
    """Find a place for the label of every point, near it; those that come first choose first.

    Args:
        anchors: of each point, its marker's left and top.
        sizes: of each label, width and height.
        bounds: width and height of the picture.
        marker: width and height of a marker.
        rings: how many lines above and below its point a label may go.

    Returns:
        The label's left and top; None where there is no room.
    """
    width, height = marker
    taken: list[Box] = [(x, y, x + width, y + height) for x, y in anchors]
    found: list[tuple[float, float] | None] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        boxes = (_box(place, size) for place in _candidates(anchor, size, marker, rings))
        free = (box for box in boxes if _inside(box, bounds) and not any(_meet(box, each) for each in taken))
        box = next(free, None)
        found.append(None if box is None else (box[0], box[1]))
        taken += [] if box is None else [box]
    return found


def _candidates(
    anchor: tuple[float, float], size: tuple[float, float], marker: tuple[float, float], rings: int
) -> Iterator[tuple[float, float]]:
    """Places for a label, the best ones first: on the right, on the left, above, below; then farther off."""
    (x, y), (width, height) = anchor, size
    right, left, middle = x + marker[0] * 2, x - width - marker[0], x + (marker[0] - width) / 2
    yield from ((right, y), (left, y))
    for ring in range(1, rings + 1):
        for line in (y - height * ring, y + marker[1] + height * (ring - 1)):
            yield from ((middle, line), (right, line), (left, line))


def _box(place: tuple[float, float], size: tuple[float, float]) -> Box:
    return place[0], place[1], place[0] + size[0], place[1] + size[1]


def _inside(box: Box, bounds: tuple[float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= bounds[0] and box[3] <= bounds[1]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
