"""Several conversations in one batch, each with its own mix, which may change while its reply is written.

    rows = [VoicedRow(engine, request, mix) for request, mix in ...]
    for event in stream_voices(engine, rows):
        rows[event.row]...

What can go wrong with a mix goes wrong where the row is made, or its mix changed, and not in the batch.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_tui.core.mix import Mix
from persona_tui.model import Interventions, Request, TokenEvent, Watch
from persona_tui.steering.mix_control import MixControl, scaled
from persona_tui.vectors.maths import TraceScale


@dataclass(frozen=True)
class _Change:
    token: int
    live: Interventions
    described: dict[str, Any]


class VoicedRow:
    """A conversation to be answered, and how it is spoken.

    Attributes:
        request: the conversation, with its sampling and its seed.
        traces: what its tokens are compared with.
    """

    def __init__(
        self, engine: MixControl, request: Request, mix: Mix, traced: Iterable[str] | None = ()
    ) -> None:
        """
        Args:
            engine: will write it.
            request: the conversation.
            mix: what it is spoken with at first.
            traced: personas and traits that its tokens are compared with, besides those that speak and the
                axes; None = with nothing.

        Raises:
            PersonaNotFoundError: the mix, or `traced`, names somebody who does not exist.
            VectorFileError: a file cannot be used.
        """
        self.request = request
        self.traces: Mapping[str, TraceScale] = {} if traced is None else engine.traces([mix], traced)
        self._engine = engine
        self._lock = threading.Lock()
        self._past: list[_Change] = []
        self._taken = 0
        self._new: _Change | None = None
        self.set_mix(mix)

    @property
    def mix(self) -> Mix:
        """What it is spoken with."""
        return self._mix

    @property
    def changes(self) -> list[tuple[int, dict[str, Any]]]:
        """By token, the mix from that one on, as `SteeringEngine.describe` has it."""
        with self._lock:
            return [(each.token, each.described) for each in self._past]

    def set_mix(self, mix: Mix) -> None:
        """Speak with another mix from the next token on; call it from any thread.

        Raises:
            PersonaNotFoundError: the mix names a persona that does not exist; the old one stays.
            VectorFileError: its file cannot be used.
        """
        live, described = self._engine.interventions(mix), self._engine.describe(mix)
        with self._lock:
            self._mix, self._new = mix, _Change(-1, live, described)

    def begin(self) -> None:
        """Prepare to be written from the first token, as it was written before if it was."""
        with self._lock:
            self._taken = 0

    def take_change(self, token: int) -> Interventions | None:
        """Return what is new with a token, and remember that it came with that one; None = nothing is."""
        with self._lock:
            if self._taken == len(self._past) and self._new is not None:
                self._past.append(replace(self._new, token=token))
                self._new = None
            if self._taken == len(self._past) or self._past[self._taken].token != token:
                return None
            self._taken += 1
            return self._past[self._taken - 1].live


def stream_voices(
    engine: MixControl,
    rows: Sequence[VoicedRow],
    stop: threading.Event | None = None,
    watch: Watch | None = None,
) -> Iterator[TokenEvent]:
    """Answer conversations as the rows of one batch, token by token.

    Args:
        engine: writes them.
        rows: what is written; an event's `row` is the place in here.
        stop: when set, no further token is written in any row.
        watch: what is read for a monitor, in all rows.

    Yields:
        Events with projections on the scales of `SteeringEngine.stream_rows`, those that any row asked for.

    Raises:
        GenerationError: memory ran out, or (`Overflow`) the numbers of some rows overflowed.
    """
    traces = {name: trace for row in rows for name, trace in row.traces.items()}
    tokens = itertools.count()
    for row in rows:
        row.begin()
    present = [Interventions.none() for _ in rows]

    def poll() -> Interventions | None:
        token = next(tokens)
        changed = {
            place: new for place, row in enumerate(rows) if (new := row.take_change(token)) is not None
        }
        for place, new in changed.items():
            present[place] = new
        return Interventions.by_row(present) if changed else None

    events = engine.model.stream(
        [row.request for row in rows],
        None,
        poll,
        {name: trace.vectors for name, trace in traces.items()},
        stop,
        watch,
    )
    return scaled(events, traces)
