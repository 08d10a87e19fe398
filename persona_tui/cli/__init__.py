"""The command line: thin, and quick to start. Every command imports what it needs when it runs.

Results go to stdout, progress and errors to stderr. An error that a user can cause is one line, exit
status 1, or 2 for wrong usage. An interrupt is 130.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from persona_tui.cli.interrupt import HUNG_UP, INTERRUPTED, TERMINATED, Terminated, end_when_told, leave
from persona_tui.core.documents import printable
from persona_tui.core.processes import OtherProcessEnded, is_main, launched, may_speak

if TYPE_CHECKING:
    import click

    from persona_tui.cli.options import Invocation

# While they wait, torch's threads would otherwise spin, and starve the screen.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

OK, FAILED, USAGE = 0, 1, 2


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its status."""
    _never_fail_on_odd_characters()
    ending = [FAILED]
    if launched():
        # What is registered first runs last. Threads of gloo's that could not be joined (another process is
        # gone) would abort this one while the interpreter takes itself apart.
        atexit.register(lambda: leave(ending[-1]))
    if not is_main():
        _point_at_nothing(sys.stdout)
    end_when_told()
    status = run(args, _logged()) if _is_somewhere() else _fail(_NOWHERE, FAILED, False)
    if status in (HUNG_UP, INTERRUPTED, TERMINATED):
        leave(status)
    try:
        sys.stdout.flush()
    except OSError as error:
        _forget_output()
        if not isinstance(error, BrokenPipeError):  # a full disk: results are missing
            status = _fail(f"the output cannot be written: {error.strerror or error}", FAILED, False)
    ending.append(status)
    sys.exit(status)


_NOWHERE = "the working directory has been deleted: change to another one"


def _is_somewhere() -> bool:
    """Return whether the working directory exists; without one, libraries fail in words of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _logged() -> Invocation:
    """Return an invocation whose libraries write to the log of its workspace, with `--debug` to stderr."""
    from persona_tui.cli.options import Invocation
    from persona_tui.core.log_file import log_libraries
    from persona_tui.core.workspace import Workspace

    invocation = Invocation()
    log_libraries(lambda: Workspace.find(invocation.folder).root / "logs", lambda: invocation.debug)
    return invocation


def run(args: Sequence[str] | None = None, invocation: Invocation | None = None) -> int:
    """Run a command line; its exit status."""
    import click

    from persona_tui.cli.options import Invocation
    from persona_tui.cli.root import root
    from persona_tui.core.errors import JobCancelled, PersonaTuiError

    invocation = invocation or Invocation()
    given = sys.argv[1:] if args is None else args
    if (odd := next(filter(_is_not_text, given), None)) is not None:
        shown = odd.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return _fail(f'the argument "{shown}" is not UTF-8 text', USAGE, invocation.debug)
    try:
        status = root.main(args, prog_name="persona-tui", standalone_mode=False, obj=invocation)
        return status if isinstance(status, int) else OK
    except click.UsageError as error:
        return _fail(_misplaced(error) or _usage(error), USAGE, invocation.debug)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code, invocation.debug)
    except (click.Abort, KeyboardInterrupt, JobCancelled) as error:
        # Click turns an end of input into the same exception as an interrupt.
        if isinstance(error, OtherProcessEnded):
            return _fail(str(error), FAILED, invocation.debug)
        if isinstance(error.__context__, EOFError):
            return FAILED
        ending = error if isinstance(error, Terminated) else error.__context__
        return ending.status if isinstance(ending, Terminated) else INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return FAILED
    except PersonaTuiError as error:
        return _fail(str(error), FAILED, invocation.debug)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:  # it is the output that cannot be written, which is said once
            _forget_output()
        return _fail(_explain(error), FAILED, invocation.debug)
    except Exception as error:
        text = f"this is a bug in persona-tui: {type(error).__name__}: {error}"
        return _fail(f"{text} (--debug shows where)", FAILED, invocation.debug)


def _usage(error: click.UsageError) -> str:
    hint = f" Try `{error.ctx.command_path} --help`." if error.ctx is not None else ""
    return f"{error.format_message()}{hint}"


def _misplaced(error: click.UsageError) -> str | None:
    """Return where an option belongs that all commands share, if that is what was wrong."""
    import click

    if not isinstance(error, click.NoSuchOption) or error.ctx is None or error.ctx.parent is None:
        return None
    top = error.ctx.find_root()
    shared = next((each for each in top.command.params if error.option_name in each.opts), None)
    if not isinstance(shared, click.Option):
        return None
    value = "" if shared.is_flag else f" {shared.make_metavar(top)}"
    command = error.ctx.command_path.removeprefix(f"{top.command_path} ")
    right = f"{top.command_path} {error.option_name}{value} {command}"
    return f"{error.option_name} belongs before the command: {right}"


def _is_not_text(argument: str) -> bool:
    """Return whether an argument has bytes that are no characters here, and is not the name of a file."""
    return any("\ud800" <= character <= "\udfff" for character in argument) and not os.path.exists(argument)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if not may_speak():
        return status
    line = printable(" ".join(message.split()))
    with contextlib.suppress(OSError):
        print(f"Error: {line}", file=sys.stderr, flush=True)
    return status


def _explain(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _never_fail_on_odd_characters() -> None:
    """A model may write what the terminal's encoding lacks, and a pipe may bring what is not text at all.

    A stream that the caller has closed is None here: an empty one to read from, none to write results to.
    """
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as we live
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


class _Closed(io.TextIOBase):
    """Standard output that the caller has closed: whoever has a result to write fails at once."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed: there is nowhere to write to")


def _forget_output() -> None:
    """The reader has gone; without this, Python complains about it while it shuts down."""
    _point_at_nothing(sys.stdout)


def _point_at_nothing(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
