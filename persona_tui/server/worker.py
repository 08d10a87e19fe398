"""The one thread that owns the model.

1. What waits goes into the next batch, as its rows, in the order in which it came.
2. A row that ends, or whose reader has gone, leaves the batch; nobody joins a batch that runs.
3. Between two tokens other work is done that needs the model for a moment: a score, a moderation.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any, Protocol, TypeVar

from persona_tui.core.errors import MemoryShortage, PersonaTuiError
from persona_tui.model import TokenEvent, Watch
from persona_tui.model.architecture import Overflow
from persona_tui.server.limits import Capacity, TooManyWaiting, Unavailable
from persona_tui.steering import SteeringEngine
from persona_tui.steering.rows import VoicedRow, stream_voices

logger = logging.getLogger(__name__)

T = TypeVar("T")

_QUIET = 0.01  # seconds without a new request before a batch begins
_PATIENCE = 0.5  # seconds at most that the first of a batch waits for others
_NOT_BEGUN = TokenEvent(0, 0, -1, "", {}, 0.0, 0.0, "cancelled")  # of what was stopped while it waited
_REPLY = 512  # tokens that a reply is expected to have at most, when a batch is put together


class BatchRow(Protocol):
    """One reply that is to be written: a row of a batch."""

    @property
    def voiced(self) -> VoicedRow:
        """What is written, and how."""
        ...

    @property
    def watch(self) -> Watch | None:
        """What is read for a monitor."""
        ...

    def take(self, event: TokenEvent) -> None:
        """Take in an event; called on the worker's thread."""
        ...

    def fail(self, error: Exception) -> None:
        """Take note that it will not be finished."""
        ...


class Worker:
    """Writes what is submitted, batch by batch.

    Attributes:
        rows: rows of the batch that is being written.
        on_batch: told how many rows a new batch has.
        coming: requests that are being read, and will be submitted in a moment.
    """

    def __init__(self, engine: SteeringEngine, limits: Capacity) -> None:
        self.rows = self.coming = 0
        self.on_batch: Callable[[int], None] = lambda rows: None
        self._engine = engine
        self._limits = limits
        self._waiting: deque[BatchRow] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many replies wait for the next batch."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether it takes on anything."""
        return self._thread.is_alive() and not self._closing

    def submit(self, pieces: Sequence[BatchRow]) -> None:
        """Have replies written.

        Raises:
            TooManyWaiting: the queue is full; none of them will be.
            Unavailable: the worker is closing.
        """
        with self._changed:
            self._check_open()
            if self._waiting and len(self._waiting) + len(pieces) > self._limits.waiting:
                raise TooManyWaiting(f"{len(self._waiting)} replies are waiting already: try again later.")
            self._waiting.extend(pieces)
            self._changed.notify()

    def withdraw(self, pieces: Sequence[BatchRow]) -> None:
        """Take back what has not begun."""
        with self._changed:
            self._waiting = deque(each for each in self._waiting if each not in pieces)

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Have something done that needs the model, between two tokens.

        Raises:
            TooManyWaiting: too much of that waits already.
            Unavailable: the worker is closing.
        """
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            self._check_open()
            if len(self._work) >= self._limits.waiting:
                raise TooManyWaiting(f"{len(self._work)} requests are waiting already: try again later.")
            self._work.append(do)
            self._changed.notify()
        return future

    def _check_open(self) -> None:
        if not self.alive:
            raise Unavailable("The server is closing.")

    def close(self) -> None:
        """Stop everything after the present token, and end the thread."""
        self._stop.set()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # On the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._work or self._closing)
                if self._closing:
                    break
            self._do_work()
            if self._waiting:
                self._answer(self._next_batch())
        for piece in self._waiting:
            piece.fail(Unavailable("The server is closing."))
        self._do_work()

    def _do_work(self) -> None:
        while self._work:
            self._work.popleft()()

    def _next_batch(self) -> list[BatchRow]:
        """Whoever waits, as far as one batch takes them; those who come together are waited for."""
        first = time.monotonic()
        with self._changed:
            while len(self._waiting) < self._limits.rows and time.monotonic() - first < _PATIENCE:
                if not self._changed.wait(_QUIET) and not self.coming:
                    break
            chosen: list[BatchRow] = []
            widest = 0
            left: deque[BatchRow] = deque()
            for piece in self._waiting:
                wider = max(widest, _tokens(piece))
                if len(chosen) < self._limits.rows and (
                    not chosen or wider * (len(chosen) + 1) <= self._limits.tokens
                ):
                    chosen.append(piece)
                    widest = wider
                else:
                    left.append(piece)
            self._waiting = left
        return chosen

    def _answer(self, pieces: list[BatchRow]) -> None:
        """Write a batch. Rows that cannot be written fail alone: the others are written again, from where
        their readers are.
        """
        waiting = [pieces]
        while waiting:
            chosen = waiting.pop()
            batch = [each for each in chosen if not _gone(each)]
            for each in chosen:
                if _gone(each):
                    each.take(_NOT_BEGUN)
            if not batch:
                continue
            try:
                self._write(batch)
            except Overflow as overflow:
                for row in overflow.rows:
                    batch[row].fail(overflow)
                waiting.append([each for row, each in enumerate(batch) if row not in overflow.rows])
            except MemoryShortage as shortage:
                if len(batch) == 1:
                    batch[0].fail(shortage)
                else:
                    gc.collect()
                    middle = len(batch) // 2
                    waiting += [batch[middle:], batch[:middle]]
            except Exception as error:  # the next batch is written all the same
                for piece in batch:
                    piece.fail(error)
                if not isinstance(error, PersonaTuiError):
                    logger.exception("A batch of %d replies failed.", len(batch))
        self.rows = 0

    def _write(self, batch: list[BatchRow]) -> None:
        self.rows = len(batch)
        self.on_batch(len(batch))
        watches = [each.watch for each in batch if each.watch is not None]
        watch = watches[0] if watches else None
        events = stream_voices(self._engine, [each.voiced for each in batch], self._stop, watch)
        with closing(events):  # type: ignore[type-var]
            for event in self._between_tokens(events):
                batch[event.row].take(event)
                if event.finish is not None:
                    self.rows -= 1

    def _between_tokens(self, events: Iterator[TokenEvent]) -> Iterator[TokenEvent]:
        for event in events:
            yield event
            if self._work:
                self._do_work()


def _tokens(piece: BatchRow) -> int:
    request = piece.voiced.request
    longest = request.sampling.max_new_tokens if request.sampling is not None else _REPLY
    return len(request.prompt or ()) + min(longest, _REPLY)


def _gone(piece: BatchRow) -> bool:
    stop: Any = piece.voiced.request.stop
    return stop is not None and stop.is_set()
