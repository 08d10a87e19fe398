"""`--engine`: what runs the model, where nothing but transformers is installed."""

from __future__ import annotations

from pathlib import Path

from .conftest import Cli

NOBODY = "http://127.0.0.1:9"


def test_an_engine_that_is_none_is_said_in_a_line(cli: Cli) -> None:
    result = cli("--engine", "llama.cpp", "list")
    assert result.status == 1 and "the address of a vLLM server that lends its model" in result.err


def test_a_server_that_does_not_answer_is_said_in_a_line(cli: Cli, workspace: Path) -> None:
    for command in (("list",), ("generate", "Hi"), ("create", "sage", "--from-archetype", "sage")):
        result = cli("--engine", NOBODY, *command)
        assert result.status == 1 and f"Error: nobody answers at {NOBODY}" in result.err
        assert len(result.err.splitlines()) == 1
    assert cli("config", "set", "model.engine", NOBODY).status == 0
    assert cli("list").status == 1
    assert cli("config", "set", "model.engine", "transformers").status == 0  # nothing is asked for that
    assert cli("list").status == 0


def test_only_vllm_can_be_lent(cli: Cli) -> None:
    result = cli("serve", "--lend")
    assert result.status == 2 and "Only --engine vllm can be lent" in result.err
