"""Drives a program in a pseudo-terminal of its own, and keeps what is on its screen. For tests, too."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.cells import cell_len

# A control sequence with parameters, another escape, or a character.
_PIECES = re.compile(
    r"\x1b\[([0-9;:?<=>]*)[ -/]*([@-~])|\x1b[\]P_^].*?(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]|.", re.DOTALL
)
_BUILTIN = Path(__file__).resolve().parent.parent / "persona_tui/model/tiny"
_KEPT = 20_000  # characters of the output
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:?<=>]*[ -/]*)?$|\x1b[\]P_^][^\x07]*$")


class Screen:
    """What a program has drawn: as much of a terminal as Textual's output needs."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._rows = [[" "] * width for _ in range(height)]
        self._row = self._column = 0
        self._waiting: list[str] = []
        self._rest = ""

    @property
    def text(self) -> str:
        """What is on it, line by line."""
        self._draw()
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def feed(self, text: str) -> None:
        """Take what the program wrote. It is drawn when somebody looks: drawing takes longer than reading."""
        self._waiting.append(text)

    def _draw(self) -> None:
        text = self._rest + "".join(self._waiting)
        self._waiting.clear()
        unfinished = _UNFINISHED.search(text)
        self._rest = text[unfinished.start() :] if unfinished else ""
        for match in _PIECES.finditer(text[: unfinished.start()] if unfinished else text):
            if match[2] is not None:
                self._control(match[1], match[2])
            elif not match[0].startswith("\x1b"):
                self._put(match[0])

    def _control(self, parameters: str, final: str) -> None:
        numbers = [int(number) if number.isdecimal() else 0 for number in parameters.split(";")]
        if final in "Hf":
            row, column = [*numbers, 1][:2]
            self._row, self._column = max(row, 1) - 1, max(column, 1) - 1
        elif final == "J" and numbers[0] == 2:
            self._rows = [[" "] * self.width for _ in range(self.height)]
        elif final == "K" and self._row < self.height:
            self._rows[self._row][self._column :] = [" "] * (self.width - self._column)
        elif final == "C":
            self._column += max(numbers[0], 1)

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
        elif character.isprintable():
            cells = cell_len(character)
            if self._row < self.height and self._column < self.width:
                self._rows[self._row][self._column] = character
                for beside in range(self._column + 1, min(self._column + cells, self.width)):
                    self._rows[self._row][beside] = ""
            self._column += cells


class Terminal:
    """A program in a pseudo-terminal. Leaving the block ends it."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int] = (120, 40),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        """
        Args:
            command: the program and its arguments.
            size: columns and rows.
            env: what is added to the environment.
            cwd: where it runs.
        """
        self.screen = Screen(*size)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        # These would go before the size of the terminal.
        inherited = {name: each for name, each in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = {**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            list(command),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.output = ""
        self.read_at = self.started  # when the program wrote last
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        os.close(self._master)

    def send(self, text: str | bytes) -> None:
        """Type; bytes go as they are."""
        os.write(self._master, text.encode() if isinstance(text, str) else text)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the system tells the program."""
        self.screen = Screen(columns, rows)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, timeout: float) -> str:
        """Take in what the program writes next, at most after some seconds; "" = nothing, or it has ended."""
        if not select.select([self._master], [], [], max(timeout, 0))[0]:
            return ""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has closed its end
            return ""
        self.read_at = time.perf_counter()
        text = self._decoder.decode(data)
        self.screen.feed(text)
        self.output = (self.output + text)[-_KEPT:]
        return text

    def wait_for(self, condition: str | Callable[[str], object], timeout: float = 60) -> float:
        """Go on until a text, or what a function looks for, is on the screen; when that was.

        Raises:
            AssertionError: it never was. Shows the screen.
        """
        found = condition if callable(condition) else lambda text: condition in text
        deadline = time.perf_counter() + timeout
        while not found(self.screen.text):
            ended = self.process.poll() is not None
            text = self.read(min(1.0, deadline - time.perf_counter()))
            if not text and (ended or time.perf_counter() > deadline):
                raise AssertionError(f"never on the screen: {condition}\n{self.screen.text}")
        return self.read_at

    def wait(self, timeout: float = 60) -> int:
        """Go on until the program has ended; its exit status."""
        deadline = time.perf_counter() + timeout
        while self.process.poll() is None:
            assert time.perf_counter() < deadline, f"it does not end\n{self.screen.text}"
            self.read(0.05)
        return self.process.returncode


def _take_terminal() -> None:
    """Make standard input the terminal of this new session: the system then tells it of new sizes."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def talkative_model(folder: Path) -> Path:
    """The tiny model, except that the token which ends its replies has another name and so does not.

    Otherwise they would often have ended before anything can be measured. The template writes a space before
    it, or it would be known for the end of a turn by its place.
    """
    shutil.copytree(_BUILTIN, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"')
        text = text.replace("}}<|im_end|>", "}} <|im_end|>").replace("<|im_end|>", "<|turn_end|>")
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}', encoding="utf-8")
    return folder
