"""`Guard`: judges a chat's messages and replies from the passes that write the replies, and acts on it.

    guard = Guard(lambda: store.load("default", model), mode="warn")
    for event in engine.stream(messages, guard=guard):
        verdict = verdict_of(event)      # None for most events
        ...

1. The first event of a watched stream has no token. Its verdict is about the user's message; it comes from
   the pass that has read the prompt, and before any word of the reply.
2. Some of the events that follow have a verdict about the reply so far: when it has 8 tokens, after every
   fourth one from then on, and at its end.
3. In mode `refuse`, a dangerous verdict ends the stream: its event has the finish "refused", and no text. If
   it was about the message, nothing has been written.

No pass of the model is made for a guard, unless a message is in disguise (`SelfMonitor.plain`): that one is
read again, plainly and alone. Turning a guard on changes no token. While personas or capping are at work,
what is judged are the steered activations: a monitor is fitted without steering, so that strong steering
moves its scores. With a system prompt or earlier turns, a message is read in their context.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from persona_tui.core.errors import MonitorError, PersonaTuiError
from persona_tui.monitors.verdict import Verdict

if TYPE_CHECKING:
    from persona_tui.model import TokenEvent, Watch
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.traits.policy import Breach

GuardMode = Literal["off", "warn", "refuse", "critique"]
GUARD_MODES: tuple[GuardMode, ...] = get_args(GuardMode)


class Guard:
    """What is done about dangerous messages and replies. The mode may change at any time, from any thread.

    Attributes:
        asked: the message that is being judged, if it is known.
        message: the verdict about the last message that was judged, None before that.
        reply: the latest verdict about the reply that followed it, None if there is none yet.
    """

    def __init__(
        self,
        load: Callable[[], SelfMonitor],
        mode: GuardMode = "off",
        exists: Callable[[], None] | None = None,
        weakness: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            load: reads the monitor, with its model; called when it is first needed.
            mode: "off" (nothing is read), "warn" (verdicts only), "refuse", or "critique" (verdicts, if there
                is a monitor; the model itself judges its draft, see `chat.review`).
            exists: raises what is wrong if the monitor cannot be loaded; cheap.
            weakness: says why the monitor is weak, if it is; cheap. By default the monitor is loaded for it.
        """
        self._load = load
        self._exists = exists
        self._weakness = weakness
        self._mode: GuardMode = mode
        self._monitor: SelfMonitor | None = None
        self.asked = ""
        self.message: Verdict | None = None
        self.reply: Verdict | None = None

    @property
    def mode(self) -> GuardMode:
        """off, warn, refuse or critique."""
        return self._mode

    def set_mode(self, mode: str) -> None:
        """Change the mode: a stream that is watched already obeys it from its next verdict on.

        Raises:
            MonitorError: there is no such mode, or no monitor to guard with.
        """
        found = next((known for known in GUARD_MODES if known == mode.strip().casefold()), None)
        if found is None:
            raise MonitorError(f'a guard is off, warn, refuse or critique, not "{mode}"')
        if found not in ("off", "critique") and self._exists is not None:
            self._exists()
        self._mode = found

    def forget_monitor(self) -> None:
        """Read the monitor again when it is next needed: it was fitted again."""
        self._monitor = None

    @property
    def monitor(self) -> SelfMonitor:
        """The monitor, read on first use.

        Raises:
            PersonaTuiError: it is missing, damaged, or of another model.
        """
        monitor = self._monitor  # another thread may ask for it to be forgotten meanwhile
        if monitor is None:
            monitor = self._monitor = self._load()
        return monitor

    @property
    def weakness(self) -> str:
        """Why the monitor cannot be relied on, in a sentence; "" if it can. The model is not loaded for it.

        Raises:
            PersonaTuiError: the monitor is missing or damaged.
        """
        if not self._there():
            return ""
        return self._weakness() if self._weakness is not None else self.monitor.weakness

    @property
    def watch(self) -> Watch | None:
        """What a stream has to read; None = nothing, the guard is off."""
        if self._mode == "off" or (self._mode == "critique" and not self._there()):
            return None
        return self.monitor.watch

    def _there(self) -> bool:
        """Return whether there is a monitor, which a critique can do without."""
        if self._monitor is not None or self._exists is None:
            return True
        try:
            self._exists()
        except PersonaTuiError:
            return False
        return True

    def over(self, events: Iterable[TokenEvent], asked: str = "") -> Generator[TokenEvent, None, None]:
        """Yield the events of a stream that reads what `watch` asks for, with verdicts, up to a refusal.

        Of a stream with several rows, a refusal of one ends all.

        Args:
            events: the stream.
            asked: the message that it answers.
        """
        self.asked = asked
        self.message = self.reply = None
        events = iter(events)
        try:
            for event in events:
                event = self.judged(event)
                yield event
                if event.finish == "refused":
                    return
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def judged(self, event: TokenEvent) -> TokenEvent:
        """Return the next event of a watched row as it is judged; after one with the finish "refused", the
        row is over.
        """
        from persona_tui.monitors.events import judged, refusal
        from persona_tui.monitors.ordinary import MIN_REPLY

        reading = event.reading
        about: Literal["message", "reply"] = "message" if event.token_id < 0 else "reply"
        if reading is None or (about == "reply" and reading.n_tokens < MIN_REPLY):
            return event
        verdict = self.monitor.judge(reading, about)
        if about == "message" and self.monitor.plain(self.asked) != self.asked:
            verdict = self.monitor.check(self.asked)  # a pass of its own, without the disguise
        self._remember(verdict)
        refused = self._mode == "refuse" and not verdict.safe
        return refusal(event, verdict) if refused else judged(event, verdict)

    @property
    def refused(self) -> bool:
        """Whether it has ended the last stream."""
        judged = [verdict for verdict in (self.message, self.reply) if verdict is not None]
        return self._mode == "refuse" and any(not verdict.safe for verdict in judged)

    def _remember(self, verdict: Verdict) -> None:
        if verdict.about == "message":
            self.message = verdict
        else:
            self.reply = verdict

    def record(self) -> dict[str, Any]:
        """Return what a session's log has of a turn: the mode and both verdicts."""
        judged = {"message": self.message, "reply": self.reply}
        return {"mode": self._mode, **{name: each and each.as_dict() for name, each in judged.items()}}


def verdict_of(event: TokenEvent) -> Verdict | None:
    """Return what a guard has said with an event, if anything."""
    return getattr(event, "verdict", None)


def breaches_of(event: TokenEvent) -> Sequence[Breach]:
    """Return what a policy has said with an event."""
    return getattr(event, "breaches", ())
