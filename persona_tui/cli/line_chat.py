"""The line mode: one line in, one reply out. For pipes, for ssh, for `--plain`.

Replies go to stdout and nothing else does; prompts, notes and errors go to stderr. On a terminal ctrl-c stops
a reply and keeps what was said, and ends the chat when nothing is being said; so does the end of the input.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from persona_tui.chat.commands import ChatSession, Work, complete, execute, is_command, message_of
from persona_tui.cli.generate import write_stream
from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.progress import note, patient_work
from persona_tui.core.errors import JobCancelled, PersonaTuiError
from persona_tui.monitors.guard import verdict_of

if TYPE_CHECKING:
    from persona_tui.model import TokenEvent
    from persona_tui.monitors.verdict import Verdict


class LineSession(ChatSession):
    """A session that shows progress, and asks on the terminal if there is one."""

    def run(self, name: str, work: Work) -> str:
        """Do long work here and now, with a progress bar."""
        return patient_work(work)

    def ask(self, question: str) -> str | None:
        """Ask on the terminal."""
        return read_line(question) or "" if sys.stdin.isatty() else None

    def write(self, reply: int) -> str:
        """Write a reply to stdout as it comes."""
        show_reply(self, lambda stop: self.reply(reply, stop))
        return ""


def line_chat(session: ChatSession) -> None:
    """Talk until the input ends or somebody leaves.

    Raises:
        PersonaTuiError: something went wrong and there is nobody to try again.
    """
    try:
        _talk(session, sys.stdin.isatty())
    finally:
        session.close()


def _talk(session: ChatSession, interactive: bool) -> None:
    if interactive:
        _greet(session)
    while not session.ended:
        line = read_line(f"{session.label}> " if session.label else "> ")
        if line is None:
            break
        if not line.strip():
            continue
        try:
            _answer(session, line.strip())
        except (PersonaTuiError, JobCancelled) as error:
            if not interactive:
                raise
            note(f"Error: {error}")


def read_line(prompt: str) -> str | None:
    """The next line without its end; None at the end of the input. The prompt is for terminals only."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(EOFError):
            return input(prompt)
        note("")
        return None
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _greet(session: ChatSession) -> None:
    name = session.project.settings.model.name
    _offer_completions(session)
    session.project.engine.set_mix(
        session.mix
    )  # what is wrong with the model is said now, not after a question
    note(f"{name}. /help lists the commands; ctrl-d leaves.")


def _offer_completions(session: ChatSession) -> None:
    """Complete slash commands with tab, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    found: list[str] = []

    def completer(text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()
            found[:] = [whole[len(line) - len(text) :] for whole in complete(session, line)]
        return found[state] if state < len(found) else None

    readline.set_completer(completer)
    readline.set_completer_delims(" ,")
    readline.parse_and_bind("tab: complete")


def _answer(session: ChatSession, line: str) -> None:
    if not is_command(line):
        show_reply(session, lambda stop: session.take_turn(message_of(line), stop))
    elif shown := execute(session, line):
        note(shown)


def show_reply(
    session: ChatSession, begin: Callable[[threading.Event], Generator[TokenEvent, None, None]]
) -> None:
    """Write a reply to stdout as it comes. On a terminal ctrl-c ends it, and keeps what was said."""
    session.project.engine  # noqa: B018  # loading is not what ctrl-c should stop, but the reply
    stop = threading.Event()
    guard = _interrupt_sets(stop) if sys.stdin.isatty() else quick_interrupt()
    with guard, closing(begin(stop)) as events:
        write_stream(_with_badges(events))


def _with_badges(events: Iterable[TokenEvent]) -> Iterator[str]:
    """The texts of a reply; what a guard says of the message, a policy on the way and the guard at last of
    the reply is noted.
    """
    from persona_tui.monitors.events import breaches_of

    last: Verdict | None = None
    for event in events:
        verdict = verdict_of(event)
        if verdict is not None and verdict.about == "message":
            note(f"guard: message {verdict.badge}")
        if verdict is not None and event.finish == "refused":
            note(verdict.refusal)
        for breach in breaches_of(event):
            note(f"policy: {breach}")
        last = verdict or last
        yield event.text
    if last is not None and last.about == "reply":
        note(f"guard: reply {last.badge}")


@contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Within, ctrl-c ends the reply after the present token; a second one is an interrupt as usual."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
