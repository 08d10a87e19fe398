"""What runs in vLLM's workers: which token has which slot, what is summed up, and the guide.

Requests come in two kinds. Over HTTP they name personas of the operator's workspace (`bank`). Those of our
own engine (`engine`), in this process or on another machine (`door`), name what the engine had the workers
hold before, and may have spans of their text summed up and their tokens compared with directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_tui.core.mix import Mix
from persona_tui.model.pool import in_units, usable
from persona_tui.model.request import Noise, drawn_from, plausible
from persona_tui.vllm.bank import Bank
from persona_tui.vllm.figures import Directions, Figures
from persona_tui.vllm.op import SlotBuffers, set_buffers, slots_of
from persona_tui.vllm.passes import FirstRunner, PassRow, SecondRunner
from persona_tui.vllm.scores import PassScores
from persona_tui.vllm.wire import ENGINE, KEY, TRACE, Errand, Packed, Slot, unpack_slot

_PLACES_BYTES = 2**28  # of the sums; there are at least 4 for each request
_MOST_PLACES = 1024


class _Reading:
    """An errand under way.

    Attributes:
        errand: what is done.
        places: of the sums, one for each span.
        counts: how many tokens are in each sum.
        read: the first position that was not read yet. Those before it may come again after a preemption.
        thinking: whether the reply is in the middle of a thought.
        numbers: of the directions that its tokens are compared with; None = there was no place for it.
        told: what was found, token by token, and not asked for yet: entropy, lift, projections.
        scores: log-probabilities of the prompt's tokens, from the first that is told.
        noise: the random numbers that its tokens are drawn with.
    """

    def __init__(self, errand: Errand, places: list[int], numbers: list[int | None]) -> None:
        self.errand = errand
        self.places = places
        self.counts = [0] * len(places)
        self.read = 0
        self.thinking = False
        self.numbers = numbers
        self.told: list[list[float]] = []
        self.scores: list[float] = []
        self.noise = Noise(errand.seed)


class WorkerSlots:
    """The slots of one worker, and its errands."""

    def __init__(
        self, runner: Any, requests: FirstRunner | SecondRunner, bank: Bank | None, lent: bool
    ) -> None:
        """
        Args:
            runner: vLLM's.
            requests: that it runs.
            bank: the operator's personas; None = there are none.
            lent: whether our own engine drives it, here or from another machine.
        """
        text = runner.model_config.hf_text_config
        count, layers, hidden = runner.max_num_reqs + 1, text.num_hidden_layers, text.hidden_size
        self.runner = runner
        self.requests = requests
        self.bank = bank
        self.places = 0
        if lent:
            room = _PLACES_BYTES // (layers * hidden * 4)
            self.places = max(4 * runner.max_num_reqs, min(room, _MOST_PLACES))
        self.buffers = SlotBuffers(
            layers, count, hidden, runner.max_num_tokens, runner.device, self.places, traces=True
        )
        self.directions = Directions(self.buffers)
        self.figures = (
            None if bank is None else Figures(bank, self.buffers, self.directions, 4 * runner.max_num_reqs)
        )
        self._held: dict[str, int] = {}
        self._free = list(range(1, count))
        self._mixes: dict[str, tuple[str, Mix]] = {}
        self._spoken: dict[str, tuple[str, Mix]] = {}  # of `_mixes`, those that have changed
        self._ways: dict[str, Slot] = {}
        self._changed: dict[str, str] = {}
        self._errands: dict[str, _Reading | None] = {}
        self._readings: dict[str, _Reading] = {}
        self._free_places = list(range(1, self.places + 1))
        self._pending: list[tuple[int, _Reading, range]] = []  # by row of the batch, what is traced
        self._entropies: list[float] = []
        self._drawing: list[tuple[int, _Reading, int]] = []  # by row, whose token is drawn, and which it is
        self._scores = PassScores()
        self.pairs: list[tuple[int, int, float]] = []
        self.broken: set[str] = set()
        set_buffers(self.buffers)
        global present
        present = self

    # Before a pass ------------------------------------------------------------------------------------------

    def place(self, rows: Sequence[PassRow]) -> None:
        """Tell every token of a pass its slot, and where it is summed up."""
        self.end()  # with what a stage that chooses no tokens has found
        keys = self._keys(rows)
        slots = [self._held[keys[row.id]] if row.id in keys else 0 for row in rows]
        self._find_drawing(rows)
        places = self._summed(rows)
        traced = bool(self._pending)
        if self.figures is not None:
            traced |= self.figures.begin(rows, self._mixes)
        self.buffers.tell(slots, [row.length for row in rows], places, traced)

    def _keys(self, rows: Sequence[PassRow]) -> dict[str, str]:
        """By running request that something is done to, the key of that; its slot is filled."""
        self._errands = {row.id: self._errand(row) for row in rows}
        found = {id: self._way(each) for id, each in self._errands.items() if each is not None}
        keys = {id: key for id, key in found.items() if key}
        mixes: dict[str, Mix] = {}
        if self.bank is not None:
            known = {row.id: self._mix(row) for row in rows if row.id not in found}
            self._mixes = {id: each for id, each in known.items() if each is not None}
            keys |= {id: key for id, (key, _) in self._mixes.items()}
            mixes = dict(self._mixes.values())
        new = slots_of(keys, self._held, self._free)
        self.buffers.leave(self._held.values())
        for key in new:
            if key in mixes and self.bank is not None:
                self.buffers.fill(self._held[key], self.bank.slot(mixes[key]))
            else:
                self.buffers.fill(self._held[key], self._ways[key])
        return keys

    def _mix(self, row: PassRow) -> tuple[str, Mix] | None:
        """Return a request's mix with its key; None if it is plain."""
        if found := self._spoken.get(row.id) or self._mixes.get(row.id):
            return found
        asked = row.extra.get(KEY)
        if asked is None or self.bank is None:
            return None
        mix = self.bank.mix_of(asked)
        return self.bank.key(mix), mix

    def _errand(self, row: PassRow) -> _Reading | None:
        if row.id in self._errands:
            return self._errands[row.id]
        asked = row.extra.get(ENGINE)
        if asked is None:
            return None
        errand = Errand(**asked)
        if errand.name not in self._readings:  # else it was preempted
            places = [self._free_places.pop() for _ in errand.spans]
            if places and self.buffers.sums is not None:
                self.buffers.sums[:, places] = 0
            numbers = [
                self.directions.take(errand.name, self._ways[key].added if key else {})
                for key in errand.traces
            ]
            self._readings[errand.name] = _Reading(errand, places, numbers)
        return self._readings[errand.name]

    def _way(self, reading: _Reading) -> str:
        return self._changed.get(reading.errand.name, reading.errand.way)

    def _find_drawing(self, rows: Sequence[PassRow]) -> None:
        """Find the rows whose next token is drawn here."""
        self._drawing = []
        for number, row in enumerate(rows):
            reading = self._errands[row.id]
            if reading is not None and reading.errand.temperature > 0 and row.chooses:
                self._drawing.append((number, reading, row.start + row.length - row.prompt))

    def _summed(self, rows: Sequence[PassRow]) -> Tensor | None:
        """Return where each token of the pass is summed up; and who is guided by whom."""
        self._pending, self.pairs = [], []
        self._scores.clear()
        errands = [each.errand for each in self._errands.values() if each is not None]
        if not any(each.spans or each.twin or each.told or each.scored for each in errands):
            return None
        found = np.zeros(sum(row.length for row in rows), dtype=np.int64)
        first, paired = 0, {}
        for number, row in enumerate(rows):
            reading, end = self._errands[row.id], first + row.length
            if reading is not None:
                _mark(reading, found[first:end], row)
                if reading.errand.scored:
                    begin = max(reading.errand.scored, row.start + 1, reading.read + 1)
                    scored = range(begin, min(row.start + row.length + 1, row.prompt))
                    self._scores.ask(reading.scores, scored, row.start, first, row.ids)
                reading.read = max(reading.read, row.start + row.length)
                paired[reading.errand.name] = (number, row.chooses, reading.errand)
                if reading.errand.every or (reading.errand.told and row.chooses):
                    begin = first if reading.errand.every else end - 1
                    self._pending.append((number, reading, range(begin, end)))
            first = end
        self._pair(paired)
        return torch.from_numpy(found) if found.any() else None

    def _pair(self, rows: dict[str, tuple[int, bool, Errand]]) -> None:
        """Find the rows that are guided, and their twins. One that has lost its twin is told, and is not to
        be believed."""
        for name, (row, chooses, errand) in rows.items():
            if not errand.twin or not chooses:
                continue
            twin = rows.get(errand.twin)
            if twin is not None and twin[1]:
                self.pairs.append((row, twin[0], errand.limit))
            else:
                self.broken.add(name)

    def score(self, hidden: Tensor, head: Callable[[Tensor], Tensor | None]) -> None:
        """Find how probable the tokens were that are scored; see `PassScores.find`."""
        self._scores.find(hidden, head, int(self.runner.model_config.get_vocab_size()))

    # While a token is chosen --------------------------------------------------------------------------------

    def guide(self, logits: Tensor) -> Tensor:
        """Leave the guided rows what their twins find plausible; `[rows, vocabulary]`."""
        if self._pending:
            likely = logits[[row for row, _, _ in self._pending]].log_softmax(-1)
            self._entropies = (-(likely.exp() * likely).nansum(-1)).tolist()
        limited = [pair for pair in self.pairs if pair[2] > 0]
        if limited:
            steered, twins, limits = (list(each) for each in zip(*limited, strict=True))
            allowed = plausible(logits[steered], logits[twins], torch.tensor(limits).to(logits))
            logits[steered] = allowed
        return logits

    def draw(self, logits: Tensor) -> Tensor | None:
        """Return the tokens of our engine's rows, drawn as it draws them everywhere: the same seed has the
        same reply; None if none is drawn.
        """
        if not self._drawing:
            return None

        def column(numbers: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(numbers, dtype=dtype, device=logits.device).unsqueeze(1)

        rows, readings, indexes = zip(*self._drawing, strict=True)
        errands = [each.errand for each in readings]
        limited = [at for at, each in enumerate(errands) if each.top_p < 1]
        return drawn_from(
            logits if len(rows) == len(logits) else logits[list(rows)],
            column([each.temperature for each in errands]),
            torch.tensor(limited, device=logits.device) if limited else None,
            column([errands[at].top_p for at in limited]),
            column([each.noise.at(at) for each, at in zip(readings, indexes, strict=True)], torch.float64),
        )

    def follow(self, tokens: Tensor, drawn: Tensor | None) -> None:
        """Put in what was drawn, and have the twins read what their rows have chosen; `[rows]`."""
        if drawn is not None:
            tokens[[row for row, _, _ in self._drawing]] = drawn.to(tokens.dtype)
            self._drawing = []
        if self.pairs:
            steered, twins, _ = (list(each) for each in zip(*self.pairs, strict=True))
            tokens[twins] = tokens[steered]

    def end(self) -> None:
        """Keep what the pass has found, once its tokens are chosen."""
        if self.figures is not None:
            self.figures.add()
        self._record()

    def _record(self) -> None:
        """Keep what the last pass has found of the tokens that are traced."""
        pending, entropies = self._pending, self._entropies
        self._pending, self._entropies = [], []
        if not pending:
            return
        rows = self.buffers.found[[at for _, _, places in pending for at in places]].tolist()
        for number, (_, reading, places) in enumerate(pending):
            entropy = entropies[number] if entropies else 0.0
            own, rows = rows[: len(places)], rows[len(places) :]
            reading.told += [
                [entropy, each[0], *(nan if at is None else each[1 + at] for at in reading.numbers)]
                for each in own
            ]

    # For our engine -----------------------------------------------------------------------------------------

    def hold(self, ways: dict[str, Packed], forget: Sequence[str]) -> None:
        """Keep what is done to requests, by key."""
        for key in forget:
            self._ways.pop(key, None)
        self._ways.update({key: unpack_slot(each) for key, each in ways.items()})

    def change(self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]) -> None:
        """Do something else to running requests from their next token on."""
        self._changed.update(ways)
        for name, reading in self._readings.items():
            if name in limits:
                twin = twins.get(name, reading.errand.twin)
                reading.errand = replace(reading.errand, limit=limits[name], twin=twin)

    def take(self, names: Sequence[str], layers: Sequence[int], keep: bool) -> Packed:
        """Return what was summed up for requests, and of how many tokens; they are forgotten unless kept."""
        sums = self.buffers.sums
        broken = sorted(self.broken.intersection(names))
        found: Packed = {"counts": {}, "sums": {}, "scores": {}, "broken": broken}
        rows = torch.tensor(layers, dtype=torch.long)
        for name in names:
            reading = self._readings.get(name)
            if reading is None:
                continue
            if layers and reading.places and sums is not None:
                # Not one after the other: that would copy the places of all requests first.
                taken = sums[rows[None], torch.tensor(reading.places)[:, None]].cpu()
                found["sums"][name] = taken.numpy().tobytes()
            found["counts"][name] = list(reading.counts)
            if reading.scores:
                found["scores"][name] = list(reading.scores)
            if not keep:
                self._free_places += self._readings.pop(name).places
                # Should it still run, nothing more is found out about it.
                reading.errand = replace(reading.errand, spans=(), told=False, every=False, twin="")
                self._changed.pop(name, None)
                self.directions.leave(name)
        if not keep:
            self.broken.difference_update(names)
        return found

    def pool(self, groups: Sequence[Sequence[str]], layers: Sequence[int]) -> list[Packed]:
        """Return the replies of groups of requests added up, by group; see `Pool`. They are not forgotten.

        A reply is a request's first span; the second is its last prompt token.
        """
        return [self._pool(names, layers) for names in groups]

    def _pool(self, names: Sequence[str], layers: Sequence[int]) -> Packed:
        readings = [self._readings[name] for name in names if name in self._readings]
        readings = [each for each in readings if len(each.places) > 1 and all(each.counts[:2])]
        sums, wrong = self.buffers.sums, -1
        if sums is None or not readings:
            return {"totals": b"", "count": 0, "tokens": 0, "wrong": wrong}
        counts = torch.tensor([each.counts[:2] for each in readings], dtype=torch.float32, device=sums.device)
        places = torch.tensor([each.places[:2] for each in readings], device=sums.device)
        totals = torch.zeros(2, len(layers), sums.shape[-1], dtype=torch.int64)
        for row, layer in enumerate(layers):
            means = sums[layer][places] / counts[..., None]  # `[requests, 2, hidden]`
            if wrong < 0 and not bool(usable(means).all()):
                wrong = layer
            totals[:, row] = in_units(means).sum(0).cpu()
        tokens = sum(each.counts[0] for each in readings)
        return {"totals": totals.numpy().tobytes(), "count": len(readings), "tokens": tokens, "wrong": wrong}

    def told(self, names: Sequence[str]) -> dict[str, list[list[float]]]:
        """Return what was found of the tokens of requests, by request, since this was last asked for."""
        if not self._samples:
            self._record()
        found = {}
        for name in dict.fromkeys(names):  # one that brings two tokens at once may be named twice
            if (reading := self._readings.get(name)) is not None:
                found[name], reading.told = reading.told, []
        return found

    @property
    def _samples(self) -> bool:
        """Whether this stage of the model chooses tokens."""
        from vllm.distributed import get_pp_group

        return bool(get_pp_group().is_last_rank)

    # Replies over HTTP --------------------------------------------------------------------------------------

    def speak(self, name: str, asked: Packed) -> bool:
        """Have a reply go on with another mix from its next token on; whether it is being written.

        Args:
            name: under which its figures are kept.
            asked: the whole mix.
        """
        known = self.requests.known()
        self._spoken = {id: each for id, each in self._spoken.items() if id in known}
        id = next((id for id, extra in known.items() if extra.get(TRACE) == name), None)
        if id is None or self.bank is None:
            return False
        mix = self.bank.mix_of(asked)
        self._spoken[id] = (self.bank.key(mix), mix)
        return True


def _mark(reading: _Reading, marks: np.ndarray[Any, Any], row: PassRow) -> None:
    """Mark the tokens of one request in a pass that are summed up.

    Args:
        reading: the request's errand; its counts go up.
        marks: of its tokens in the pass; changed.
        row: the request.
    """
    start, end = row.start, row.start + row.length
    for number, (begin, stop) in enumerate(reading.errand.spans):
        reply = stop < 0
        first = max(start, reading.read, row.prompt if reply else begin)
        last = end if reply else min(end, stop)
        if reply and reading.errand.thoughts:
            told = [at - start for at in range(first, last) if _speaks(reading, int(row.ids[at]))]
            marks[told] = reading.places[number]
            reading.counts[number] += len(told)
        elif first < last:
            marks[first - start : last - start] = reading.places[number]
            reading.counts[number] += last - first


def _speaks(reading: _Reading, token: int) -> bool:
    """Return whether a reply's next token is not a thought, and no tag around one."""
    begin, end = reading.errand.thoughts
    was = reading.thinking
    reading.thinking = token != end and (was or token == begin)
    return not was and token not in (begin, end)


present: WorkerSlots | None = None


class PersonaWorker:
    """Methods that vLLM's workers get (`worker_extension_cls`); none can be called from outside."""

    model_runner: Any

    def _persona_tui(self) -> WorkerSlots:
        slots: WorkerSlots = self.model_runner._persona_tui_slots
        return slots

    def _persona_tui_speaks(self) -> bool:
        """Return whether this worker's answer counts: of those that hold the same layers, one does."""
        from vllm.distributed import get_tp_group

        return bool(get_tp_group().rank_in_group == 0)

    def persona_tui_about(self) -> Packed:
        """Return what our engine has to know; see `About`."""
        runner = self.model_runner
        cache = runner.vllm_config.cache_config
        return {
            "places": self._persona_tui().places,
            "requests": runner.max_num_reqs,
            "tokens": runner.max_num_tokens,
            "room": int(cache.num_gpu_blocks or 0) * int(cache.block_size),
            "context": runner.max_model_len,
            "block": int(cache.block_size),
        }

    def persona_tui_hold(self, ways: dict[str, Packed], forget: list[str]) -> None:
        """See `WorkerSlots.hold`."""
        self._persona_tui().hold(ways, forget)

    def persona_tui_change(
        self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]
    ) -> None:
        """See `WorkerSlots.change`."""
        self._persona_tui().change(ways, limits, twins)

    def persona_tui_take(self, names: list[str], layers: list[int], keep: bool) -> Packed | None:
        """See `WorkerSlots.take`."""
        found = self._persona_tui().take(names, layers, keep)
        return found if self._persona_tui_speaks() else None

    def persona_tui_pool(self, groups: list[list[str]], layers: list[int]) -> list[Packed] | None:
        """See `WorkerSlots.pool`."""
        found = self._persona_tui().pool(groups, layers)
        return found if self._persona_tui_speaks() else None

    def persona_tui_figures(self, name: str, tokens: int) -> Packed | None:
        """See `Figures.take`."""
        figures = self._persona_tui().figures
        found = None if figures is None else figures.take(name, tokens)
        return found if self._persona_tui_speaks() else None

    def persona_tui_told(self, names: list[str]) -> dict[str, list[list[float]]] | None:
        """See `WorkerSlots.told`."""
        found = self._persona_tui().told(names)
        return found if self._persona_tui_speaks() else None

    def persona_tui_speak(self, name: str, asked: Packed) -> bool:
        """See `WorkerSlots.speak`."""
        return self._persona_tui().speak(name, asked)
