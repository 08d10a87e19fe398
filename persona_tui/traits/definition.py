"""What a trait is: its description, and situations with a reply from each of its sides.

A file is JSON Lines or YAML. In JSON Lines the first line describes the trait, all others are situations:

    {"trait": "patience", "description": "...", "high": "...", "low": "...", "healthy": {"min": 0}}
    {"id": "pat_01", "split": "train", "user": "...", "high": "a patient reply", "low": "an impatient one"}

In YAML the description's keys stand at the top, and `situations` is a list. A situation may have `messages`
(a conversation that ends with the user) instead of `user`, and one of its two replies may be missing.

A situation with an `ordinary` reply instead is one that the trait has nothing to say about:

    {"id": "pat_out_01", "user": "What is rain?", "ordinary": "Water that falls from clouds."}

`ordinary/*.jsonl` in the traits' folder has such lines for all traits. A trait's gate is fitted on them.

A trait's file of persona_vectors or assistant-axis is read as well (`foreign`): opposed system prompts and
`questions`, to which the model writes the replies of both sides itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import DatasetError, PersonaTuiError, nearest
from persona_tui.core.mistakes import mistake_of
from persona_tui.core.mix import TRAIT_ALIASES
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.core.yaml_documents import NotYaml, yaml_value
from persona_tui.traits.foreign import foreign_trait

Side = Literal["high", "low"]
Split = Literal["train", "test"]
Message = dict[str, str]
M = TypeVar("M", bound=BaseModel)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

SIDES: tuple[Side, Side] = ("high", "low")
SUFFIXES = (".jsonl", ".json", ".yaml", ".yml")
FEWEST = 4  # conversations a side; with fewer no layer can be chosen by cross-validation
ORDINARY = "ordinary"  # the folder beside the traits with talk that none of them is about
POLICIES = "policies"  # the folder beside the traits with limits
CALIBRATED: Literal["calibrated"] = "calibrated"  # as a limit: the one that was found for the model


def _limit(value: Any) -> Any:
    if value == CALIBRATED:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        raise ValueError(f'a number or "{CALIBRATED}" is needed')
    return number


Limit = Annotated[float | Literal["calibrated"], BeforeValidator(_limit)]

_NOT_ORDINARY = '"ordinary" is missing'
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Healthy(_Strict):
    """Between which scores a trait is as it should be.

    Attributes:
        min, max: the lowest and the highest one; None = no limit on that side, "calibrated" = the limit that
            extraction finds for the model.
    """

    min: Limit | None = None
    max: Limit | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self.min, self.max)
        return self


def check_order(low: Limit | None, high: Limit | None) -> None:
    """Raise ValueError if two limits are numbers that leave nothing between them."""
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise ValueError("min is above max")


class ExampleTurn(_Strict):
    """One message of an earlier conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Situation(_Strict):
    """What a user says, and how an assistant answers at both ends of a trait.

    Attributes:
        id: unique in its file.
        split: "train" is what vectors are made from, "test" is only ever measured on.
        user: what the user says; or
        messages: a conversation that ends with the user.
        high, low: the replies; at least one of them; or
        ordinary: a good reply, where the trait has nothing to say.
    """

    id: Text
    split: Split = "train"
    user: Text | None = None
    messages: tuple[ExampleTurn, ...] = ()
    high: Text | None = None
    low: Text | None = None
    ordinary: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.user is None) == (not self.messages):
            raise ValueError('either "user" or "messages" is needed')
        if self.messages and self.messages[-1].role != "user":
            raise ValueError('"messages" must end with the user')
        if self.ordinary is None and self.high is None and self.low is None:
            raise ValueError('"high" or "low" is needed, ideally both')
        if self.ordinary is not None and (self.high is not None or self.low is not None):
            raise ValueError('"ordinary" is for situations that have neither "high" nor "low"')
        return self

    @property
    def prompt(self) -> list[Message]:
        """The conversation before the reply."""
        if self.user is not None:
            return [{"role": "user", "content": self.user}]
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]

    def reply(self, side: Side) -> str | None:
        """Return the reply of one side, if there is one."""
        return self.high if side == "high" else self.low


class TraitDefinition(_Strict):
    """A trait, as people describe it.

    Attributes:
        trait: its name; a file name.
        description: what it is, in one line.
        high, low: what replies of each side do.
        healthy: the scores at which it is as it should be.
        not_about: other traits whose messages this one is not about; as examples for its gate.
        everywhere: whether it is about every conversation, so that it needs no gate.
        high_prompts, low_prompts: system prompts that ask for each side, for the recipe "prompts".
        questions: what is asked under these system prompts where there are no situations.
        situations: what it is extracted from and tested on.
    """

    trait: Text
    description: Text
    high: Text
    low: Text
    healthy: Healthy = Healthy()
    not_about: tuple[Text, ...] = ()
    everywhere: bool = False
    high_prompts: tuple[Text, ...] = ()
    low_prompts: tuple[Text, ...] = ()
    questions: tuple[Text, ...] = ()
    situations: tuple[Situation, ...] = Field(default=())

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not _NAME.fullmatch(self.trait):
            raise ValueError('"trait" must be a name of letters, digits, _ and -')
        if len(self.high_prompts) != len(self.low_prompts):
            raise ValueError('"high_prompts" and "low_prompts" must have the same length')
        return self

    @property
    def name(self) -> str:
        """The trait's name."""
        return self.trait

    @property
    def recipe(self) -> Literal["conversations", "prompts"]:
        """How it is extracted unless somebody says otherwise: from its replies, if it has any."""
        return "prompts" if self.questions and not self.situations else "conversations"

    def asked(self) -> list[tuple[str, list[Message]]]:
        """Return what replies are written to under its system prompts, with ids: its situations, or else its
        questions.
        """
        questions = ((f"q{number:03d}", text) for number, text in enumerate(self.questions, start=1))
        return [(each.id, each.prompt) for each in self.about("train")] or [
            (id, [{"role": "user", "content": text}]) for id, text in questions
        ]

    def about(self, split: Split) -> list[Situation]:
        """Return the situations that the trait is about."""
        return [each for each in self.situations if each.split == split and each.ordinary is None]

    def outside(self, split: Split) -> list[Situation]:
        """Return the situations that the trait has nothing to say about."""
        return [each for each in self.situations if each.split == split and each.ordinary is not None]

    def conversations(self, split: Split, side: Side) -> list[tuple[str, list[Message]]]:
        """Return one side's conversations, each with its situation's id; the last message is the reply."""
        found = []
        for situation in self.situations:
            reply = situation.reply(side)
            if situation.split == split and reply is not None:
                found.append((situation.id, [*situation.prompt, {"role": "assistant", "content": reply}]))
        return found

    def count(self, split: Split, side: Side) -> int:
        """Return how many conversations one side has."""
        return len(self.conversations(split, side))


# Reading ----------------------------------------------------------------------------------------------------


def read_definition(path: Path) -> TraitDefinition:
    """Read and check a file.

    Raises:
        DatasetError: it is missing, or something in it is wrong; the message begins with `file:line`.
    """
    definition: TraitDefinition | None = None
    situations: list[Situation] = []
    lines: dict[str, int] = {}
    for line, item in scan_definition(path):
        if isinstance(item, str):
            raise DatasetError(f"{path}:{line}: {item}")
        if isinstance(item, TraitDefinition):
            definition = item
            continue
        if item.id in lines:
            raise DatasetError(f'{path}:{line}: the id "{item.id}" is already on line {lines[item.id]}')
        lines[item.id] = line
        situations.append(item)
    assert definition is not None  # the first item is one, or a mistake
    definition = definition.model_copy(update={"situations": tuple(situations)})
    for side in SIDES:
        if definition.recipe == "conversations" and not definition.count("train", side):
            raise DatasetError(f'{path}: the {side} side is empty: no "train" situation has a "{side}" reply')
    return definition


def scan_situations(path: Path) -> Iterator[tuple[int, Situation | str]]:
    """Yield what a file of situations without a description says, in JSON Lines; see `scan_definition`."""
    for line, item in _jsonl_items(_text(path)):
        yield line, item.problem if isinstance(item, _Mistake) else _checked(Situation, item)


def ordinary_talk(workspace: Workspace) -> list[Situation]:
    """Read the ordinary situations of all traits: the workspace's, or those that came with the program.

    Raises:
        DatasetError: a file is wrong; the message begins with `file:line`.
    """
    found: list[Situation] = []
    for folder in definitions_dirs(workspace):
        for path in sorted((folder / ORDINARY).glob("*.jsonl")):
            for line, item in scan_situations(path):
                if isinstance(item, str) or item.ordinary is None:
                    raise DatasetError(f"{path}:{line}: {item if isinstance(item, str) else _NOT_ORDINARY}")
                found.append(item)
        if found:
            break
    return found


def scan_definition(path: Path) -> Iterator[tuple[int, TraitDefinition | Situation | str]]:
    """Yield what a file says, item by item: the description, without situations, and then those.

    An item with a mistake is what is wrong with it, so that every mistake can be listed.

    Yields:
        The line, from 1, and the item.

    Raises:
        DatasetError: the file cannot be read at all.
    """
    text = _text(path)
    if path.suffix == ".json" and (foreign := foreign_trait(path, text)) is not None:
        items = iter([(1, foreign)])
    else:  # a JSON document is a YAML document, too
        items = _jsonl_items(text) if path.suffix == ".jsonl" else _yaml_items(path, text)
    model: type[TraitDefinition] | type[Situation] = TraitDefinition
    for line, item in items:
        yield line, item.problem if isinstance(item, _Mistake) else _checked(model, item)
        model = Situation
    if model is TraitDefinition:
        raise DatasetError(f"{path} is empty")


@dataclass(frozen=True)
class _Mistake:
    """A line that cannot be read, and why."""

    problem: str


def _checked(model: type[M], value: Any) -> M | str:
    if not isinstance(value, Mapping):
        return f"a mapping with keys is needed, not {str(value)[:40]!r}"
    try:
        return model.model_validate(_plain(value))
    except ValidationError as error:
        return mistake_of(error, value, model)


def _plain(value: Any) -> Any:
    """Return what YAML's own mappings and lists stand for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _text(path: Path) -> str:
    try:
        data = read_plain(path)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 text") from error


def _jsonl_items(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, json_value(line)
        except ValueError as error:
            yield number, _Mistake(f"not valid JSON ({getattr(error, 'msg', error)})")


def _yaml_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        document = yaml_value(text, round_trip=True)  # which knows the lines
    except NotYaml as error:
        raise DatasetError(f"{path}:{error.line or 1}: not valid YAML: {error}") from error
    if not isinstance(document, Mapping):
        raise DatasetError(f"{path}:1: a mapping with keys is needed")
    yield 1, {key: value for key, value in document.items() if key != "situations"}
    situations = document.get("situations") or []
    if not isinstance(situations, list):
        raise DatasetError(f'{path}: "situations" must be a list')
    for place, item in enumerate(situations):
        yield situations.lc.item(place)[0] + 1, item  # type: ignore[attr-defined]


# Finding ----------------------------------------------------------------------------------------------------


def definitions_dirs(workspace: Workspace) -> list[Path]:
    """Return where definitions are looked for: in the workspace, then in what came with the program."""
    folders = [workspace.datasets / "traits", packaged_root() / "datasets" / "traits"]
    return list(dict.fromkeys(folders))


def list_definitions(workspace: Workspace) -> dict[str, Path]:
    """Return the files of all traits that are described somewhere, by name, sorted."""
    found: dict[str, Path] = {}
    for folder in definitions_dirs(workspace):
        for path in sorted(folder.glob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def list_policies(workspace: Workspace) -> dict[str, Path]:
    """Return the policy files that are beside the traits, by name, sorted."""
    found: dict[str, Path] = {}
    for folder in definitions_dirs(workspace):
        for path in sorted((folder / POLICIES).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_definition(workspace: Workspace, name: str) -> TraitDefinition:
    """Read a trait's definition, by its name or by the path of a file.

    Raises:
        DatasetError: it is missing or wrong.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        return read_definition(path)
    known = list_definitions(workspace)
    name = name if name in known else TRAIT_ALIASES.get(name, name)
    if name not in known:
        hint = nearest(name, known) or f" There are {', '.join(known) or 'none yet'}."
        raise DatasetError(f'no trait "{name}" is described in {definitions_dirs(workspace)[0]}.{hint}')
    definition = read_definition(known[name])
    if definition.name != name:
        raise PersonaTuiError(f'{known[name]} describes "{definition.name}": its file must have that name')
    return definition
