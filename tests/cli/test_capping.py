"""What is said of the floor is what was done, in every place where it is shown."""

from pathlib import Path

import pytest

from persona_tui.vectors.axes import Axes

from .conftest import Cli

NOTHING = "nothing is capped"


@pytest.fixture
def bare(workspace: Path) -> Path:
    """The workspace without axes."""
    next(workspace.glob("vectors/*/axes.safetensors")).unlink()
    return workspace


@pytest.mark.slow
def test_a_floor_that_is_enforced_is_reported_with_its_layers(cli: Cli) -> None:
    made = cli("generate", "hi", "--json")
    assert made.json["capping"] and made.json["floor"]["layers"] and made.json["notes"] == []
    free = cli("generate", "hi", "--no-capping", "--json").json
    assert (free["capping"], free["floor"]) == (False, None)
    answers = cli("compare", "hi", "--a", "capping=on", "--b", "capping=off", "--json").json["answers"]
    assert answers[0]["floor"] == made.json["floor"] and answers[1]["floor"] is None


def test_a_floor_on_a_weak_axis_says_so_and_what_to_do(cli: Cli) -> None:
    """A random model refuses nothing."""
    assert cli("config", "set", "steering.capping_axis", "safety").status == 0
    (told,) = cli("generate", "hi", "--json").json["notes"]
    assert told.startswith("The safety axis is weak: made of") and "persona-tui extract-axes" in told
    assert cli("generate", "hi", "--no-capping", "--json").json["notes"] == []
    chat = cli("chat", stdin="hi\nhi\n/axis\n/axis assistant\n")
    assert chat.err.count(told) == 2  # before the first reply, and where the axis is asked for
    assert "The floor is on the assistant axis." in chat.err


def test_without_axes_nothing_claims_to_be_capped(cli: Cli, bare: Path) -> None:
    made = cli("generate", "hi", "--json").json
    assert (made["capping"], made["floor"]) == (False, None) and NOTHING in made["notes"][0]
    assert NOTHING in cli("generate", "hi").err
    assert cli("generate", "hi", "--no-capping", "--json").json["notes"] == []
    compared = cli("compare", "hi", "--a", "capping=on", "--json").json
    assert [each["capping"] for each in compared["answers"]] == [False, False]
    assert NOTHING in compared["notes"][0]
    assert cli("compare", "hi", "--a", "capping=on").out.startswith("A: no persona, no floor to cap at\n")
    chat = cli("chat", stdin="hi\n/safety on\n/floor 10\n")
    assert chat.err.count(NOTHING) == 3
    shown = cli("sessions", "show", "last").out
    assert "no floor to cap at" in shown and "capping assistant" not in shown


@pytest.mark.slow
def test_doctor_finds_layers_without_a_floor(cli: Cli, workspace: Path) -> None:
    assert {each["name"]: each["state"] for each in cli("doctor", "--json").json}["axes"] != "WRONG"
    path = next(workspace.glob("vectors/*/axes.safetensors"))
    axes = Axes.load(path)  # of three layers, the last is the one for capping
    first = {
        kind: {name: rows[:2] for name, rows in (getattr(axes, kind) or {}).items()}
        for kind in ("baseline", "safety", "assistant", "projections")
    }
    projections = first.pop("projections")
    Axes(axes.layers[:2], **first, projections=projections, metadata=axes.metadata).save(path)
    result = cli("doctor", "--json")
    found = {each["name"]: each for each in result.json}["axes"]
    assert result.status == 1 and found["state"] == "WRONG" and "at layer 2" in found["detail"]
    made = cli("generate", "hi", "--json").json
    assert made["capping"] is False and "at layer 2" in made["notes"][0]
