"""What is told of replies over HTTP, and who has which of the places for directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from persona_tui.core.mix import Mix
from persona_tui.vllm.bank import Bank
from persona_tui.vllm.op import TRACES, SlotBuffers
from persona_tui.vllm.passes import PassRow
from persona_tui.vllm.wire import KEY, TRACE, Packed, digest


class Directions:
    """Who has which of the places for directions that tokens are compared with."""

    def __init__(self, buffers: SlotBuffers) -> None:
        self._buffers = buffers
        self._at: dict[str, int] = {}
        self._users: dict[int, set[str]] = {}

    def take(self, user: str, vectors: Mapping[int, Tensor]) -> int | None:
        """Return where a direction is, written there if it is new; None = there is no place left."""
        key = digest(vectors)
        if key not in self._at:
            self._at = {each: at for each, at in self._at.items() if self._users.get(at)}
            free = set(range(TRACES)) - set(self._at.values())
            if not free:
                return None
            self._at[key] = min(free)
            self._buffers.trace_one(self._at[key], vectors)
        self._users.setdefault(self._at[key], set()).add(user)
        return self._at[key]

    def leave(self, user: str) -> None:
        """One who needs none of them any longer."""
        for users in self._users.values():
            users.discard(user)


class Figures:
    """What is told of replies over HTTP: means of projections, and how many tokens were capped.

    They are kept on the device, so that no pass waits for them, until others need their place.
    """

    def __init__(self, bank: Bank, buffers: SlotBuffers, directions: Directions, rows: int) -> None:
        device = buffers.found.device
        self._bank = bank
        self._buffers = buffers
        self._directions = directions
        self._told = torch.zeros(rows, 2 + TRACES, device=device)  # tokens, those capped, sums of projections
        self._before = torch.zeros_like(self._told)  # without the last token, which may come to nothing
        self._rows: dict[str, int] = {}
        self._free = list(range(rows))
        self._compared: dict[str, dict[str, tuple[int, float]]] = {}  # by reply: places, ordinary values
        self._now: tuple[Tensor, Tensor] | None = None

    def begin(self, rows: Sequence[PassRow], mixes: Mapping[str, tuple[str, Mix]]) -> bool:
        """Find whose tokens of the next pass are told of; whether there are any."""
        names: list[str] = []
        places, last, end = [], [], 0
        for row in rows:
            end += row.length
            name = row.extra.get(TRACE)
            if not isinstance(name, str) or row.id not in mixes:
                continue
            names.append(name)
            if row.chooses:
                places.append(self._row(name, mixes[row.id][1], row.extra[KEY], names))
                last.append(end - 1)
        device = self._told.device
        self._now = (
            (torch.tensor(places, device=device), torch.tensor(last, device=device)) if places else None
        )
        return bool(places)

    def _row(self, name: str, mix: Mix, asked: object, running: Sequence[str]) -> int:
        """Return where a reply's figures are kept."""
        if name in self._rows:
            return self._rows[name]
        if not self._free:
            oldest = next(each for each in self._rows if each not in running)
            self._free.append(self._rows.pop(oldest))
            self._compared.pop(oldest, None)
            self._directions.leave(oldest)
        row = self._rows[name] = self._free.pop()
        self._told[row] = 0
        self._before[row] = 0
        places = {
            each: (self._directions.take(name, scale.vectors), scale.ordinary)
            for each, scale in self._bank.scales(mix, asked).items()
        }
        self._compared[name] = {
            each: (at, ordinary) for each, (at, ordinary) in places.items() if at is not None
        }
        return row

    def add(self) -> None:
        """Add what the pass has found."""
        if self._now is None:
            return
        (rows, last), self._now = self._now, None
        found = self._buffers.found[last]
        capped = (found[:, :1] > 0).to(found)
        self._before[rows] = self._told[rows]
        self._told[rows] += torch.cat([torch.ones_like(capped), capped, found[:, 1:]], dim=1)

    def take(self, name: str, tokens: int) -> Packed | None:
        """Return what this stage has found of a reply; None if there is nothing, or no longer.

        Args:
            name: of the reply.
            tokens: how many it has, as one more may have been begun; 0 = that is not known.
        """
        self.add()  # in a stage that chooses no tokens
        row = self._rows.pop(name, None)
        compared = self._compared.pop(name, {})
        self._directions.leave(name)
        if row is None:
            return None
        self._free.append(row)
        now, before = self._told[row].tolist(), self._before[row].tolist()
        told = before if 0 < tokens < now[0] else now
        return {
            "tokens": told[0],
            "capped": told[1],
            "sums": {each: told[2 + at] for each, (at, _) in compared.items()},
            "ordinary": {each: ordinary for each, (_, ordinary) in compared.items()},
        }


def figures_of(answers: Sequence[Packed | None]) -> Packed | None:
    """Return a reply's figures from what each stage has found; None if there are none.

    Stages have different layers, over which projections add up. Capped tokens are those of the stage that has
    the most: where floors are in several stages, that is the least there can be.
    """
    stages = [each for each in answers if each is not None]
    if not stages:
        return None
    count = max(1.0, stages[-1]["tokens"])
    return {
        "projections": {
            name: sum(each["sums"][name] for each in stages) / count - ordinary
            for name, ordinary in stages[-1]["ordinary"].items()
        },
        "capped_tokens": int(max(each["capped"] for each in stages)),
    }
