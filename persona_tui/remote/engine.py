"""Turns that a server writes, in the place of the engine that would write them here.

1. What a mix does is worked out here, from copies of the server's vectors: a mistake is raised where it is
   made, and every gauge works.
2. A turn is asked for with its mixes. A thread reads the answer; the thread that asked for it takes the
   events, and between two of them tells the server of another mix, or that somebody wants it to stop.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from persona_tui.core.connection import Connection, NotThere
from persona_tui.core.errors import EndpointError, PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.model import Message, Sampling, TokenEvent
from persona_tui.monitors.events import judged
from persona_tui.monitors.verdict import Verdict
from persona_tui.remote.guard import RemoteGuard
from persona_tui.remote.model import RemoteModel
from persona_tui.steering.engine import SteeringEngine, StreamGuard, with_system
from persona_tui.steering.mix_control import OnMix

_LISTEN = 0.02  # seconds between two looks at whether somebody has moved a fader, or wants to stop
_PATIENCE = 3.0  # seconds that a server has to stop a turn
_AXES = ("assistant", "safety")
_FIELDS = ("row", "index", "token_id", "text", "projections", "capped", "logprob", "entropy", "finish")

_Message = tuple[str, dict[str, Any]] | Exception | None  # an event; why there is none; None = that is all


class RemoteEngine(SteeringEngine):
    """Has a server write. Everything but writing and reading is as of `SteeringEngine`."""

    model: RemoteModel

    def circumstances(self) -> dict[str, Any]:
        """Return what decides about the last digits on the server's machine."""
        return dict(self.model.circumstances)

    def stream_rows(
        self,
        messages: Sequence[Message],
        mixes: Sequence[Mix | None],
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
        stop: threading.Event | None = None,
        on_mix: OnMix | None = None,
        guard: StreamGuard | None = None,
    ) -> Iterator[TokenEvent]:
        """Have a conversation answered once per mix; see `SteeringEngine.stream_rows`.

        Raises:
            PersonaNotFoundError: a mix names a persona that does not exist.
            EndpointError: the server does not answer, or not any more.
        """
        if None in mixes:
            self._load(self._mix)
        with self._lock:
            version, present = self._version, self._mix
        chosen = [present if mix is None else mix for mix in mixes]
        for mix in chosen:
            self.interventions(mix)  # what is wrong with it is said here
            for note in (self.unenforced(mix), self.doubtful(mix)):
                if note:
                    self.on_note(note)
        traced = self.traces(mixes=chosen)
        body = {
            "messages": with_system(messages, system),
            "mixes": [asdict(mix) for mix in chosen],
            "rendering": self.model.rendering.record(),
            "persona_tui": {
                "trace": [name for name in traced if name not in _AXES],
                "guard": guard.asked_for if isinstance(guard, RemoteGuard) else "off",
            },
            **asdict((sampling or self.sampling).with_seed()),
        }
        turn = _Turn(self.model, body, stop or threading.Event())
        follower = mixes.index(None) if None in mixes else None
        with contextlib.closing(self._followed(turn, follower, version, on_mix)) as events:
            for record in events:
                event = _event(record, traced)
                if isinstance(guard, RemoteGuard) and (verdict := record.get("verdict")):
                    guard.take(Verdict.from_dict(verdict))
                yield event
                if event.finish == "refused":  # of one row; it ends all
                    return

    def _followed(
        self, turn: _Turn, follower: int | None, version: int, on_mix: OnMix | None
    ) -> Generator[dict[str, Any], None, None]:
        """Yield a turn's tokens. The server is told of other mixes, and `on_mix` when they take effect."""

        def tell() -> None:
            nonlocal version
            if follower is None or self._version == version:
                return
            with self._lock:
                version, mix = self._version, self._mix
            try:
                turn.change(follower, asdict(mix))
            except PersonaTuiError as error:
                self.on_note(f"The reply goes on with the previous mix: {str(error).rstrip('.')}.")

        with contextlib.closing(turn.events(tell)) as events:
            for name, record in events:
                if name == "token":
                    yield record
                elif name == "mix" and record["row"] == follower and on_mix is not None:
                    on_mix(int(record["index"]), record["mix"])

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        mixes: Mapping[int, Mix] | None = None,
        system: str | None = None,
        traced: Iterable[str] | None = None,
    ) -> list[TokenEvent]:
        """Have a reply read again; see `SteeringEngine.reread_reply`."""
        told = {str(index): asdict(mix) for index, mix in (mixes or {}).items()}
        given = reply if isinstance(reply, str) else list(reply)
        return self._reread(messages, system, traced, {"reply": given, "mixes": told})

    def reread_message(
        self, messages: Sequence[Message], system: str | None = None, traced: Iterable[str] | None = None
    ) -> list[TokenEvent]:
        """Have the user's last message read; see `SteeringEngine.reread_message`."""
        return self._reread(messages, system, traced, {})

    def _reread(
        self,
        messages: Sequence[Message],
        system: str | None,
        traced: Iterable[str] | None,
        more: dict[str, Any],
    ) -> list[TokenEvent]:
        known = self.traces(names=traced)
        body = {
            "messages": with_system(messages, system),
            "rendering": self.model.rendering.record(),
            "trace": [name for name in known if name not in _AXES],
            **more,
        }
        return [_event(each, known) for each in self.model.connection.post("/native/rereads", body)["data"]]


class _Turn:
    """One answer of a server, on its way."""

    def __init__(self, model: RemoteModel, body: dict[str, Any], stop: threading.Event) -> None:
        self._connection: Connection = model.connection
        self._fingerprint = model.fingerprint
        self._stop = stop
        self._id: str | None = None
        self._told_at: float | None = None  # when the server was told to end
        self._left = False
        self._come: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        # A daemon: a server that says nothing keeps nobody from leaving.
        self._reader = threading.Thread(target=self._read, args=(body,), name="reading", daemon=True)

    def _read(self, body: dict[str, Any]) -> None:
        try:
            with contextlib.closing(self._connection.events("/native/turns", body)) as events:
                for event in events:
                    if self._left:
                        return
                    self._come.put(event)
            self._come.put(None)
        except Exception as error:
            self._come.put(error)

    def events(self, between: Callable[[], None]) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """Yield what comes; `between` is called again and again meanwhile.

        Raises:
            EndpointError: the server does not answer, or not any more.
        """
        self._reader.start()
        ended = False
        try:
            while self._goes_on(between):
                try:
                    come = self._come.get(timeout=_LISTEN)
                except queue.Empty:
                    continue
                if come is None and not ended:
                    raise EndpointError(f"the connection to {self._connection.url} broke: try again")
                if come is None or (isinstance(come, Exception) and self._stop.is_set()):
                    return
                if isinstance(come, Exception):
                    raise come
                name, record = come
                if name == "begin":
                    self._begun(record)
                elif name == "error":
                    raise EndpointError(f"{self._connection.url}: {record['error']['message']}")
                ended = ended or name == "end"
                yield name, record
        finally:
            self._left = True
            if not ended:
                self._end()

    def _goes_on(self, between: Callable[[], None]) -> bool:
        """Return whether to listen on; the server is told to end the turn once somebody wants that."""
        if self._id is None:
            return not self._stop.is_set()  # it has not begun
        between()
        if self._stop.is_set() and self._told_at is None:
            self._told_at = time.monotonic()
            self._end()
        return self._told_at is None or time.monotonic() - self._told_at <= _PATIENCE

    def _begun(self, record: Mapping[str, Any]) -> None:
        self._id = str(record["id"])
        if record["fingerprint"] != self._fingerprint:
            raise EndpointError(
                f"{self._connection.url} serves another model by now: leave and connect again"
            )

    def change(self, row: int, mix: dict[str, Any]) -> None:
        """Have a row go on with another mix; of one that has ended there is nothing to say."""
        with contextlib.suppress(NotThere):
            self._connection.patch(f"/native/turns/{self._id}", {"row": row, **mix})

    def _end(self) -> None:
        """Have the server stop, if it still answers."""
        if self._id is not None:
            with contextlib.suppress(EndpointError):
                self._connection.delete(f"/native/turns/{self._id}")


def _event(record: Mapping[str, Any], traced: Iterable[str]) -> TokenEvent:
    """Return an event as it is here, with the projections that were asked for: its batch may have more."""
    projections = {name: record["projections"][name] for name in traced if name in record["projections"]}
    fields = {name: record[name] for name in _FIELDS} | {"projections": projections}
    event = TokenEvent(**fields, nats=record.get("nats"))
    verdict = record.get("verdict")
    return event if verdict is None else judged(event, Verdict.from_dict(verdict))
