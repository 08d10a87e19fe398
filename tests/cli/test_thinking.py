"""A thinking model on the command line."""

from pathlib import Path

import pytest

from persona_tui.cli.generate import _dimmed
from tests.model.conftest import make_model
from tests.model.test_thinking import OPENS, thinker

from .conftest import Cli


@pytest.fixture(scope="module")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "thinker"
    make_model("llama", vocab_size=262, max_position_embeddings=1024).save_pretrained(folder)
    thinker(OPENS).save_pretrained(folder)
    return folder


def test_it_thinks_unless_told_not_to(call: Cli, workspace: Path, thinking_model: Path) -> None:
    at = ("--workspace", workspace, "--model", thinking_model)
    thinking = call(*at, "generate", "Hi")
    assert thinking.status == 0, thinking.err
    assert thinking.out.startswith("<think>\n")
    assert not call(*at, "generate", "Hi", "--no-think").out.startswith("<think>")
    assert call(*at, "config", "set", "generation.think", "false").status == 0
    assert not call(*at, "generate", "Hi").out.startswith("<think>")


def test_json_has_thoughts_apart(call: Cli, workspace: Path, thinking_model: Path) -> None:
    at = ("--workspace", workspace, "--model", thinking_model, "generate", "Hi", "--json")
    thinking = call(*at).json
    assert thinking.get("thought"), thinking
    assert "<think>" not in thinking["response"]
    assert "thought" not in call(*at, "--no-think").json


def test_a_session_is_replayed_with_its_thoughts(call: Cli, workspace: Path, thinking_model: Path) -> None:
    at = ("--workspace", workspace, "--model", thinking_model)
    assert call(*at, "chat", stdin="Hi\n").out.startswith("<think>\n")
    assert not call(*at, "chat", "--resume", "last", "--no-think", stdin="Ho\n").out.startswith("<think>")
    replayed = call(*at, "replay", "last")
    assert replayed.status == 0, replayed.out + replayed.err


def test_thoughts_are_dim_on_a_terminal() -> None:
    assert _dimmed("<think>") + "Hm" + _dimmed("</think> Yes") == "\x1b[2m<think>Hm</think>\x1b[22m Yes"
