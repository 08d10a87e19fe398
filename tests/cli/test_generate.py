"""`generate`: one prompt, one answer."""

from pathlib import Path
from typing import Any

import pytest

from persona_tui.cli.generate import trimmed
from persona_tui.core.config import Settings
from persona_tui.core.documents import printable

from .conftest import Cli

KEYS = [
    "model",
    "response",
    "persona",
    "blend",
    "strength",
    "capping",
    "floor",
    "plausibility",
    "finish",
    "nats_from_plain",
    "prompt_tokens",
    "tokens",
    "seconds",
    "tokens_per_second",
    "system",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
    "guard",
    "notes",
]


def test_json_is_one_object_with_the_documented_keys(cli: Cli) -> None:
    result = cli("generate", "hi", "--persona", "sage", "--strength", "0.5", "--no-capping", "--json")
    assert result.status == 0, result.err
    assert list(result.json) == KEYS
    assert (result.json["persona"], result.json["blend"]) == ("sage", None)
    assert (result.json["strength"], result.json["capping"]) == (0.5, False)
    assert result.json["tokens"] <= 5


@pytest.mark.parametrize("args", [["generate", "caf\udce9"], ["generate", "hi", "--system", "\udce9"]])
def test_an_argument_of_other_bytes_than_utf_8_is_told(cli: Cli, args: list[str]) -> None:
    result = cli(*args)
    assert result.status == 2 and "is not UTF-8 text" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("args", [["generate", "-"], ["chat", "--plain"]])
def test_utf_16_from_standard_input_is_refused(cli: Cli, args: list[str]) -> None:
    result = cli(*args, stdin="What is bread?\n".encode("utf-16").decode("utf-8", "replace"))
    assert (result.status, result.out) == (1, "")
    assert "UTF-8 is needed" in result.err and result.err.count("\n") == 1


def test_the_same_seed_gives_the_same_answer(cli: Cli) -> None:
    def answer(*options: str) -> str:
        return str(cli("generate", "hi", "--max-new-tokens", "20", *options).out)

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    assert answer("--seed", "1", "--json") != answer("--seed", "1")
    steered = answer("--seed", "1", "--blend", "sage:1,fool:-0.5", "--strength", "5")
    assert steered != answer("--seed", "1")
    silent = answer("--seed", "1", "--persona", "sage", "--strength", "0")
    assert silent == answer("--seed", "1")


def test_json_has_the_seed_that_was_drawn(cli: Cli) -> None:
    first = cli("generate", "hi", "--json").json
    again = cli("generate", "hi", "--seed", str(first["seed"]), "--json").json
    assert (again["response"], again["seed"]) == (first["response"], first["seed"])


def test_blend_in_json(cli: Cli) -> None:
    made = cli("generate", "hi", "--blend", "sage:0.5,fool:0.3", "--json").json
    assert (made["persona"], made["blend"]) == (None, {"sage": 0.5, "fool": 0.3})


def test_a_prompt_from_standard_input(cli: Cli) -> None:
    typed = cli("generate", "hello there", "--seed", "1", "--json").json
    piped = cli("generate", "-", "--seed", "1", "--json", stdin="hello there\n").json
    assert typed["response"] == piped["response"]
    assert typed["prompt_tokens"] == piped["prompt_tokens"]


def test_a_system_prompt_counts(cli: Cli) -> None:
    plain = cli("generate", "hi", "--json").json
    system = cli("generate", "hi", "--system", "Be brief.", "--json").json
    assert system["prompt_tokens"] > plain["prompt_tokens"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--persona", "sgae"], 'Did you mean "sage"'),
        (["--blend", "sage:x"], "must be a number"),
        (["--blend", "sage,sage"], "twice"),
        (["--temperature", "-1"], "temperature must be"),
        (["--max-new-tokens", "0"], "max_new_tokens must be"),
        (["--system", "x" * 3000], "context"),
    ],
)
def test_what_cannot_be_answered(cli: Cli, args: list[str], message: str) -> None:
    result = cli("generate", "hi", *args)
    assert (result.status, result.out) == (1, "")
    assert message in result.err and result.err.count("\n") == 1


def test_nothing_but_what_is_loaded_is_written(cli: Cli, workspace: Path) -> None:
    def files() -> dict[Path, bytes]:
        found = (path for path in workspace.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in found if path.name != "loaded.json"}

    before = files()
    assert cli("generate", "hi", "--persona", "sage").status == 0
    assert files() == before


@pytest.mark.parametrize(
    "pieces",
    [[], [" "], ["a"], [" a", " b ", "", " "], ["\n\n", "a\n", "\n", "b", "\n"], ["a", " ", " ", "b"]],
)
def test_a_stream_is_trimmed_like_a_text(pieces: list[str]) -> None:
    assert "".join(trimmed(pieces)) == "".join(pieces).strip()


def test_a_model_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\n\tc\x07é\x9b2J") == "a�[2Jb\n\tc�é�2J"


def test_the_guide(cli: Cli) -> None:
    def answer(*options: str) -> Any:
        result = cli("generate", "Who are you?", "-p", "sage", "-s", "2", "--seed", "1", "--json", *options)
        return result.json

    free, guided = answer("--plausibility", "0"), answer("--plausibility", "0.5")
    assert free["plausibility"] == 0 and free["nats_from_plain"] is None
    assert guided["plausibility"] == 0.5 and isinstance(guided["nats_from_plain"], float)
    assert guided["response"] != free["response"]
    assert answer()["plausibility"] == Settings().steering.plausibility == 0
    cli("config", "set", "steering.plausibility", "0.5")
    assert answer()["response"] == guided["response"]
    assert answer("--plausibility", "0")["response"] == free["response"]
    wrong = cli("generate", "Hi", "--plausibility", "1.5")
    assert wrong.status == 2 and "--plausibility" in wrong.err
