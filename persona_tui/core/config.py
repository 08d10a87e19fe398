"""config.yaml as typed, validated settings.

Every key has a type, a range and a default, and an error names the key, says what is allowed, and offers the
nearest known key. Descriptions of fields are written to end the sentence "<key> must be ...".
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from persona_tui.core.documents import read_plain
from persona_tui.core.errors import ConfigError, nearest
from persona_tui.core.files import atomic_write_text, change
from persona_tui.core.mix import NEW_TOKENS, PERCENTILE, PLAUSIBILITY, SEED, STRENGTH, TEMPERATURE, TOP_P
from persona_tui.core.sections import Section, VllmSettings
from persona_tui.core.yaml_documents import NotYaml, yaml_value

_MOST_BYTES = 1 << 20  # of a config.yaml
_BOM = "\ufeff"

LayerNumber = Annotated[int, Field(ge=0)]
LayerList = Literal["auto"] | Annotated[list[LayerNumber], Field(min_length=1)]

LAYERS_HELP = '"auto" or a list of layer numbers counted from 0, for example [14, 15, 16]'


class ModelSettings(Section):
    """Which model is loaded, and how."""

    name: str = Field(
        default="auto",
        min_length=1,
        description='"auto", "starter", "tiny", a Hugging Face name (org/model), a folder, a GGUF file or '
        '"ollama:NAME"',
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|multi|cuda(:\d+)?)$",
        description='"auto", "cpu", "cuda", "cuda:N", "mps" or "multi" (spread over all GPUs)',
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description='"auto", "float32", "float16" or "bfloat16"'
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description='"none", "8bit" or "4bit" (the last two need the quantization extra)'
    )
    compile: bool = Field(default=False, description="true or false")
    engine: str = Field(
        default="transformers",
        pattern=r"^(transformers|vllm|https?://\S+)$",
        description='"transformers", "vllm" or the address of a vLLM server that lends its model',
    )
    trust_remote_code: str | None = Field(
        default=None,
        min_length=1,
        description="the name of the one model whose custom code and pickled weights you trust, or null",
    )


class ExtractionSettings(Section):
    """How responses are made for extraction, and which layers a vector is for."""

    target_layers: LayerList = Field(default="auto", description=LAYERS_HELP)
    num_samples_per_prompt: int = Field(
        default=50, ge=1, le=10_000, description="a whole number from 1 to 10000"
    )
    questions: int = Field(default=100, ge=1, le=10_000, description="a whole number from 1 to 10000")
    max_new_tokens: int = Field(default=256, ge=1, le=4096, description="a whole number from 1 to 4096")
    batch_size: int = Field(default=32, ge=1, le=1024, description="a whole number from 1 to 1024")
    temperature: float = Field(
        default=0.7, ge=TEMPERATURE.low, le=TEMPERATURE.high, description=str(TEMPERATURE)
    )
    top_p: float = Field(default=1.0, gt=TOP_P.low, le=TOP_P.high, description=str(TOP_P))
    seed: int = Field(default=0, ge=SEED.low, le=SEED.high, description=str(SEED))
    baseline: str = Field(
        default="default",
        min_length=1,
        description='"default" (what the chat template inserts), "none" (an empty one) or a system prompt',
    )


class CalibrationSettings(Section):
    """How a vector's gain is found after its extraction."""

    enabled: bool = Field(default=True, description="true or false")
    questions: int = Field(default=12, ge=1, le=1000, description="a whole number from 1 to 1000")
    max_new_tokens: int = Field(default=64, ge=1, le=4096, description="a whole number from 1 to 4096")
    distil: bool = Field(default=True, description="true or false")
    fluency_margin: float = Field(
        default=0.3, ge=0, le=10, description="a number of nats per token that a reply may lose, from 0 to 10"
    )
    seed: int = Field(default=1, ge=SEED.low, le=SEED.high, description=str(SEED))


class SteeringSettings(Section):
    """How loud a persona speaks, and what holds it back."""

    default_strength: float = Field(default=0.3, ge=STRENGTH.low, le=STRENGTH.high, description=str(STRENGTH))
    capping: bool = Field(default=True, description="true or false")
    capping_axis: Literal["auto", "assistant", "safety"] = Field(
        default="auto", description='"auto", "assistant" or "safety"'
    )
    capping_layers: LayerList = Field(default="auto", description=LAYERS_HELP)
    safety_floor_percentile: float = Field(
        default=25, ge=PERCENTILE.low, le=PERCENTILE.high, description=str(PERCENTILE)
    )
    plausibility: float = Field(
        default=0.0, ge=PLAUSIBILITY.low, le=PLAUSIBILITY.high, description=str(PLAUSIBILITY)
    )


class GenerationSettings(Section):
    """How replies are sampled in a chat."""

    max_new_tokens: int = Field(
        default=256, ge=int(NEW_TOKENS.low), le=int(NEW_TOKENS.high), description=str(NEW_TOKENS)
    )
    temperature: float = Field(
        default=0.7, ge=TEMPERATURE.low, le=TEMPERATURE.high, description=str(TEMPERATURE)
    )
    top_p: float = Field(default=0.95, gt=TOP_P.low, le=TOP_P.high, description=str(TOP_P))
    seed: int | None = Field(
        default=None,
        ge=SEED.low,
        le=SEED.high,
        description=f"{SEED}, or null for a new seed each time",
    )
    think: bool = Field(default=True, description="true or false")


class WritingSettings(Section):
    """Who writes data sets and system prompts: the model in use, or one behind an HTTP endpoint."""

    url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description='the address of an OpenAI-compatible endpoint ("http://localhost:11434/v1") or null',
    )
    model: str | None = Field(
        default=None, min_length=1, description="the name of a model at writing.url, or null"
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of the environment variable with the API key",
    )
    timeout: float = Field(
        default=300, gt=0, le=86_400, description="how many seconds one answer may take, above 0"
    )


class MonitoringSettings(Section):
    """What judges the messages and replies of a chat."""

    guard: Literal["off", "warn", "refuse", "critique"] = Field(
        default="off", description='"off", "warn", "refuse" or "critique"'
    )
    monitor: str = Field(
        default="default", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$", description="the name of a monitor"
    )


class PathSettings(Section):
    """Where data sets and vectors lie, relative to the workspace."""

    datasets: str = Field(default="./datasets", min_length=1, description="a folder")
    vectors: str = Field(default="./vectors", min_length=1, description="a folder")


class InterfaceSettings(Section):
    """How the app looks, and its keys."""

    theme: str = Field(
        default="auto",
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description='"auto", "dark", "light" or the name of a Textual theme',
    )
    keys: dict[str, str] = Field(
        default_factory=dict, description="a mapping from actions to keys, for example {help: f1}"
    )


class Settings(Section):
    """All of config.yaml. `Settings()` is the configuration with nothing set."""

    model: ModelSettings = ModelSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    steering: SteeringSettings = SteeringSettings()
    generation: GenerationSettings = GenerationSettings()
    writing: WritingSettings = WritingSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    vllm: VllmSettings = VllmSettings()
    paths: PathSettings = PathSettings()
    interface: InterfaceSettings = InterfaceSettings()


@dataclass(frozen=True)
class Layers:
    """Layer numbers for one model, ascending, without repetition."""

    target: list[int]
    capping: list[int]


# --- reading ---------------------------------------------------------------------------------------------


def load_settings(path: Path | None) -> Settings:
    """Read settings from `path`; without a path, or for keys that it does not have, the defaults.

    Raises:
        ConfigError: the file is unreadable, is not YAML, or holds a key or value that is not allowed.
    """
    if path is None:
        return Settings()
    return _validated(_parse(_read(path), path.name), path.name)


def override(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Return `settings` with dotted keys replaced, as from options: {"model.device": "cpu"}.

    Raises:
        ConfigError: a key is unknown or a value not allowed.
    """
    data = settings.model_dump()
    for key, value in values.items():
        *sections, last = _split(key, "settings")
        _child(data, sections)[last] = value
    return _validated(data, "settings")


def known_keys() -> list[str]:
    """Return every key as "section.name", in the order of config.yaml."""
    return [f"{section}.{name}" for section, fields in _sections() for name in fields]


def _read(path: Path) -> str:
    try:
        return read_plain(path, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; a section whose keys are all commented out counts as empty."""
    try:
        data = yaml_value(text)
    except NotYaml as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error}.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must be a mapping of sections ({_section_names()}).")
    return {name: {} if value is None else value for name, value in data.items()}


def _validated(data: Mapping[str, Any], source: str) -> Settings:
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from error


# --- explaining ------------------------------------------------------------------------------------------


def _explain(error: ValidationError) -> str:
    """Say in one line what the first problem is and what is allowed."""
    problem = error.errors(include_url=False)[0]
    key = [str(part) for part in problem["loc"]]
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(".".join(key[:2]))
    if not key:
        return f"{problem['msg']}."
    field = _field(key)
    if field is None:
        return f"{key[0]} must be a section with its own keys, not {_shown(problem['input'])}."
    return f"{'.'.join(key[:2])} must be {field.description}, not {_shown(problem['input'])}."


def _unknown_key(key: str) -> str:
    """Name the nearest known key: the whole one, else a section, else the same name in another section."""
    known = known_keys()
    by_name = {name.rpartition(".")[2]: name for name in known}
    hint = nearest(key, known if "." in key else [section for section, _ in _sections()])
    if not hint and (last := key.rpartition(".")[2]) in by_name:
        hint = f' Did you mean "{by_name[last]}"?'
    return f"{key} is not a setting.{hint or f' The sections are {_section_names()}.'}"


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _field(key: list[str]) -> FieldInfo | None:
    if len(key) < 2:
        return None
    return dict(_sections()).get(key[0], {}).get(key[1])


def _sections() -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    for name, field in Settings.model_fields.items():
        yield name, cast(type[BaseModel], field.annotation).model_fields


def _section_names() -> str:
    return ", ".join(Settings.model_fields)


# --- changing --------------------------------------------------------------------------------------------


def set_value(path: Path, key: str, value: str) -> Settings:
    """Set one key of the file at `path` and keep its comments and order.

    Args:
        path: config.yaml; it is made if there is none.
        key: such as "steering.default_strength", or "interface.keys.help" for one key of the app.
        value: as it would be written in YAML: "0.4", "[14, 15]", "auto", "null".

    Returns:
        The settings of the new file.

    Raises:
        ConfigError: the key is unknown or the value not allowed; the file is then left as it was.
    """
    parts = _split(key, path.name)
    with change(path.parent, path.name):
        before = _read(path) if path.exists() else ""
        _validated(_parse(before, path.name), path.name)
        mark = _BOM if before.startswith(_BOM) else ""
        text, settings = _first_allowed(_plain(before), parts, _readings(value), path.name)
        ends = "\r\n" if "\r\n" in before else "\n"
        atomic_write_text(path, mark + text.replace("\n", ends))
    return settings


def _plain(text: str) -> str:
    """Return the text as ruamel.yaml writes it: without a byte order mark, with line feeds only."""
    return text.removeprefix(_BOM).replace("\r\n", "\n")


def _split(key: str, source: str) -> list[str]:
    """Split a dotted key, or raise the error that names the nearest one."""
    parts = key.strip().split(".")
    in_keys = parts[:2] == ["interface", "keys"] and len(parts) == 3 and parts[2]
    if not in_keys and ".".join(parts) not in known_keys():
        if len(parts) == 1 and parts[0] in Settings.model_fields:
            names = ", ".join(dict(_sections())[parts[0]])
            raise ConfigError(f"{source}: {parts[0]} is a section; its keys are {names}.")
        raise ConfigError(f"{source}: {_unknown_key(key.strip())}")
    return parts


def _readings(value: str) -> list[object]:
    """Return what a value may mean: what YAML makes of it, else the text itself (a model called 7).

    Text without quotes is taken as it is: a " #" in the name of a folder is no comment.
    """
    try:
        parsed = yaml_value(value)
    except NotYaml:
        return [value]
    if isinstance(parsed, str) and not value.lstrip().startswith(("'", '"')):
        return [value]
    return [parsed, value]


def _first_allowed(
    before: str, parts: list[str], readings: list[object], source: str
) -> tuple[str, Settings]:
    """Return the first new text that validates, with its settings; what is validated is what is written."""
    first_error: ConfigError | None = None
    for reading in readings:
        text = _with_value(before, parts, reading)
        try:
            return text, _validated(_parse(text, source), source)
        except ConfigError as error:
            first_error = first_error or error
    assert first_error is not None  # there is always at least one reading
    raise first_error


class _Representer(RoundTripRepresenter):
    """Writes `null`, where ruamel.yaml would leave the place after the colon empty."""

    def represent_none(self, data: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _with_value(text: str, parts: list[str], value: object) -> str:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 4096  # never fold a line that its author left long
    document = yaml_value(text, round_trip=True) or yaml.map()
    *sections, last = parts
    section = _child(document, sections)
    if isinstance(value, list) and not isinstance(section.get(last), list):
        flow = yaml.seq(value)
        flow.fa.set_flow_style()
        value = flow
    section[last] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _child(document: Any, sections: list[str]) -> Any:
    """Walk down to a section, making what is missing."""
    for name in sections:
        if document.get(name) is None:
            document[name] = {}
        document = document[name]
    return document


# --- layers ----------------------------------------------------------------------------------------------

# The plan's lists, 14-21 and 18-25, are for 28 layers; other depths get the same fractions.
_PLAN_DEPTH = 28
_TARGET_SPAN = (14, 22)
_CAPPING_SPAN = (18, 26)
_BAND = (0.3, 0.6)  # where steering recovered most on a real model, see the calibration's documentation


def resolve_layers(settings: Settings, n_layers: int) -> Layers:
    """Return the layer numbers that the settings mean for a model with `n_layers` decoder blocks.

    Raises:
        ConfigError: the settings name a layer that the model does not have.
    """
    return Layers(
        target=_resolve(
            "extraction.target_layers", settings.extraction.target_layers, _TARGET_SPAN, n_layers
        ),
        capping=_resolve(
            "steering.capping_layers", settings.steering.capping_layers, _CAPPING_SPAN, n_layers
        ),
    )


def capture_layers(settings: Settings, n_layers: int) -> list[int]:
    """Return the layers at which extraction reads: the resolved ones and every candidate for calibration."""
    layers = resolve_layers(settings, n_layers)
    return sorted({*layers.target, *layers.capping, *range(n_layers // 4, n_layers - 1)})


def band_layers(settings: Settings, n_layers: int) -> list[int]:
    """Return the layers where personas are added by default: 30% to 60% of the depth, or the target layers
    if the settings name some.

    Raises:
        ConfigError: the settings name a layer that the model does not have.
    """
    if settings.extraction.target_layers != "auto":
        return resolve_layers(settings, n_layers).target
    start = min(round(n_layers * _BAND[0]), n_layers - 1)
    return list(range(start, max(round(n_layers * _BAND[1]), start + 1)))


def _resolve(
    key: str, chosen: Literal["auto"] | list[int], span: tuple[int, int], n_layers: int
) -> list[int]:
    if chosen == "auto":
        start = min(round(n_layers * span[0] / _PLAN_DEPTH), n_layers - 1)
        stop = max(round(n_layers * span[1] / _PLAN_DEPTH), start + 1)
        return list(range(start, stop))
    if beyond := [layer for layer in chosen if layer >= n_layers]:
        raise ConfigError(
            f"{key} names layer {beyond[0]}, but this model's layers are 0 to {n_layers - 1}; use auto."
        )
    return sorted(set(chosen))
