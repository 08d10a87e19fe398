"""The line mode: in a pipe, and with somebody at the keyboard."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Cli, Result, command, environment, finish, spawn


def test_one_line_one_reply(cli: Cli) -> None:
    result = cli("chat", stdin="hello\n\n/temperature 0\nagain\n")
    assert result.status == 0
    assert result.out.count("\n") >= 2
    assert result.err == "Temperature 0.\n"


def test_no_input_no_output_and_no_model(call: Cli, workspace: Path) -> None:
    result = call("--workspace", workspace, "--model", "nobody/nothing", "chat")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_the_last_line_needs_no_end(cli: Cli) -> None:
    assert cli("chat", stdin="hello").out.strip()


def test_without_a_command_it_is_a_chat(cli: Cli) -> None:
    result = cli(stdin="hello\nwhat is bread\nwho are you\n")
    assert result.status == 0 and result.out.strip()


def test_the_conversation_is_remembered_and_long_ones_go_on(cli: Cli) -> None:
    cli("config", "set", "generation.max_new_tokens", "3")
    lines = "".join(f"{'word ' * 60}{number}\n" for number in range(10))
    result = cli("chat", stdin=lines)
    assert result.status == 0, result.err


def test_options_choose_who_speaks(cli: Cli) -> None:
    result = cli("chat", "--persona", "sage", "--strength", "0.5", stdin="/persona\n/list\n")
    assert "Speaking as sage 0.50." in result.err
    assert "> sage (loaded)" in result.err
    blend = cli("chat", "--blend", "sage:0.5,fool:0.5", stdin="/blend\n")
    assert "Speaking as sage 50% + fool 50% · 0.30." in blend.err


def test_without_a_keyboard_a_reply_that_fails_ends_the_chat(cli: Cli) -> None:
    result = cli("chat", stdin=f"{'x' * 3000}\nhello\n")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: ") and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/layers 99", "there is no layer 99: this model's are 0 to "),
        ("/layers 0-99", "there is no layer 99: this model's are 0 to "),
        ("/export", "nothing has been said yet"),
        (
            "/policy harmful_validation>",
            "harmful_validation> does not exist as a policy file, nor",
        ),
        ("/policy >3", ">3 does not exist as a policy file, nor is it a rule"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_before_the_model_loads(
    cli: Cli, line: str, said: str
) -> None:
    result = cli("chat", stdin=f"{line}\n")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"Error: {said}") and result.err.count("\n") == 1


@pytest.mark.parametrize("line", ["/nonsense", "/persona nobody", "/strength loud"])
def test_a_bad_command_in_a_pipe_is_told_and_the_chat_goes_on(cli: Cli, line: str) -> None:
    result = cli("chat", stdin=f"{line}\nhello\n")
    assert result.status == 1
    assert result.out.count("\n") == 1  # the reply to what followed
    assert result.err.startswith("Error: ") and result.err.count("Error: ") == 1


def test_a_reply_that_fails_in_a_pipe_says_that_the_rest_is_not_read(cli: Cli) -> None:
    result = cli("chat", stdin=f"{'word ' * 3000}\nhello\n")
    assert (result.status, result.out) == (1, "")
    assert result.err.count("\n") == 1 and "later lines were not read" in result.err


def test_quit_ends_before_the_input_does(cli: Cli) -> None:
    result = cli("chat", stdin="/quit\nhello\n")
    assert (result.status, result.out) == (0, "")


def test_a_persona_can_be_made_and_deleted(cli: Cli) -> None:
    cli("config", "set", "calibration.enabled", "false")
    lines = "/create grump A grumpy wizard\n/persona grump\nhello\n/delete grump --yes\n/list\n"
    result = cli("chat", stdin=lines)
    assert result.status == 0, result.err
    assert "Created grump." in result.err and "Deleted grump." in result.err
    listed = result.err.rpartition("grump.safetensors")[2]  # where the deleted file went is said first
    assert "sage" in listed and "grump" not in listed


# --- with a terminal ---


class Keyboard:
    """Somebody at a terminal: what is typed goes to the process, both outputs come back through pipes."""

    def __init__(self, *args: str | Path) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(*args),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=0,
            env=environment(),
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        """Read the error output up to some text."""
        assert self.process.stderr is not None
        seen = ""
        while text not in seen:
            char = self.process.stderr.read(1)
            assert char, seen
            seen += char

    def end(self) -> Result:
        return finish(self.process)


@pytest.fixture
def keyboard(workspace: Path, tiny_model: Path) -> Iterator[Keyboard]:
    (workspace / "config.yaml").write_text("generation:\n  max_new_tokens: 1900\n")
    keyboard = Keyboard("--workspace", workspace, "--model", tiny_model, "chat", "--plain")
    yield keyboard
    keyboard.process.kill()
    os.close(keyboard.master)


@pytest.mark.slow
def test_the_prompt_goes_to_stderr_and_shows_who_speaks(keyboard: Keyboard) -> None:
    keyboard.wait_for("> ")
    keyboard.type("/persona sage\n")
    keyboard.wait_for("sage 0.30> ")
    keyboard.type("\x04")
    result = keyboard.end()
    assert (result.status, result.out) == (0, "")


@pytest.mark.slow
def test_an_error_does_not_end_it_and_deleting_asks(keyboard: Keyboard) -> None:
    keyboard.wait_for("> ")
    keyboard.type("/nonsense\n")
    keyboard.wait_for("Error: there is no command /nonsense")
    keyboard.type("/delete sage\n")
    keyboard.wait_for("Delete sage? [y/N] ")
    keyboard.type("n\n")
    keyboard.wait_for("Kept sage.")
    keyboard.type("/quit\n")
    assert keyboard.end().status == 0


@pytest.mark.slow
def test_an_interrupt_stops_the_reply_and_the_next_one_ends_the_chat(keyboard: Keyboard) -> None:
    keyboard.wait_for("> ")
    keyboard.type("hello\n")
    assert keyboard.process.stdout is not None
    said = keyboard.process.stdout.read(1)
    keyboard.process.send_signal(signal.SIGINT)
    keyboard.wait_for("> ")
    keyboard.process.send_signal(signal.SIGINT)
    result = keyboard.end()
    assert result.status == 130
    assert (said + result.out).strip()
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_an_interrupt_ends_a_chat_in_a_pipe(workspace: Path, tiny_model: Path) -> None:
    (workspace / "config.yaml").write_text("generation:\n  max_new_tokens: 1900\n")
    process = spawn("--workspace", workspace, "--model", tiny_model, "chat", bufsize=0)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("hello\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.status == 130
    assert "Traceback" not in result.err and "Error" not in result.err
