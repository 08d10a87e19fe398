"""Names of points on a map: none covers another, whoever draws them."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from persona_tui.pictures.labels import place_labels

_POINTS = st.lists(
    st.tuples(st.integers(0, 70), st.integers(0, 19), st.integers(1, 20)), min_size=1, max_size=25
)


@given(_POINTS)
def test_no_label_covers_another_or_a_point(points: list[tuple[int, int, int]]) -> None:
    anchors = [(float(x), float(y)) for x, y, _ in points]
    spots = place_labels(anchors, [(width, 1) for *_, width in points], (72, 20))
    boxes = [
        (spot[0], spot[1], spot[0] + width) for spot, (*_, width) in zip(spots, points, strict=True) if spot
    ]
    for (left, top, right), (other_left, other_top, other_right) in combinations(boxes, 2):
        assert top + 1 <= other_top or other_top + 1 <= top or right <= other_left or other_right <= left
    for left, top, right in boxes:
        assert left >= 0 and right <= 72 and 0 <= top <= 19
        assert not any(left <= x < right and top < y + 1 and y < top + 1 for x, y in anchors)


def test_a_point_alone_has_its_name_beside_it() -> None:
    assert place_labels([(10, 5)], [(4, 1)], (72, 20)) == [(12, 5)]
    assert place_labels([(70, 5)], [(4, 1)], (72, 20)) == [(65, 5)]
