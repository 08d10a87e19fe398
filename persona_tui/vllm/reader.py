"""`VllmReader`: likelihoods and activations of text that is there, read inside vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.model import (
    Activations,
    Interventions,
    Likelihood,
    Message,
    ModelWrapper,
    TokenEvent,
    text,
)
from persona_tui.model.architecture import check_fits
from persona_tui.model.distil import Distillation
from persona_tui.model.forced import Passage
from persona_tui.vllm.op import AXES, TRACES
from persona_tui.vllm.orders import Driver, Order, Sums
from persona_tui.vllm.wire import Errand, Slot, axes_of, slot_of

_MOST_AXES = (AXES - 1) // 2  # of one batch, as the next one may have begun
Axes = Mapping[str, Mapping[int, Tensor]]


class VllmReader(ModelWrapper):
    """A model inside vLLM, as far as it reads; see `VllmModel`.

    Attributes:
        driver: vLLM.
    """

    driver: Driver

    @property
    def identity(self) -> tuple[str, str, str]:
        """Tells this model also from itself on another engine, whose numbers are not quite the same."""
        return self.fingerprint, str(self.model.dtype), "vLLM"

    def need_weights(self, purpose: str) -> None:
        """Refuse: vLLM has them.

        Raises:
            GenerationError: always.
        """
        raise GenerationError(
            f"{purpose} needs the model's weights in this process: use --engine transformers."
        )

    @property
    def learns(self) -> bool:
        """Whether vectors can be fitted here: vLLM computes no gradients."""
        return False

    def distillation(
        self,
        lessons: Sequence[tuple[list[Message], list[Message], str]],
        emphasis: float = 1.0,
        focus: float = 0.0,
        own: bool = False,
    ) -> Distillation:
        """Refuse: see `learns`.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("vLLM computes no gradients: use --engine transformers to fit vectors.")

    def compile(self, backend: str = "inductor") -> None:
        """Refuse: vLLM compiles by itself.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("vLLM compiles by itself: leave model.compile false.")

    def _held(self, interventions: Interventions, rows: int) -> list[str]:
        """Have vLLM hold what is done to the rows of a batch; the key of each.

        Raises:
            GenerationError: a vector does not fit this model.
        """
        by_row = [*interventions.steering.values(), *interventions.capping.values()]
        alike = not any(isinstance(each, Sequence) or getattr(each, "ndim", 1) == 2 for each in by_row)
        slots = [slot_of(interventions, row) for row in range(1 if alike else rows)]
        for slot in slots:
            for layer, vector in [*slot.added.items(), *((at, cap.axis) for at, cap in slot.caps.items())]:
                if not 0 <= layer < self.n_layers or list(vector.shape) != [self.hidden_size]:
                    raise GenerationError(
                        f"The vector for layer {layer} has shape {list(vector.shape)}; this model has "
                        f"{self.n_layers} layers, and its residual stream is {self.hidden_size} wide."
                    )
        keys = self.driver.hold(slots)
        if len(axes_of(keys)) > _MOST_AXES:
            raise GenerationError(f"vLLM holds floors on {_MOST_AXES} axes at a time: use a smaller batch.")
        return keys * (rows if alike else 1)

    def _traces(self, axes: Axes) -> list[str]:
        """Have vLLM hold directions that tokens are compared with; the key of each."""
        if len(axes) > TRACES:
            raise GenerationError(f"vLLM compares tokens with {TRACES} directions at most.")
        return self.driver.hold([Slot(dict(each), {}) for each in axes.values()])

    def score(
        self, pairs: Sequence[tuple[list[Message], str]], interventions: Interventions | None = None
    ) -> list[Likelihood]:
        """See `ModelWrapper.score`."""
        interventions = interventions or Interventions.none()
        keys = self._held(interventions, len(pairs))
        orders = []
        for (messages, response), key in zip(pairs, keys, strict=True):
            ids = text.encode_response(self.tokenizer, response)
            if not ids:
                raise GenerationError("An empty response has no probability per token.")
            prompt = self.encode(messages)
            check_fits(len(prompt) + len(ids) - 1, self.context_length)
            orders.append(Order([*prompt, *ids], Errand(Driver.new_name(), key, scored=len(prompt))))
        sums = self._done(orders)
        scores = [torch.tensor(sums[order.errand.name].scores) for order in orders]
        if any(not bool(each.isfinite().all()) for each in scores):
            raise GenerationError("The model's numbers overflow: try another --dtype, bfloat16 or float32.")
        return [Likelihood(float(each.mean()), len(each)) for each in scores]

    def _done(self, orders: Sequence[Order], layers: Sequence[int] = ()) -> dict[str, Sums]:
        """Have requests read; what was found of each, by its name."""
        names = [order.errand.name for order in orders]
        try:
            for _ in self.driver.run(orders):
                pass
            return self.driver.take(names, layers)[0]
        finally:
            self.driver.take(names)

    def _read(
        self, passages: Sequence[Passage], layers: Sequence[int], interventions: Interventions
    ) -> list[Activations]:
        self._check_lengths(passages)
        keys = self._held(interventions, len(passages))
        found: list[Activations] = []
        waiting: list[tuple[Passage, list[Order]]] = []
        places = self.driver.about.places
        for passage, key in zip(passages, keys, strict=True):
            spans = stretches(passage)
            pieces = [spans[at : at + places] for at in range(0, len(spans), places)]
            orders = [Order(passage.ids, Errand(Driver.new_name(), key, piece)) for piece in pieces]
            if waiting and _spans(waiting) + len(spans) > places:
                found += self._read_together(waiting, layers)
                waiting = []
            waiting.append((passage, orders))
        return found + self._read_together(waiting, layers)

    def _read_together(
        self, waiting: Sequence[tuple[Passage, list[Order]]], layers: Sequence[int]
    ) -> list[Activations]:
        found = []
        groups = [[order] for _, orders in waiting for order in orders] if len(waiting) == 1 else None
        sums: dict[str, Sums] = {}
        for group in groups or [[order for _, orders in waiting for order in orders]]:
            sums |= self._done(group, layers)
        for passage, orders in waiting:
            own = [sums[order.errand.name] for order in orders]
            counts = [count for each in own for count in each.counts]
            stack = torch.cat([each.sums for each in own if each.sums is not None])
            found.append(activations_of(passage, counts, stack, layers))
        return found

    def _reread(
        self,
        ids: list[int],
        places: range,
        tokens: Sequence[int],
        axes: Axes,
        changes: Mapping[int, Interventions],
        before: Sequence[int],
    ) -> list[TokenEvent]:
        if not tokens:
            return []
        if len(changes) > 1:
            raise GenerationError("A reply whose mix changed while it was written cannot be re-read in vLLM.")
        check_fits(len(ids), self.context_length)
        present = next(iter(changes.values()), Interventions.none())
        key = self._held(present, 1)[0]
        traces = self._traces(axes)
        errand = Errand(Driver.new_name(), key, traces=traces, told=True, every=True)
        seen: list[list[float]] = []
        try:
            for _ in self.driver.run([Order(ids, errand)]):
                seen += self.driver.traced([errand.name]).get(errand.name, [])
        finally:
            self.driver.take([errand.name])
        writer = text.TextStream(self.tokenizer, (), before)
        events = []
        for index, (token, place) in enumerate(zip(tokens, places, strict=True)):
            new = writer.feed(token) if token not in self._end_tokens else ""
            projections = dict(zip(axes, seen[place][2:], strict=False))
            events.append(TokenEvent(0, index, token, new, projections, seen[place][1], 0.0, None))
        return events


def _edges(passage: Passage) -> list[int]:
    """Return where the stretches of a passage begin and end."""
    stop = len(passage.ids) if passage.stop is None else passage.stop
    edges = {passage.start, stop, passage.pick, passage.pick + 1}
    return sorted(edges.union(*({part.start, part.stop} for part in passage.parts)))


def stretches(passage: Passage) -> list[tuple[int, int]]:
    """Return the pieces, none over another, that all that is asked of a passage is put together from."""
    return list(pairwise(_edges(passage)))


def _spans(waiting: Sequence[tuple[Passage, list[Order]]]) -> int:
    return sum(len(order.errand.spans) for _, orders in waiting for order in orders)


def activations_of(
    passage: Passage, counts: Sequence[int], sums: Tensor, layers: Sequence[int]
) -> Activations:
    """Return what is asked of a passage, from the sums of its stretches `[stretches, layers, hidden]`."""
    own = stretches(passage)

    def mean(start: int, stop: int) -> tuple[Tensor, int]:
        inside = [at for at, (first, last) in enumerate(own) if start <= first and last <= stop]
        count = sum(counts[at] for at in inside)
        total = sums[inside].sum(0) if inside else torch.zeros_like(sums[0])
        return total / max(1, count), count

    stop = len(passage.ids) if passage.stop is None else passage.stop
    response, count = mean(passage.start, stop)
    picked, _ = mean(passage.pick, passage.pick + 1)
    parts = [mean(part.start, part.stop)[0] for part in passage.parts]
    return Activations(tuple(layers), response, picked, count, torch.stack(parts) if parts else None)
