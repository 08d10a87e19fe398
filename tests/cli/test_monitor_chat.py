"""The guard in the line mode: badges, refusals, and what is saved of them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from persona_tui.core.jobs import JobContext
from persona_tui.monitors.second_opinion import NAMED_BY
from persona_tui.project.project import Project

from .conftest import Cli


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny_model: Path) -> Path:
    """A workspace with two monitors: `default`, and `strict`, to which everything is dangerous."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("workspaces") / "guarded"))
    project = Project.open(root, model=str(tiny_model))
    made = project.fit_monitor("default", JobContext(), "training", method="probe")
    made.with_method("probe", 2.0).save(project.monitors.path_of("strict"))
    return root


@pytest.fixture
def talk(tmp_path: Path, guarded: Path, call: Cli, tiny_model: Path) -> Cli:
    root = shutil.copytree(guarded, tmp_path / "talk")
    return lambda *args, **options: call("--workspace", root, "--model", tiny_model, *args, **options)


@pytest.mark.slow
def test_a_badge_goes_to_stderr(talk: Cli) -> None:
    plain = talk("chat", stdin="/seed 1\nhello there\n")
    result = talk("chat", stdin="/guard warn\n/seed 1\nhello there\n/guard\n")
    assert result.status == 0, result.err
    assert result.out == plain.out
    assert result.err.count("The guard is warn") == 2
    assert "guard: message " in result.err and "guard" not in plain.err


def test_a_refusal_says_why_and_answers_nothing(talk: Cli, tmp_path: Path) -> None:
    talk("config", "set", "monitoring.guard", "refuse")
    talk("config", "set", "monitoring.monitor", "strict")
    result = talk("chat", stdin="hello there\n/guard off\nhello again\n")
    assert result.status == 0, result.err
    assert "Not answered: the message scored" in result.err and 'monitor "strict"' in result.err
    assert result.out.startswith("\n") and result.out.strip()
    (session,) = (tmp_path / "talk").glob("sessions/**/*.jsonl")
    events = [json.loads(line) for line in session.read_text().splitlines()]
    ends = [event for event in events if "finish" in event]
    assert ends[0]["finish"] == "refused"
    assert ends[0]["stats"]["guard"]["message"]["safe"] is False and "guard" not in ends[1]["stats"]


def test_a_guard_without_a_monitor_says_what_to_do(talk: Cli, cli: Cli) -> None:
    assert "`persona-tui monitor fit` makes it" in cli("chat", stdin="/guard warn\n").err
    assert "off, warn, refuse or critique" in talk("chat", stdin="/guard maybe\n").err
    cli("config", "set", "monitoring.guard", "warn")
    result = cli("chat", stdin="hello\n")
    assert result.status == 1 and "`persona-tui monitor fit` makes it" in result.err


def test_a_validator_has_the_last_word(talk: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED_BY, "")  # what --validator sets ends with the test
    said = 'print(\'{"safe": false, "reason": "it is about bread."}\')'
    validator = shlex.join([sys.executable, "-c", said])
    warned = talk("chat", "--validator", validator, stdin="/guard warn\n/seed 1\nhello there\n")
    assert warned.status == 0 and warned.out.strip()
    assert "guard: the validator objects to the reply: it is about bread" in warned.err
    stopped = talk("chat", "--validator", validator, stdin="/guard critique\n/seed 1\nhello there\n")
    assert stopped.status == 0 and not stopped.out.strip()
    assert "Stopped: the validator objects to the reply: it is about bread." in stopped.err
    assert talk("chat", "--validator", 'run "it', stdin="hello\n").status == 1


def test_the_configured_guard_holds_in_generate_and_compare(talk: Cli) -> None:
    compared = ("compare", "hello there", "--a", "strength=0.3")
    assert talk("generate", "hello there", "--json").json["guard"] is None
    talk("config", "set", "monitoring.guard", "warn")
    warned = talk("generate", "hello there", "--json").json
    assert warned["response"] and warned["guard"]["message"] and not warned["guard"]["refused"]
    assert "guard: message " in talk("generate", "hello there").err
    assert "guard: message " in talk(*compared).err
    talk("config", "set", "monitoring.guard", "refuse")
    talk("config", "set", "monitoring.monitor", "strict")
    for command in (("generate", "hello there"), compared):
        shown, result = talk(*command), talk(*command, "--json")
        assert shown.status == result.status == 1
        assert not shown.out.strip() and "Not answered: the message scored" in shown.err
        assert result.json["guard"]["refused"] and not result.json["guard"]["message"]["safe"]
        answers = result.json.get("answers", [result.json])
        assert {(each["response"], each["finish"]) for each in answers if each["finish"]} == {("", "refused")}


@pytest.mark.parametrize("command", [("generate", "hi"), ("compare", "hi", "--a", "strength=0.3")])
def test_a_guard_without_a_monitor_answers_nothing(command: tuple[str, ...], cli: Cli) -> None:
    cli("config", "set", "monitoring.guard", "refuse")
    result = cli(*command)
    assert result.status == 1 and not result.out and "`persona-tui monitor fit` makes it" in result.err


def test_a_model_without_a_monitor_answers_nothing_where_the_guard_refuses(
    talk: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    lines = f"/guard refuse\n/model {other}\n/guard\nhello\n"
    result = talk("chat", stdin=lines)
    assert result.status == 1 and not result.out.strip(), result.err
    assert "so nothing is answered" in result.err and "The guard is refuse" in result.err
    assert talk("chat", stdin=f"/guard warn\n/model {other}\nhello\n").out.strip()
