"""The vector arithmetic against its definitions."""

import pytest
import torch

from persona_tui.vectors.maths import (
    blend,
    blend_vectors,
    compute_safe_floor,
    cosine,
    normalize,
    orthogonalize_persona,
    project_onto,
    remove_component,
)

HIDDEN = 512


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def test_normalize_works_on_stacks_and_leaves_zero_alone() -> None:
    stack = torch.randn(4, HIDDEN) * 80
    stack[2] = 0
    lengths = normalize(stack).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(normalize(stack)[0], stack[0] / stack[0].norm())


def test_half_precision_comes_out_as_float32() -> None:
    v = torch.randn(HIDDEN).to(torch.bfloat16)
    for result in (normalize(v), remove_component(v, v), blend([v], [1.0]), cosine(v, v)):
        assert result.dtype == torch.float32


def test_projection_and_remainder_add_up() -> None:
    v, axis = torch.randn(3, HIDDEN), normalize(torch.randn(HIDDEN))
    torch.testing.assert_close(project_onto(v, axis) + remove_component(v, axis), v)
    torch.testing.assert_close(project_onto(v, axis), (v @ axis).unsqueeze(-1) * axis)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_axis_need_not_be_unit_length(scale: float) -> None:
    v, axis = torch.randn(HIDDEN), torch.randn(HIDDEN)
    torch.testing.assert_close(project_onto(v, axis * scale), project_onto(v, axis))


@pytest.mark.parametrize("size", [1e-3, 1.0, 400.0])
def test_safe_is_orthogonal_and_keeps_its_size(size: float) -> None:
    raw, axis = torch.randn(8, HIDDEN) * size, normalize(torch.randn(8, HIDDEN))
    safe = orthogonalize_persona(raw, axis)
    assert cosine(safe, axis).abs().max() < 1e-5
    along = (raw * axis).sum(dim=-1)
    expected = (raw.norm(dim=-1).square() - along.square()).sqrt()
    torch.testing.assert_close(safe.norm(dim=-1), expected, rtol=1e-4, atol=0)


def test_safe_is_orthogonal_even_when_almost_everything_is_removed() -> None:
    axis = normalize(torch.randn(HIDDEN))
    raw = 100 * axis + 0.05 * torch.randn(HIDDEN) / HIDDEN**0.5
    assert cosine(orthogonalize_persona(raw, axis), axis).abs() < 1e-5


def test_cosine_of_zero_is_zero_not_nan() -> None:
    assert cosine(torch.zeros(HIDDEN), torch.randn(HIDDEN)).item() == 0
    v = torch.randn(HIDDEN)
    assert cosine(v, -3 * v).item() == pytest.approx(-1)


@pytest.mark.parametrize("percentile", [0, 10, 25, 33.3, 100])
def test_floor_is_the_quantile_of_the_projections(percentile: float) -> None:
    activations = [torch.randn(HIDDEN) for _ in range(50)]
    axis = normalize(torch.randn(HIDDEN))
    expected = torch.quantile(torch.stack([a @ axis for a in activations]), percentile / 100)
    assert compute_safe_floor(activations, axis, percentile) == pytest.approx(expected.item(), abs=1e-5)


def test_floor_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compute_safe_floor([], torch.ones(3))


def test_blend_vectors_is_the_direction_of_the_weighted_sum() -> None:
    a, b = torch.randn(2, HIDDEN).unbind()
    torch.testing.assert_close(blend_vectors([a, b], [0.7, -0.2]), normalize(0.7 * a - 0.2 * b))


def test_blend_has_the_weighted_mean_of_the_lengths() -> None:
    a, b = torch.randn(HIDDEN) * 10, torch.randn(HIDDEN)
    result = blend([a, b], [3, -1])
    assert result.norm().item() == pytest.approx((3 * a.norm() + b.norm()).item() / 4, rel=1e-5)
    assert cosine(result, 3 * a - b).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("weight", [0.01, 1.0, 50.0])
def test_blend_of_one_is_itself_whatever_its_weight(weight: float) -> None:
    v = torch.randn(3, HIDDEN)
    torch.testing.assert_close(blend([v], [weight]), v)
    torch.testing.assert_close(blend([v], [-weight]), -v)


def test_blend_depends_on_proportions_only() -> None:
    vectors = [torch.randn(2, HIDDEN) for _ in range(3)]
    torch.testing.assert_close(blend(vectors, [1, 2, -3]), blend(vectors, [0.1, 0.2, -0.3]))


def test_blends_that_cancel_or_weigh_nothing_are_zero() -> None:
    v = torch.randn(HIDDEN)
    assert blend([v, v], [1, -1]).abs().max() == 0
    assert blend([v, v], [0, 0]).abs().max() == 0


@pytest.mark.parametrize("weights", [[], [1.0, 2.0], [float("nan")], [float("inf")]])
def test_blend_wants_one_finite_weight_for_each(weights: list[float]) -> None:
    with pytest.raises(ValueError):
        blend([torch.ones(3)], weights)
