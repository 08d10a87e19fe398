"""Reading and changing the residual stream while a model runs.

One small callable per block that needs it, with buffers that are written in place: what is added to the
block's output (steering), and the axis and floor that the result is kept above (capping). Capture and traces
read the same tensor afterwards. Hooks exist only inside `with hooks:`, that is during one forward pass, so
none survives an exception or an iterator that its reader abandoned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from persona_tui.core.errors import GenerationError
from persona_tui.core.mix import PLAUSIBILITY
from persona_tui.model.architecture import NOT_FINITE, device_of
from persona_tui.model.parts import part_means
from persona_tui.model.request import Cap, Interventions


class StopForward(Exception):
    """Ends a forward pass whose later layers nobody needs. Raised in a hook, caught around the pass."""


class Capture:
    """Running sums of block outputs, per row, on the blocks' own devices.

    Memory does not grow with the number of tokens. Before each forward pass `watch` says which of its
    positions count; the hooks do the rest.
    """

    def __init__(self, layers: Sequence[int], rows: int, hidden_size: int) -> None:
        self.layers = tuple(sorted(set(layers)))
        self.counts = torch.zeros(rows)
        self._shape = (rows, hidden_size)
        self._sums: dict[int, Tensor] = {}
        self._picked: dict[int, Tensor] = {}
        self._rows = torch.arange(rows)
        self._weights: Tensor | None = None
        self._pick: Tensor | None = None
        self._parts: Sequence[Sequence[range]] = ()
        self._part_means: dict[int, list[Tensor]] = {}
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._all_count = False  # every row's only position counts: the usual token of a single reply
        self._devices: frozenset[torch.device] = frozenset()

    def settle(self, devices: Mapping[int, torch.device]) -> None:
        """Take all memory now, on each layer's device, so that every pass finds the same."""
        self._devices = frozenset(devices[layer] for layer in self.layers)
        for layer in self.layers:
            self._sum(layer, devices[layer])

    def watch(
        self,
        rows: Tensor,
        weights: Tensor | None = None,
        pick: Tensor | None = None,
        parts: Sequence[Sequence[range]] = (),
    ) -> None:
        """Say what to read in the next forward pass.

        Args:
            rows: `[n]`, which of the capture's rows the pass is about.
            weights: `[n, positions]`, 1 where a position counts for the mean; None = none does.
            pick: `[n]`, the position to keep as it is for each row; None = keep nothing.
            parts: by row of the pass, stretches of positions whose means are kept one by one.
        """
        if rows is not self._rows or weights is not self._weights:
            self._placed.clear()
            shape = (self._shape[0], 1)
            everyone = weights is not None and weights.shape == shape and bool((weights == 1).all())
            self._all_count = everyone and not self._devices  # a compiled pass has one way only
        self._rows, self._weights, self._pick, self._parts = rows, weights, pick, parts
        if self._all_count:
            self.counts += 1
        elif weights is not None:
            self.counts.index_add_(0, rows, weights.sum(1))
            for device in self._devices:
                self._on(device, weights)

    def read(self, layer: int, hidden: Tensor) -> None:
        """Take what was asked for from one block's output, `[n, positions, hidden]`."""
        if self._pick is not None:
            pick = self._pick.to(hidden.device)
            self._picked[layer] = hidden[torch.arange(len(pick), device=hidden.device), pick].float()
        if self._parts:
            self._part_means[layer] = [
                part_means(row, parts) for row, parts in zip(hidden, self._parts, strict=True)
            ]
        if self._all_count:
            self._sum(layer, hidden.device).add_(hidden[:, 0])
        elif self._weights is not None:
            rows, weights = self._on(hidden.device, self._weights)
            summed = torch.bmm(weights.unsqueeze(1), hidden.float()).squeeze(1)
            self._sum(layer, hidden.device).index_add_(0, rows, summed)

    def narrow(self, layers: Sequence[int]) -> None:
        """From now on read at these layers only."""
        self.layers = tuple(layer for layer in self.layers if layer in layers)

    def _on(self, device: torch.device, weights: Tensor) -> tuple[Tensor, Tensor]:
        # Kept between tokens: two small transfers per layer and token would cost more than the sums.
        if device not in self._placed:
            self._placed[device] = (self._rows.to(device), weights.to(device))
        return self._placed[device]

    def _sum(self, layer: int, device: torch.device) -> Tensor:
        if layer not in self._sums:
            self._sums[layer] = torch.zeros(self._shape, device=device)
        return self._sums[layer]

    def means(self) -> Tensor:
        """`[rows, layers, hidden]` float32 on the CPU; a row without a counted position is zero."""
        stacked = torch.stack([self._sum(layer, torch.device("cpu")).cpu() for layer in self.layers], dim=1)
        _check_finite(stacked)
        return stacked / self.counts.clamp(min=1)[:, None, None]

    def reset(self) -> None:
        """Begin new sums."""
        for summed in self._sums.values():
            summed.zero_()
        self.counts.zero_()

    def part_means(self) -> list[Tensor]:
        """By row, what was kept of its parts: `[parts, layers, hidden]` float32 on the CPU. [] of none."""
        if not self._part_means:
            return []
        by_layer = [[row.cpu() for row in self._part_means[layer]] for layer in self.layers]
        return [torch.stack(list(row), dim=1) for row in zip(*by_layer, strict=True)]

    def picked(self) -> Tensor:
        """Return the picked position of every row: `[rows, layers, hidden]` float32 on the CPU."""
        picked = torch.stack([self._picked[layer].cpu() for layer in self.layers], dim=1)
        _check_finite(picked)
        return picked


def _check_finite(read: Tensor) -> None:
    """Raise a GenerationError if what was read of a pass holds NaN or infinity: no score means anything."""
    if not read.isfinite().all():
        raise GenerationError(NOT_FINITE)


class _Site:
    """One block's hook and its buffers."""

    def __init__(self, layer: int, block: nn.Module, hidden_size: int) -> None:
        self.layer = layer
        self.block = block
        self.device = device_of(block)
        self.hidden_size = hidden_size
        self.delta: Tensor | None = None  # [rows or 1, 1, hidden]
        self.axis: Tensor | None = None  # [rows or 1, 1, hidden]
        self.floor: Tensor | None = None  # [rows or 1, 1, 1]; -inf where a row has no floor
        self.capture: Capture | None = None
        self.probe: Tensor | None = None  # [hidden, axes to project onto]
        self.stops = False
        self.everywhere = False  # whether lift and projection are of all positions of the last pass
        self.fixed = False  # whether the buffers' shapes never change
        self.twins = 0  # rows at the end of the batch that are left as they are, and not read
        # Of the last pass, at its last position; or `everywhere`, and then with positions after the rows.
        self.lift: Tensor | None = None  # [rows], what the floor added
        self.projection: Tensor | None = None  # [rows, axes]

    def fix(self, rows: int) -> None:
        """Give every buffer its final shape; for now they change nothing."""
        self.fixed = True
        self.delta = torch.zeros(rows, 1, self.hidden_size, device=self.device)
        self.axis = torch.zeros(rows, 1, self.hidden_size, device=self.device)
        self.floor = torch.full((rows, 1, 1), -torch.inf, device=self.device)

    def write(self, delta: Tensor | None, axis: Tensor | None, floor: Tensor | None) -> None:
        """Take new values, in place where the shapes allow; None = nothing is added, or there is no floor."""
        if self.fixed:
            for buffer, value, nothing in (
                (self.delta, delta, 0.0),
                (self.axis, axis, 0.0),
                (self.floor, floor, -torch.inf),
            ):
                assert buffer is not None
                buffer.fill_(nothing) if value is None else buffer.copy_(value, non_blocking=True)
            return
        self.delta = _written(self.delta, delta, self.device)
        self.axis = _written(self.axis, axis, self.device)
        self.floor = _written(self.floor, floor, self.device)
        if axis is None:
            self.lift = None

    @property
    def needed(self) -> bool:
        intervenes = self.delta is not None or self.axis is not None
        return intervenes or self.capture is not None or self.probe is not None or self.stops

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        self._check(hidden)
        own = hidden[: -self.twins] if self.twins else hidden
        changed = self._intervene(own)
        if self.capture is not None:
            self.capture.read(self.layer, changed)
        if self.probe is not None:
            self.projection = (changed if self.everywhere else changed[:, -1]).float() @ self.probe
        if self.stops:
            raise StopForward
        if changed is own:
            return output
        if self.twins:
            changed = torch.cat([changed, hidden[-self.twins :]])
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _check(self, hidden: Any) -> None:
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[-1] != self.hidden_size:
            got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise GenerationError(
                f"Block {self.layer} returned {got} where [rows, tokens, {self.hidden_size}] was expected: "
                "this architecture cannot be steered."
            )

    def _intervene(self, hidden: Tensor) -> Tensor:
        # The buffers are float32, so sums are rounded to the model's type once, at the end.
        changed = hidden if self.delta is None else hidden + self.delta
        if self.axis is not None and self.floor is not None:
            full = changed.float()
            projection = (full * self.axis).sum(-1, keepdim=True)
            lift = (self.floor - projection).clamp(min=0)
            self.lift = lift[..., 0] if self.everywhere else lift[:, -1, 0]
            changed = full + lift * self.axis
        return changed.to(hidden.dtype)

    def select(self, keep: Tensor) -> None:
        """Go on with some of the rows only."""
        for name in ("delta", "axis", "floor"):
            buffer = getattr(self, name)
            if buffer is not None and len(buffer) > 1:
                setattr(self, name, buffer[keep.to(self.device)])


def _written(buffer: Tensor | None, value: Tensor | None, device: torch.device) -> Tensor | None:
    """Return the buffer with a new value: in place where the shape allows."""
    if value is None:
        return None
    if buffer is None or buffer.shape != value.shape:
        return value.to(device=device, dtype=torch.float32, copy=True)
    return buffer.copy_(value, non_blocking=True)


class ResidualHooks:
    """The hooks on one model for one batch. Active inside `with hooks:` only."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        hidden_size: int,
        rows: int,
        *,
        capture_layers: Sequence[int] = (),
        axes: Mapping[str, Mapping[int, Tensor]] | None = None,
        stop_after: int | None = None,
        fixed: bool = False,
        everywhere: bool = False,
    ) -> None:
        """
        Args:
            blocks: the model's decoder blocks.
            hidden_size: the width of the residual stream.
            rows: how many rows the batch starts with.
            capture_layers: where activations are collected, in `.capture`.
            axes: name -> layer -> `[hidden]`: projections of the last position, read back by `traces`.
            stop_after: raise `StopForward` after this layer.
            fixed: hook every block, and keep the shapes of all buffers: a compiled pass then stays valid
                whatever is applied. No rows can be dropped.
            everywhere: trace every position of a pass, not the last one only.

        Raises:
            GenerationError: a layer that the model does not have, or a vector of another size.
        """
        self._blocks = blocks
        self._hidden_size = hidden_size
        self._all_rows = rows
        self._rows: Tensor | None = None  # the rows still in the batch; None = all of them
        self._sites: dict[int, _Site] = {}
        self._handles: list[RemovableHandle] = []
        self._everywhere = everywhere
        self._twins = 0
        self._plausibility = [0.0] * rows
        self.capture = Capture(capture_layers, rows, hidden_size) if capture_layers else None
        for layer in capture_layers:
            self._site(layer).capture = self.capture
        self._axis_names = tuple(axes or {})
        self._average = self._place_probes(axes or {})
        if stop_after is not None:
            self._site(stop_after).stops = True
        self.fixed = fixed
        if fixed:
            self._fix()

    def _fix(self) -> None:
        for layer in range(len(self._blocks)):
            self._site(layer).fix(self._all_rows)
        if self.capture is not None:
            self.capture.settle({layer: site.device for layer, site in self._sites.items()})

    def _site(self, layer: int) -> _Site:
        if not 0 <= layer < len(self._blocks):
            raise GenerationError(
                f"Layer {layer} does not exist: this model has layers 0 to {len(self._blocks) - 1}"
            )
        if layer not in self._sites:
            self._sites[layer] = _Site(layer, self._blocks[layer], self._hidden_size)
            self._sites[layer].everywhere = self._everywhere
            self._sites[layer].twins = self._twins
        return self._sites[layer]

    def _place_probes(self, axes: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
        """Give each site its axes; returns `[columns, names]`, which averages their results by name."""
        columns: list[Tensor] = []
        for layer in sorted({layer for by_layer in axes.values() for layer in by_layer}):
            names = [name for name in axes if layer in axes[name]]
            vectors = [self._checked(axes[name][layer], layer) for name in names]
            site = self._site(layer)
            site.probe = torch.stack(vectors, dim=1).to(site.device)
            columns += [self._average_column(name, axes) for name in names]
        return torch.stack(columns) if columns else torch.zeros(0, len(axes))

    def _average_column(self, name: str, axes: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
        column = torch.zeros(len(axes))
        column[self._axis_names.index(name)] = 1 / len(axes[name])
        return column

    def _checked(self, vector: Tensor, layer: int) -> Tensor:
        if vector.shape[-1] != self._hidden_size or vector.dim() not in (1, 2):
            raise GenerationError(
                f"The vector for layer {layer} has shape {list(vector.shape)}; "
                f"this model's residual stream is {self._hidden_size} wide."
            )
        if vector.dim() == 2 and len(vector) != self._all_rows:
            raise GenerationError(
                f"Layer {layer} was given {len(vector)} vectors for a batch of {self._all_rows} rows."
            )
        return vector.detach().float()

    @torch.inference_mode()
    def apply(self, interventions: Interventions) -> None:
        """Write new interventions into the buffers; they act from the next forward pass on.

        Raises:
            GenerationError: a layer that the model does not have, a vector of another size, or a plausibility
                out of range.
        """
        self._plausibility = self._checked_plausibility(interventions.plausibility)
        for layer in {*interventions.steering, *interventions.capping, *self._sites}:
            site = self._site(layer)
            delta = self._delta(interventions.steering.get(layer), layer)
            site.write(delta, *self._cap_values(interventions.capping.get(layer), layer))

    def _delta(self, vector: Tensor | None, layer: int) -> Tensor | None:
        if vector is None:
            return None
        checked = self._checked(vector, layer)
        return checked.view(1, 1, -1) if checked.dim() == 1 else self._current(checked).unsqueeze(1)

    def _cap_values(
        self, cap: Cap | Sequence[Cap | None] | None, layer: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return a layer's capping as an axis `[rows or 1, 1, hidden]` and a floor `[rows or 1, 1, 1]`."""
        if cap is None:
            return None, None
        if isinstance(cap, Cap):
            return self._checked(cap.axis, layer).view(1, 1, -1), torch.full((1, 1, 1), cap.floor)
        off = torch.zeros(self._hidden_size)
        axes = torch.stack([off if each is None else each.axis.detach().float().cpu() for each in cap])
        floors = torch.tensor([-torch.inf if each is None else each.floor for each in cap])
        return (
            self._current(self._checked(axes, layer)).unsqueeze(1),
            self._current(floors).view(-1, 1, 1),
        )

    def _current(self, by_row: Tensor) -> Tensor:
        return by_row if self._rows is None else by_row[self._rows.to(by_row.device)]

    def _checked_plausibility(self, given: float | Sequence[float]) -> list[float]:
        values = list(given) if isinstance(given, Sequence) else [given] * self._all_rows
        if len(values) != self._all_rows:
            raise GenerationError(
                f"{len(values)} plausibilities were given for a batch of {self._all_rows} rows."
            )
        if wrong := [each for each in values if not 0 <= each <= 1]:
            raise GenerationError(f"plausibility must be {PLAUSIBILITY}, not {wrong[0]:g}.")
        return values

    @property
    def plausibility(self) -> Sequence[float]:
        """The guide of every row that the batch started with, as it was last applied."""
        return self._plausibility

    def leave_last(self, rows: int) -> None:
        """From now on leave so many rows at the end of the batch as they are; nothing is read of them."""
        self._twins = rows
        for site in self._sites.values():
            site.twins = rows

    def narrow_capture(self, layers: Sequence[int]) -> None:
        """Capture at these layers only, from the next pass on."""
        if self.capture is not None:
            self.capture.narrow(layers)
            for layer, site in self._sites.items():
                site.capture = self.capture if layer in self.capture.layers else None

    def stop_after_capture(self) -> None:
        """From now on a pass ends, with `StopForward`, once the last layer has been captured."""
        if self.capture is not None:
            self._site(max(self.capture.layers)).stops = True

    def select(self, keep: Tensor) -> None:
        """Go on with some rows of the present batch only, `[rows kept]` positions in it."""
        rows = torch.arange(self._all_rows) if self._rows is None else self._rows
        self._rows = rows[keep]
        for site in self._sites.values():
            site.select(keep)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes traced, in the order of `traces`' columns."""
        return self._axis_names

    def traces(self, device: torch.device, rows: int) -> Tensor:
        """Return what the last pass saw at its last position: `[rows, 1 + axes]`.

        The first column is how far the floors lifted that position, summed over the layers; the others are
        its projections onto the traced axes, each averaged over that axis' layers.
        """
        return self._traces(device, (rows,))

    def traces_everywhere(self, device: torch.device, rows: int, positions: int) -> Tensor:
        """Return what the last pass saw at each of its positions, `[rows, positions, 1 + axes]`; see
        `traces`.
        """
        traces = self._traces(device, (rows, positions))
        _check_finite(traces)
        return traces

    def _traces(self, device: torch.device, shape: tuple[int, ...]) -> Tensor:
        lifts = [site.lift.to(device) for site in self._sites.values() if site.lift is not None]
        lifted = torch.stack(lifts).sum(0) if lifts else torch.zeros(shape, device=device)
        if not self._axis_names:
            return lifted.unsqueeze(-1)
        probed = (self._sites[layer].projection for layer in sorted(self._sites))
        seen = torch.cat([each.to(device) for each in probed if each is not None], dim=-1)
        return torch.cat([lifted.unsqueeze(-1), seen @ self._average.to(device)], dim=-1)

    def __enter__(self) -> Self:
        try:
            for site in self._sites.values():
                if site.needed:
                    self._handles.append(site.block.register_forward_hook(site))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
