"""`VllmWriter`: replies in one piece, and what was summed up while they were written."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from persona_tui.core.errors import GenerationError, MemoryShortage
from persona_tui.core.mix import LOWEST_TEMPERATURE
from persona_tui.model import Activations, Finish, Generation, Interventions, Request, Sampling, text
from persona_tui.model.architecture import check_fits
from persona_tui.model.forced import Passage
from persona_tui.model.pool import Pool, Pooled
from persona_tui.model.request import Batch
from persona_tui.vllm.orders import Driver, Order, Sums
from persona_tui.vllm.reader import VllmReader
from persona_tui.vllm.wire import Errand, limit_of, slot_of

REPLY = (0, -1)  # the span of a reply


@dataclass
class VllmRow:
    """A request while it is answered.

    Attributes:
        place: which of the requests.
        order: as vLLM was given it.
        limit: how many tokens it may have.
        output: its tokens so far, without the end of the turn.
        finish: why it has ended; None = it has not.
        twin: the request that reads along; "" = none does.
    """

    place: int
    order: Order
    limit: int
    output: list[int] = field(default_factory=list)
    finish: Finish | None = None
    twin: str = ""

    @property
    def name(self) -> str:
        return self.order.errand.name


class VllmWriter(VllmReader):
    """A model inside vLLM, as far as it answers in one piece; see `VllmModel`."""

    def foresee(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Callable[[], Interventions] | None = None,
        captured: bool = False,
    ) -> bool:
        """See `ModelWrapper.foresee`: no pass waits for the last replies of a batch. What has to begin
        together, or is ended by what it says, is not begun before.
        """
        if not requests:
            self.driver.forget_ahead()
            return False
        batch = self._batch(requests, sampling or Sampling())
        if batch.ended is not None or batch.stops:
            return False
        rows = self._rows(batch, Interventions.none() if interventions is None else interventions(), captured)
        guided = any(row.order.errand.limit for row in rows)
        return not guided and self.driver.begin([row.order for row in rows])

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | None = None,
        capture_layers: Sequence[int] = (),
        on_step: Callable[[], None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """See `ModelWrapper.generate`; vLLM divides the requests into passes itself."""
        if not requests:
            return []
        sampling, interventions = sampling or Sampling(), interventions or Interventions.none()
        batch = self._batch(requests, sampling)
        rows = self._begun(self._rows(batch, interventions, bool(capture_layers)))
        sums: dict[str, Sums] = {}

        def take(group: Sequence[VllmRow]) -> set[str]:
            found, broken = self.driver.take([row.name for row in group], capture_layers)
            sums.update(found)
            return broken

        for group in self._groups(rows):
            self._answer(group, batch, on_step, stop, take)
        read: Sequence[Activations | None] = [None] * len(rows)
        if capture_layers:
            read = self._sums_of_replies(rows, batch, capture_layers, sums, interventions)
        return [
            self._generation(requests[row.place], row, batch, activations)
            for row, activations in zip(rows, read, strict=True)
        ]

    def pooled(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        capture_layers: Sequence[int] = (),
        belongs: Callable[[str], bool] | None = None,
        kept: Collection[int] = (),
        on_step: Callable[[], None] | None = None,
    ) -> Pooled:
        """See `ModelWrapper.pooled`. Replies are added up by the workers; one by one come those that are
        kept, and those that were cut at a stop text, as they are read again without it."""
        batch = self._batch(requests, sampling or Sampling())
        rows = self._begun(self._rows(batch, Interventions.none(), summed=True))
        pools = {kind: Pool(tuple(capture_layers)) for kind in (True, False)}
        sums: dict[str, Sums] = {}

        def kind_of(row: VllmRow) -> bool:
            return belongs is None or belongs(self._generation(requests[row.place], row, batch).text)

        def take(group: Sequence[VllmRow]) -> set[str]:
            alone = [row for row in group if row.place in kept or self._is_cut(row)]
            sums.update(self.driver.take([row.name for row in alone], capture_layers)[0])
            rest: dict[bool, list[str]] = {True: [], False: []}
            for row in group:
                if row not in alone:
                    rest[kind_of(row)].append(row.name)
            for kind, pool in zip(rest, self.driver.pool(list(rest.values()), capture_layers), strict=True):
                pools[kind].join(pool)
            return set()

        for group in self._groups(rows):
            self._answer(group, batch, on_step, None, take)
        alone = [row for row in rows if row.name in sums]
        read = self._sums_of_replies(alone, batch, capture_layers, sums, Interventions.none())
        own = {row.place: each for row, each in zip(alone, read, strict=True) if each is not None}
        for place, each in own.items():
            pools[kind_of(rows[place])].add(each)
        replies = [
            self._generation(
                requests[row.place], row, batch, own.get(row.place) if row.place in kept else None
            )
            for row in rows
        ]
        return Pooled(replies, pools)

    def _generation(
        self, request: Request, row: VllmRow, batch: Batch, activations: Activations | None = None
    ) -> Generation:
        ids = self._without_stop(row.output)
        return Generation(
            self._opened(request) + text.decode_ids(self.tokenizer, ids).strip(),
            ids,
            len(batch.prompts[row.place]),
            row.finish or "cancelled",
            activations,
        )

    def _is_cut(self, row: VllmRow) -> bool:
        """Return whether a reply has ended with a stop text, which is no part of it."""
        return len(self._without_stop(row.output)) < len(row.output)

    def _rows(self, batch: Batch, interventions: Interventions, summed: bool) -> list[VllmRow]:
        """Return a row for each request: its reply and its last prompt token are summed up, or nothing is."""
        rows = []
        for place, key in enumerate(self._held(interventions, len(batch.prompts))):
            last = len(batch.prompts[place]) - 1
            spans = (REPLY, (last, last + 1)) if summed else ()
            limit = limit_of(interventions, place)
            errand = Errand(Driver.new_name(), key, spans, batch.thoughts or (), limit=limit)
            rows.append(self._row(place, batch, errand))
        return rows

    def _begun(self, rows: list[VllmRow]) -> list[VllmRow]:
        """Return rows with the orders that were begun before, where they were foreseen."""
        return [replace(row, order=self.driver.begun(row.order) or row.order) for row in rows]

    def _row(
        self, place: int, batch: Batch, errand: Errand, likeliest: int | None = None, alone: bool = False
    ) -> VllmRow:
        """Return a request for vLLM: `alone` if nothing may share its cache, as its mix may change."""
        own, prompt = batch.samplings[place], batch.prompts[place]
        check_fits(len(prompt), self.context_length)
        limit = min(own.max_new_tokens, (self.context_length or 0) - len(prompt))
        temperature = own.temperature if own.temperature >= LOWEST_TEMPERATURE else 0.0
        errand = replace(errand, temperature=temperature, top_p=own.top_p, seed=batch.seeds[place] % 2**63)
        order = Order(
            prompt,
            errand,
            limit + bool(errand.spans),  # a token is read when the next one is chosen
            batch.end_tokens,
            likeliest,
            salt=secrets.token_hex(8) if alone else "",
        )
        return VllmRow(place, order, limit)

    def _groups(self, rows: Sequence[VllmRow]) -> list[list[VllmRow]]:
        """Rows that can be answered together. A guided one and its twin must be in the same passes."""
        groups: list[list[VllmRow]] = [[]]
        for row in rows:
            if groups[-1] and not self._fit([*groups[-1], row]):
                groups.append([])
            groups[-1].append(row)
        return groups

    def _fit(self, rows: Sequence[VllmRow]) -> bool:
        about = self.driver.about
        if sum(len(row.order.errand.spans) for row in rows) > about.places:
            return False
        if not any(row.order.errand.limit for row in rows):
            return True
        twice = [row for row in rows for _ in range(1 + bool(row.order.errand.limit))]
        room = sum(-(-(len(each.order.prompt) + each.order.tokens) // about.block) + 1 for each in twice)
        return (
            len(twice) <= about.requests
            and sum(len(each.order.prompt) for each in twice) <= about.tokens
            and room * about.block <= about.room
        )

    def _answer(
        self,
        rows: Sequence[VllmRow],
        batch: Batch,
        on_step: Callable[[], None] | None,
        stop: threading.Event | None,
        take: Callable[[Sequence[VllmRow]], set[str]],
    ) -> None:
        """Answer a group, and have what was summed up for it taken before it is forgotten; `take` returns
        those who have lost their twins."""
        orders = self._with_twins(rows)
        by_name = {row.name: row for row in rows}
        names = [order.errand.name for order in orders]
        try:
            for written in self.driver.run(orders):
                for each in written:
                    if (row := by_name.get(each.name)) is not None:
                        for token in each.tokens:
                            self._accept(row, token, batch)
                self._leave(rows, batch, stop)
                if on_step is not None:
                    on_step()
            broken = take(rows)
        finally:
            self.driver.take(names)
        if broken:
            raise MemoryShortage("vLLM's cache is too small for so many guided replies: use a smaller batch.")

    def _with_twins(self, rows: Sequence[VllmRow]) -> list[Order]:
        """Return the orders of rows, each guided one followed by its twin's."""
        orders = []
        for row in rows:
            if row.order.errand.limit and not self._fit([row]):
                raise GenerationError(
                    "vLLM has no room for this reply and its twin: shorten it, or set plausibility to 0."
                )
            if row.order.errand.limit:
                row.twin = Driver.new_name()
                row.order = replace(row.order, errand=replace(row.order.errand, twin=row.twin))
            orders.append(row.order)
            if row.twin:
                orders.append(twin_of(row))
        return orders

    def _accept(self, row: VllmRow, token: int, batch: Batch) -> None:
        """Take in a row's new token."""
        if row.finish is not None:
            return
        if token in batch.end_tokens:
            row.finish = "stop"
            return
        row.output.append(token)
        if batch.ended is not None and batch.ended(row.place, row.output):
            row.finish = "stop"
        elif len(row.output) >= row.limit:
            row.finish = "length"

    def _leave(self, rows: Sequence[VllmRow], batch: Batch, stop: threading.Event | None) -> list[VllmRow]:
        """Be done with rows that were stopped, or have said what they were to stop at; those stopped now."""
        stopped = []
        for row in rows:
            own = batch.stops[row.place] if batch.stops else None
            if row.finish is None and ((stop and stop.is_set()) or (own and own.is_set())):
                row.finish = "cancelled"
                stopped.append(row)
        ended = [row for row in rows if row.finish in ("stop", "cancelled")]
        self.driver.abort([name for row in ended for name in (row.name, row.twin) if name])
        return stopped

    def _sums_of_replies(
        self,
        rows: Sequence[VllmRow],
        batch: Batch,
        layers: Sequence[int],
        sums: Mapping[str, Sums],
        interventions: Interventions,
    ) -> list[Activations | None]:
        """Each row's activations. A reply that was cut at a stop text is read again, without that text."""
        found: list[Activations | None] = []
        for row in rows:
            own, ids = sums.get(row.name), self._without_stop(row.output)
            if own is None or own.sums is None or not own.counts[1]:
                found.append(None)
            elif len(ids) < len(row.output):
                prompt = batch.prompts[row.place]
                passage = Passage([*prompt, *ids], len(prompt), len(prompt) - 1)
                slot = slot_of(interventions, row.place)
                found += self._read([passage], layers, Interventions(slot.added, slot.caps))
            else:
                mean = own.sums[0] / max(1, own.counts[0])
                found.append(Activations(tuple(layers), mean, own.sums[1], own.counts[0]))
        return found


def twin_of(row: VllmRow) -> Order:
    """Return what reads a row's tokens with nothing done to it."""
    order = row.order
    return replace(
        order,
        errand=Errand(row.twin, of=row.name),
        likeliest=0,
        salt="",
    )
