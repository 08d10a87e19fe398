"""`plot`, `sweep` and `info --tokens`: what they draw and say, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def session(cli: Cli) -> str:
    """A conversation of two replies, the second with another voice."""
    talk = "Who are you?\n/persona sage\nTell me a story.\n"
    assert cli("chat", stdin=talk).status == 0
    found = cli("sessions", "list", "--json").json
    return str(found[0]["id"])


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.parametrize(
    "command", [("map", "--persona", "sage"), ("cosines",), ("calibration", "sage")], ids=lambda each: each[0]
)
def test_a_picture_is_written(cli: Cli, tmp_path: Path, ending: str, command: tuple[str, ...]) -> None:
    path = tmp_path / f"picture.{ending}"
    done = cli("plot", *command, "-o", path)
    assert done.status == 0 and str(path) in done.out
    start = path.read_bytes()[:300]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<svg" in start or b"<?xml" in start
    again = cli("plot", *command, "-o", path)
    assert again.status == 1 and "--force" in again.err


@pytest.mark.slow
def test_pictures_of_a_conversation(cli: Cli, tmp_path: Path, session: str) -> None:
    for command in (("drift",), ("drift", "sage"), ("layers", "assistant"), ("layers", "sage"), ("map",)):
        path = tmp_path / f"{'-'.join(command)}.svg"
        done = cli("plot", *command, "--session", session, "-o", path)
        assert done.status == 0, done.err
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        (("map", "-o", "x.txt"), 1, "x.txt ends with none of"),
        (("layers", "-o", "x.svg"), 2, "needs a NAME"),
        (("drift", "-o", "x.svg"), 2, "needs a --session"),
        (("cosines", "sage", "-o", "x.svg"), 2, "takes no NAME"),
        (("calibration", "sgae", "-o", "x.svg"), 1, 'Did you mean "sage"?'),
        (("drift", "sgae", "-s", "last", "-o", "x.svg"), 1, "x.svg|sgae|session"),
    ],
)
def test_what_cannot_be_drawn(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: tuple[str, ...],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = cli("plot", *command)
    assert refused.status == status
    assert re.search(reason, refused.err) and not list(tmp_path.glob("x.*"))


def test_a_sweep_says_what_every_strength_says(cli: Cli) -> None:
    done = cli("sweep", "Who are you?", "--persona", "sage", "--strengths", "0,0.3,2", "--json").json
    rows = done["replies"]
    assert [row["strength"] for row in rows] == [0, 0.3, 2]
    plain = cli("generate", "Who are you?", "--json").json
    assert rows[0]["text"] == plain["response"]
    assert len({row["text"] for row in rows}) > 1
    assert all(row["nats"] is not None for row in rows if row["text"])
    text = cli("sweep", "Who are you?", "--persona", "sage", "--strengths", "0.3").out
    assert "strength 0.3" in text and "nats from plain" in text and "repetition" in text


@pytest.mark.parametrize("strengths", ["a", "1e99", "nan"])
def test_a_sweep_refuses_what_is_no_strength(cli: Cli, strengths: str) -> None:
    assert cli("sweep", "hi", "--persona", "sage", "--strengths", strengths).status in (1, 2)


def test_what_a_direction_means_to_the_model(cli: Cli) -> None:
    found = cli("info", "sage", "--tokens", "--json").json
    layers = json.loads(cli("info", "sage", "--json").out)["calibration"]["layers"]
    assert [each["layer"] for each in found] == layers
    for each in found:
        raised, lowered = ([value for _, value in each[side]] for side in ("raised", "lowered"))
        assert raised == sorted(raised, reverse=True) and raised[0] > 0 > lowered[0]
        assert lowered == sorted(lowered)
    assert "raises" in cli("info", "sage", "--tokens").out
