"""Settings: the shipped file, what errors say, changing a file in place, and what `auto` means."""

import subprocess
import sys
from pathlib import Path

import pytest

from persona_tui.core.config import (
    Settings,
    capture_layers,
    known_keys,
    load_settings,
    override,
    resolve_layers,
    set_value,
)
from persona_tui.core.errors import ConfigError
from persona_tui.core.workspace import packaged_root


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text((packaged_root() / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def load_text(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the file that ships ---


def test_the_shipped_file_says_exactly_the_defaults(config: Path) -> None:
    assert load_settings(config) == Settings()


def test_the_shipped_file_names_every_key(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    missing = [key for key in known_keys() if f"\n  {key.split('.')[1]}:" not in text]
    assert missing == []


def test_no_path_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    assert load_settings(None) == Settings()
    assert load_text(tmp_path, "") == Settings()
    assert load_text(tmp_path, "steering:\n  # default_strength: 0.5\n") == Settings()


def test_every_field_can_say_what_is_allowed() -> None:
    for field in Settings.model_fields.values():
        for name, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert inner.description, name


# --- errors ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steering: {default_strenght: 0.3}", ["steering.default_strenght", '"steering.default_strength"']),
        ("stering: {capping: true}", ["stering is not a setting", '"steering"']),
        ("model: {seed: 4}", ["model.seed is not a setting", "Did you mean"]),
        ("zzz: 1", ["zzz is not a setting", "model, extraction"]),
        ("steering: {default_strength: loud}", ["steering.default_strength", "from -100 to 100", '"loud"']),
        ('steering: {default_strength: "0.3"}', ["steering.default_strength", "a number", '"0.3"']),
        ("steering: {default_strength: .nan}", ["steering.default_strength", "from -100 to 100"]),
        ("steering: {safety_floor_percentile: 101}", ["safety_floor_percentile", "from 0 to 100", "101"]),
        ("extraction: {questions: true}", ["extraction.questions", "whole number", "True"]),
        ("extraction: {questions: 0}", ["extraction.questions", "from 1", "not 0"]),
        ("extraction: {target_layers: [3, -1]}", ["extraction.target_layers", "counted from 0", "-1"]),
        ("extraction: {target_layers: []}", ["extraction.target_layers", '"auto" or a list']),
        ("model: {quantization: 2bit}", ["model.quantization", '"8bit"', '"2bit"']),
        ("model: {device: gpu}", ["model.device", '"cuda:N"', '"gpu"']),
        ("model: builtin", ["model must be a section", '"builtin"']),
        ("interface: {keys: {help: 1}}", ["interface.keys", "mapping"]),
        ("- a\n- b", ["must be a mapping"]),
        ("model: {name: x", ["line", "not valid YAML"]),
        ("model: {name: a, name: b}", ["not valid YAML"]),
        ("model: !!python/object/apply:os.system ['true']", ["not valid YAML"]),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = error_of(tmp_path, text)
    assert message.startswith("config.yaml")
    for part in parts:
        assert part in message


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(error_of(tmp_path, f"model: {{device: {'x' * 5000}}}")) < 200


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")
    binary = tmp_path / "config.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(binary)


# --- changing ---


def test_set_value_changes_one_line_only(config: Path) -> None:
    before = config.read_text(encoding="utf-8").splitlines()
    settings = set_value(config, "steering.default_strength", "0.4")
    after = config.read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1].split("#")[0].strip() == "default_strength: 0.4"
    assert "# how loud" in changed[0][1]
    assert settings == load_settings(config)
    assert settings.steering.default_strength == 0.4


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("extraction.target_layers", "[3, 4]", [3, 4]),
        ("extraction.target_layers", "auto", "auto"),
        ("generation.seed", "null", None),
        ("generation.seed", "7", 7),
        ("steering.capping", "false", False),
        ("model.name", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("model.name", "7", "7"),
        ("model.name", "a: b", "a: b"),
        ("paths.vectors", "C:\\data # two", "C:\\data # two"),
        ("steering.default_strength", "-1", -1.0),
    ],
)
def test_set_value_reads_what_was_meant(config: Path, key: str, text: str, value: object) -> None:
    settings = set_value(config, key, text)
    section, name = key.split(".")
    assert getattr(getattr(settings, section), name) == value
    assert load_settings(config) == settings


def test_set_value_of_one_key_of_the_app(config: Path) -> None:
    assert set_value(config, "interface.keys.help", "f1").interface.keys == {"help": "f1"}


def test_set_value_adds_what_a_short_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# mine\nmodel:\n  name: gpt2  # small\nsteering:\n", encoding="utf-8")
    set_value(path, "steering.capping", "false")
    set_value(path, "generation.seed", "4")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# mine\nmodel:\n  name: gpt2  # small\nsteering:\n  capping: false\n")
    assert load_settings(path).generation.seed == 4


def test_set_value_makes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    set_value(path, "generation.temperature", "0")
    assert path.read_text(encoding="utf-8") == "generation:\n  temperature: 0\n"


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("steering.default_strength", "900", "from -100 to 100"),
        ("steering.strength", "0.3", '"steering.default_strength"'),
        ("steering", "0.3", "is a section"),
        ("default_strength", "0.3", '"steering.default_strength"'),
        ("interface.keys.", "f1", "not a setting"),
        ("", "1", "not a setting"),
    ],
)
def test_a_refused_change_leaves_the_file_alone(config: Path, key: str, value: str, part: str) -> None:
    before = config.read_bytes()
    with pytest.raises(ConfigError) as caught:
        set_value(config, key, value)
    assert part in str(caught.value)
    assert config.read_bytes() == before
    assert [entry.name for entry in config.parent.iterdir()] == ["config.yaml"]


def test_override_is_validated_and_leaves_the_original() -> None:
    settings = Settings()
    assert override(settings, {"model.device": "cpu", "generation.seed": 3}).model.device == "cpu"
    assert settings.model.device == "auto"
    with pytest.raises(ConfigError, match=r"model\.device must be"):
        override(settings, {"model.device": "gpu"})
    with pytest.raises(ConfigError, match="not a setting"):
        override(settings, {"model.devise": "cpu"})


# --- layers ---


def test_auto_layers_are_the_plans_own_on_28_layers() -> None:
    layers = resolve_layers(Settings(), 28)
    assert layers.target == list(range(14, 22))
    assert layers.capping == list(range(18, 26))


@pytest.mark.parametrize("n_layers", range(1, 130))
def test_auto_layers_exist_on_every_depth(n_layers: int) -> None:
    layers = resolve_layers(Settings(), n_layers)
    for chosen in (layers.target, layers.capping, capture_layers(Settings(), n_layers)):
        assert chosen
        assert chosen == sorted(set(chosen))
        assert 0 <= chosen[0] <= chosen[-1] < n_layers
    assert {*layers.target, *layers.capping} <= set(capture_layers(Settings(), n_layers))


def test_named_layers_are_sorted_and_checked() -> None:
    settings = override(Settings(), {"extraction.target_layers": [5, 3, 3]})
    assert resolve_layers(settings, 8).target == [3, 5]
    with pytest.raises(ConfigError, match=r"extraction\.target_layers names layer 5.* 0 to 3"):
        resolve_layers(settings, 4)


# --- imports ---


def test_settings_and_folders_start_without_torch() -> None:
    code = (
        "import sys, persona_tui.core.errors, persona_tui.core.config, persona_tui.core.workspace\n"
        "print([name for name in ('torch', 'transformers', 'textual', 'click') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
