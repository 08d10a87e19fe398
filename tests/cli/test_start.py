"""Starting: what is loaded, what is said about wrong usage."""

import subprocess
import sys
from pathlib import Path

import pytest

from persona_tui.cli.root import COMMANDS

from .conftest import Cli, environment

HEAVY = ("torch", "transformers", "textual", "pydantic", "numpy", "ruamel", "rich")


def loaded_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after running some code."""
    script = f"{code}\nimport sys; print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True
    )
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        "import persona_tui",
        "from persona_tui.cli import run; run(['--help'])",
        "from persona_tui.cli import run; run(['--version'])",
        "from persona_tui.cli import run; [run([name, '--help']) for name in "
        + repr([*COMMANDS])
        + "]; run(['dataset', 'generate', '--help']); run(['config', 'set', '--help'])",
    ],
    ids=["package", "help", "version", "help of every command"],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == []


def test_opening_a_project_loads_no_torch() -> None:
    code = "from persona_tui.project.project import Project; Project.open().slug; "
    code += "import persona_tui.chat.commands"
    assert not {"torch", "transformers", "textual", "rich"} & set(loaded_after(code))


@pytest.mark.slow
def test_the_app_is_made_without_torch() -> None:
    code = "from persona_tui.project.project import Project; from persona_tui.core.mix import Mix; "
    code += "from persona_tui.tui.app import PersonaApp; PersonaApp(Project.open(), Mix())"
    assert not {"torch", "transformers"} & set(loaded_after(code))


def test_torchs_threads_wait_quietly() -> None:
    code = "import os; os.environ.pop('OMP_WAIT_POLICY', None); import persona_tui.cli"
    code += "; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "PASSIVE"


def test_help_lists_every_command(call: Cli) -> None:
    result = call("--help")
    assert result.status == 0
    listed = [line.split()[0] for line in result.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], 'Unknown command "lst". Did you mean "list"?'),
        (["--nonsense"], "--nonsense"),
        (["list", "--nonsense"], "--nonsense"),
        (["info"], "NAME"),
        (["--dtype", "int8", "list"], "int8"),
        (["config", "shwo"], "shwo"),
        (["create", "x"], "--from-archetype, --description, --prompts and --interactive"),
        (["create", "x", "-a", "sage", "-d", "a sage"], "cannot be combined"),
        (["create"], "NAME"),
        (["dataset", "generate", "jokes"], "jokes"),
        (["dataset", "generate", "archetype"], "--description"),
        (["dataset", "generate", "safe", "name"], "NAME"),
        (["generate", "hi", "--persona", "sage", "--blend", "sage:1"], "not both"),
        (["generate", "hi", "--strength", "loud"], "loud"),
        (["chat", "--strength", "nan"], "not nan"),
        (["generate", ""], "empty"),
        (["generate", "-"], "empty"),
        (["delete", "sage"], "--yes"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(cli: Cli, args: list[str], message: str) -> None:
    result = cli(*args)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("Error: ") and result.err.count("\n") == 1
    assert message in result.err and "--help`." in result.err


@pytest.mark.parametrize(
    ("args", "right"),
    [
        (["chat", "--model", "tiny"], "persona-tui --model NAME_OR_PATH chat"),
        (["generate", "hi", "--device=cpu"], "persona-tui --device DEVICE generate"),
        (["trait", "score", "x.txt", "--debug"], "persona-tui --debug trait score"),
    ],
)
def test_an_option_of_all_commands_is_shown_its_place(cli: Cli, args: list[str], right: str) -> None:
    result = cli(*args)
    assert result.status == 2 and result.out == "" and result.err.count("\n") == 1
    assert result.err.endswith(f"belongs before the command: {right}\n")


def test_a_traceback_only_with_debug(cli: Cli) -> None:
    assert "Traceback" not in cli("info", "nobody").err
    result = cli("--debug", "info", "nobody")
    assert result.status == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("Error: ")


def test_a_mistake_of_ours_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("persona_tui.project.project.Project.open", broken)
    result = cli("list")
    assert result.status == 1
    assert result.err == (
        "Error: this is a bug in persona-tui: ZeroDivisionError: division by zero (--debug shows where)\n"
    )


@pytest.mark.parametrize("args", [["list"], ["info", "sage"], ["doctor"], ["generate", "hi"]])
def test_a_broken_configuration_is_named(call: Cli, workspace: object, args: list[str]) -> None:
    from pathlib import Path

    (Path(str(workspace)) / "config.yaml").write_text("steering: {default_strengt: 1}\n")
    result = call("--workspace", str(workspace), *args)
    assert result.status == 1
    assert "default_strengt is not a setting" in result.err + result.out


def test_a_model_that_does_not_exist(call: Cli, workspace: object) -> None:
    result = call("--workspace", str(workspace), "--model", "/no/such/folder", "generate", "hi")
    assert (result.status, result.out) == (1, "")
    assert "/no/such/folder" in result.err and result.err.count("\n") == 1


READERS = (
    ["list"],
    ["info", "sage"],
    ["chat", "--plain"],
    ["generate", "hi"],
    ["sessions", "list"],
    ["replay", "last"],
    ["config", "show"],
    ["delete", "sage", "--yes"],
    ["trait", "list"],
    ["monitor", "list"],
    ["dataset", "validate"],
    ["export", "sage", "-o", "x.gguf", "--format", "gguf"],
    ["load", "sage"],
    ["chat", "--resume", "last"],
)


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_a_misspelt_workspace_is_not_made_by_what_reads(
    call: Cli, tmp_path: Path, tiny_model: Path, command: list[str]
) -> None:
    result = call("--workspace", tmp_path / "misspelt", "--model", tiny_model, *command)
    assert result.status == 1 and result.out == ""
    assert result.err.count("\n") == 1 and str(tmp_path / "misspelt") in result.err and "init" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_the_settings_belong_is_told(call: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    for command in (["list"], ["config", "set", "generation.seed", "3"], ["init"]):
        result = call("--workspace", tmp_path, *command)
        assert (result.status, result.out) == (1, "")
        assert f"{tmp_path / 'config.yaml'} is a folder" in result.err and result.err.count("\n") == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "config.yaml"]


def test_a_link_that_leads_nowhere_in_place_of_the_settings_is_told(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.symlink_to(tmp_path / "elsewhere.yaml")
    (tmp_path / "stuff").mkdir()
    monkeypatch.chdir(tmp_path / "stuff")
    for command in (["list"], ["config", "set", "generation.seed", "3"], ["--workspace", tmp_path, "list"]):
        result = call(*command)
        assert (result.status, result.out) == (1, "")
        assert f"{config} is a link to a file that is not there" in result.err
        assert result.err.count("\n") == 1
    assert config.is_symlink() and not config.exists()


def test_what_writes_makes_its_workspace(call: Cli, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert call("--workspace", made, "config", "set", "generation.seed", "3").status == 0
    assert (made / "config.yaml").is_file()
