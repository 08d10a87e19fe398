"""Batches: by length, by tokens, and smaller where memory is short."""

from __future__ import annotations

import itertools

import pytest
import torch

from persona_tui.core.errors import MemoryShortage
from persona_tui.model import ModelWrapper, conversation
from persona_tui.model.batching import MemoryLimit, batches


def test_like_lengths_stand_together_and_the_longest_come_first() -> None:
    assert batches([3, 9, 1, 8, 2], most_rows=2) == [[1, 3], [0, 4], [2]]


def test_a_batch_keeps_within_rows_and_tokens() -> None:
    lengths = [10] * 20 + [100] * 3
    planned = batches(lengths, most_rows=8, most_tokens=100)
    assert sorted(itertools.chain(*planned)) == list(range(23))
    assert [len(batch) for batch in planned] == [1, 1, 1, 8, 8, 4]


def test_an_item_above_the_budget_stands_alone() -> None:
    assert batches([500, 500], most_rows=8, most_tokens=100) == [[0], [1]]


class Machine:
    """Fits a number of tokens; remembers what was tried."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.tried: list[int] = []

    def do(self, items: list[int]) -> int:
        self.tried.append(len(items))
        if 10 * len(items) > self.fits:
            raise MemoryShortage("no")
        return len(items)


def run(limit: MemoryLimit, machine: Machine, count: int) -> list[int]:
    done = [item for items, _ in limit.run(range(count), [10] * count, machine.do) for item in items]
    assert sorted(done) == list(range(count))
    return machine.tried


def test_half_as_many_are_tried_after_a_shortage_and_more_again_later() -> None:
    limit, machine = MemoryLimit(), Machine(fits=45)
    assert run(limit, machine, 16) == [16, 8, 4, 4, 4, 4]
    machine.fits = 1000
    machine.tried.clear()
    run(limit, machine, 300)
    assert machine.tried[0] == 8 and max(machine.tried) > 16


def test_what_failed_twice_is_tried_less_often() -> None:
    limit, machine = MemoryLimit(), Machine(fits=45)
    run(limit, machine, 200)
    failures = [place for place, rows in enumerate(machine.tried) if rows * 10 > 45]
    gaps = [after - before for before, after in itertools.pairwise(failures)]
    assert gaps[-1] > gaps[-3] > 2


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryShortage):
        run(MemoryLimit(), Machine(fits=5), 4)


def test_scoring_and_reading_go_on_after_running_out_of_memory(wrapper: ModelWrapper) -> None:
    pairs = [(conversation("word " * count), "Yes, that is so.") for count in range(1, 9)]
    expected = wrapper.score(pairs), wrapper.read([pair[0] for pair in pairs], [1])

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = wrapper.model.get_input_embeddings().register_forward_pre_hook(refuse)
    got = wrapper.score(pairs), wrapper.read([pair[0] for pair in pairs], [1])
    handle.remove()
    for one, other in zip(expected[0], got[0], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    for before, after in zip(expected[1], got[1], strict=True):
        torch.testing.assert_close(before.response, after.response, atol=1e-4, rtol=1e-4)
