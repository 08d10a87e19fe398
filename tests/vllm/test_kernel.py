"""The GPU's kernel does what the op does on a CPU: on a GPU where there is one, else as Triton imitates it.

It needs Triton, which comes with vLLM. Without a GPU it has to be told before it is imported that it is to
imitate one, so that this file runs alone: `pytest --noconftest tests/vllm/test_kernel.py`.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch import Tensor

from persona_tui.model import Cap
from persona_tui.vllm.op import SlotBuffers
from persona_tui.vllm.wire import Slot

GPU = torch.cuda.is_available()
if not GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("run alone, with --noconftest: Triton is in use as it is", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed here")

LAYERS, WIDTH, PLACES = 3, 48, 4
DEVICE = torch.device("cuda" if GPU else "cpu")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(device: torch.device, captured: bool, sums: int = PLACES, traces: bool = True) -> SlotBuffers:
    """Slots that add, that hold floors, that do both, on two axes."""
    buffers = SlotBuffers(LAYERS, 5, WIDTH, 12, device, sums, traces, captured)
    axes = torch.nn.functional.normalize(drawn(2, WIDTH, seed=1), dim=1)
    added = {0: drawn(WIDTH, seed=2), 1: drawn(WIDTH, seed=3)}
    buffers.fill(1, Slot(added, {}))
    buffers.fill(2, Slot({}, {1: Cap(axes[0], 0.5), 2: Cap(axes[0], 0.5)}))
    buffers.fill(3, Slot(added, {2: Cap(axes[1], 1.0)}))
    buffers.fill(4, Slot({2: drawn(WIDTH, seed=4)}, {}))
    buffers.fill(4, Slot({}, {}))  # as if its request had ended
    if traces:
        buffers.trace_one(0, {0: drawn(WIDTH, seed=5), 2: drawn(WIDTH, seed=6)})
        buffers.trace_one(1, {1: drawn(WIDTH, seed=7)})
    return buffers


PASSES = [
    pytest.param([1], [5], None, False, id="steered alike"),
    pytest.param([0], [3], None, False, id="plain"),
    pytest.param([1, 0, 2, 3], [1, 1, 2, 1], None, False, id="each otherwise"),
    pytest.param([2, 3], [2, 2], [0, 1, 0, 2], True, id="capped, summed up and compared"),
    pytest.param([0, 4], [2, 1], [3, 3, 4], False, id="only summed up"),
    pytest.param([0, 2], [1, 2], None, True, id="only compared"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("whole", [True, False], ids=["one stream", "split stream"])
@pytest.mark.parametrize(("slots", "counts", "places", "traced"), PASSES)
def test_it_does_what_the_op_does(
    slots: list[int],
    counts: list[int],
    places: list[int] | None,
    traced: bool,
    whole: bool,
    dtype: torch.dtype,
) -> None:
    tokens = sum(counts)
    marks = None if places is None else torch.tensor(places)

    def one_pass(buffers: SlotBuffers) -> Tensor:
        buffers.tell(slots, counts, marks, traced)
        outputs = []
        for layer in range(LAYERS):
            hidden = drawn(tokens, WIDTH, seed=10 + layer).to(buffers.delta.device, dtype)
            residual = drawn(tokens, WIDTH, seed=20 + layer).to(hidden)
            buffers.apply(hidden, hidden.new_empty(0) if whole else residual, layer)
            outputs.append(hidden.cpu())
        return torch.stack(outputs)

    one, other = made(torch.device("cpu"), captured=False), made(DEVICE, captured=True)
    wanted, found = one_pass(one), one_pass(other)
    apart = 1e-5 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=apart)
    assert one.sums is not None and other.sums is not None
    torch.testing.assert_close(other.sums[:, 1:].cpu(), one.sums[:, 1:], rtol=0.0, atol=3 * apart)
    if traced:
        torch.testing.assert_close(other.found[:tokens].cpu(), one.found[:tokens], rtol=0.0, atol=10 * apart)


def test_what_a_pass_was_told_is_forgotten_by_the_next() -> None:
    buffers = made(DEVICE, captured=True)
    buffers.tell([3], [4], torch.tensor([1, 1, 2, 2]), True)
    buffers.tell([0], [2])
    hidden = drawn(4, WIDTH, seed=30).to(DEVICE)
    before = hidden.clone()
    for layer in range(LAYERS):
        buffers.apply(hidden, drawn(4, WIDTH, seed=31).to(DEVICE), layer)
    assert torch.equal(hidden, before)
    assert buffers.sums is not None
    assert not buffers.sums.any() and not buffers.found.any()


def test_without_sums_and_directions() -> None:
    buffers = made(DEVICE, captured=True, sums=0, traces=False)
    buffers.tell([1], [2])
    hidden = torch.zeros(2, WIDTH, device=DEVICE)
    buffers.apply(hidden, hidden.new_empty(0), 0)
    torch.testing.assert_close(hidden.cpu(), drawn(WIDTH, seed=2).expand(2, WIDTH))
