"""The line mode: one line in, one reply out. For pipes, for ssh, for `--plain`.

Replies go to stdout and nothing else does; prompts, notes and errors go to stderr. On a terminal ctrl-c stops
a reply and keeps what was said, and ends the chat when nothing is being said; so does the end of the input.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

import click

from persona_tui.chat.chat import Chat
from persona_tui.chat.command import is_command, message_of
from persona_tui.chat.commands import complete, execute
from persona_tui.chat.front import Front, Work
from persona_tui.chat.replies import ChatReply
from persona_tui.cli.generate import with_badges, write_stream
from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.progress import note, patient_work
from persona_tui.core.documents import LONGEST_LINE
from persona_tui.core.errors import JobCancelled, PersonaTuiError


class Lines(Front):
    """Shows replies and progress as they come, and asks on the terminal if there is one."""

    def write(self, chat: Chat, reply: ChatReply) -> str:
        """Write a reply to stdout as it comes; answers side by side are shown when they are there."""
        if reply.node is None:
            return super().write(chat, reply)
        _show(chat, reply)
        for opinion in reply.rows[0].opinions:
            note(f"guard: {opinion.sentence} ({opinion.seconds:.1f} s)")
        if (again := chat.answer_again(reply)) is not None:
            note("The answer above is a draft; the model answers again:")
            return self.write(chat, again)
        return ""

    def run(self, name: str, work: Work) -> str:
        """Do long work here and now, with a progress bar."""
        return patient_work(work)

    def ask(self, question: str) -> str | None:
        """Ask on the terminal."""
        return read_line(question) or "" if sys.stdin.isatty() else None


def line_chat(chat: Chat) -> None:
    """Talk until the input ends or somebody leaves.

    In a pipe, a command that fails is told and the chat goes on; the exit status is then 1.

    Raises:
        PersonaTuiError: a reply could not be written, and there is nobody to try again.
        Exit: a command has failed.
    """
    chat.piped = not sys.stdin.isatty()
    try:
        failed = _talk(chat, sys.stdin.isatty())
    finally:
        chat.close()
    if failed:
        raise click.exceptions.Exit(1)


def _talk(chat: Chat, interactive: bool) -> bool:
    """Do line after line; whether a command has failed with nobody there to try again."""
    failed = False
    if interactive:
        _greet(chat)
    while not chat.ended:
        line = read_line(f"{chat.label}> " if chat.label else "> ")
        if line is None:
            break
        if not line.strip():
            continue
        try:
            answer(chat, line.strip())
        except (PersonaTuiError, JobCancelled) as error:
            if not interactive:
                if isinstance(error, JobCancelled):
                    raise
                if not is_command(line.strip()):  # what comes later was meant for another conversation
                    why = str(error).rstrip(".")
                    raise PersonaTuiError(f"{why}. The chat ends here: later lines were not read.") from error
                failed = True
            note(f"Error: {error}")
    return failed


def read_line(prompt: str) -> str | None:
    """Return the next line without its end; None at the end of input. The prompt is for terminals only."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(EOFError):
            return input(prompt)
        note("")
        return None
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline(LONGEST_LINE)
    if len(line) == LONGEST_LINE:
        raise PersonaTuiError(f"a line is longer than {LONGEST_LINE:,} characters")
    if "\0" in line:
        raise PersonaTuiError("a line has zero bytes: the input is UTF-16, or no text; UTF-8 is needed")
    return line.rstrip("\r\n") if line else None


def _greet(chat: Chat) -> None:
    name = chat.project.settings.model.name
    _offer_completions(chat)
    chat.load()  # what is wrong with the model is said now, not after a question
    where = f" at {chat.project.at}" if chat.project.at is not None else ""
    note(f"{name}{where}. /help lists the commands; ctrl-d leaves.")


def _offer_completions(chat: Chat) -> None:
    """Complete slash commands with tab, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    found: list[str] = []

    def completer(text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()
            found[:] = [whole[len(line) - len(text) :] for whole in complete(chat, line)]
        return found[state] if state < len(found) else None

    readline.set_completer(completer)
    readline.set_completer_delims(" ,")
    readline.parse_and_bind("tab: complete")


def answer(chat: Chat, line: str) -> None:
    """Do what a line asks for, or say it to the model."""
    if not is_command(line):
        chat.load()  # loading is not what ctrl-c should stop, but the reply
        chat.write(chat.say(message_of(line)))
    elif shown := execute(chat, line):
        note(shown)


def _show(chat: Chat, reply: ChatReply) -> None:
    """Write a reply to stdout as it comes. On a terminal ctrl-c ends it, and keeps what was said."""
    guard = _interrupt_stops(reply) if sys.stdin.isatty() else quick_interrupt()
    with guard, closing(chat.events(reply)) as events:
        write_stream(with_badges(events))


@contextmanager
def _interrupt_stops(reply: ChatReply) -> Iterator[None]:
    """Within, ctrl-c ends the reply after the present token; a second one is an interrupt as usual."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if reply.stopping.is_set():
            raise KeyboardInterrupt
        reply.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
