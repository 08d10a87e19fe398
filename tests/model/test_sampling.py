"""Drawing tokens: as probable as they should be, in vocabulary order, never one that is excluded."""

import pytest
import torch

from persona_tui.model.request import draw


def uniform(*numbers: float) -> torch.Tensor:
    """One column of random numbers, as a sampler has them."""
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


@pytest.mark.parametrize("vocabulary", [3, 255, 256, 257, 4096, 5000])
def test_the_same_token_as_by_one_running_sum(vocabulary: int) -> None:
    noise = torch.Generator().manual_seed(vocabulary)
    probabilities = (4 * torch.randn(200, vocabulary, generator=noise)).softmax(-1)
    numbers = torch.rand(200, 1, generator=noise, dtype=torch.float64)
    cumulative = probabilities.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)
    assert torch.equal(draw(probabilities, numbers), expected)


def test_excluded_tokens_are_never_drawn() -> None:
    probabilities = torch.zeros(1, 1000)
    probabilities[0, [0, 255, 256, 700]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    numbers = torch.linspace(0, 1 - 2**-53, 5001, dtype=torch.float64).unsqueeze(1)
    drawn = draw(probabilities.expand(5001, -1), numbers)
    counts = drawn.bincount(minlength=1000)
    assert counts.nonzero().flatten().tolist() == [0, 255, 256, 700]
    assert (counts[[0, 255, 256, 700]] / 5001).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-3)


def test_the_end_of_the_scale_is_the_last_possible_token() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert draw(probabilities, uniform(1.0)).tolist() == [2]
    assert draw(probabilities, uniform(0.0)).tolist() == [1]
