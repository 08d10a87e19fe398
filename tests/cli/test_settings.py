"""`config show` and `config set`."""

from pathlib import Path

from ruamel.yaml import YAML

from .conftest import Cli


def test_show_prints_every_setting_as_yaml(cli: Cli, tiny_model: Path) -> None:
    settings = YAML(typ="safe").load(cli("config", "show").out)
    assert settings["extraction"]["questions"] == 4
    assert settings["extraction"]["temperature"] == 0.7
    assert settings["model"]["name"] == str(tiny_model)
    assert settings["generation"]["seed"] == 7
    assert cli("config", "show", "--json").json == settings
    cli("config", "set", "generation.seed", "null")
    settings = YAML(typ="safe").load(cli("config", "show").out)
    assert settings["generation"]["seed"] is None
    assert cli("config", "show", "--json").json == settings


def test_set_keeps_comments_and_says_what_was(cli: Cli, workspace: Path) -> None:
    result = cli("config", "set", "extraction.questions", "7")
    assert (result.status, result.out) == (0, "extraction.questions: 7 (was 4)\n")
    text = (workspace / "config.yaml").read_text()
    assert text.startswith("# A comment that stays.\n") and "questions: 7" in text
    assert cli("config", "set", "extraction.questions", "7").out == "extraction.questions: 7 (as before)\n"
    assert cli("config", "set", "interface.keys.help", "f9").out == 'interface.keys.help: "f9" (was null)\n'


def test_wrong_keys_and_values_change_nothing(cli: Cli, workspace: Path) -> None:
    before = (workspace / "config.yaml").read_text()
    for args, message in (
        (("steering.default_strengt", "1"), 'Did you mean "steering.default_strength"'),
        (("steering.default_strength", "loud"), "must be a number"),
        (("extraction.questions", "0"), "from 1"),
    ):
        result = cli("config", "set", *args)
        assert (result.status, result.out) == (1, "")
        assert message in result.err
    assert (workspace / "config.yaml").read_text() == before
