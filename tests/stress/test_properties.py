"""What must hold of any input, tried on many: a sound reading, or one line that says what is wrong."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from persona_tui.chat.store import SessionStore
from persona_tui.core.config import known_keys, load_settings, set_value
from persona_tui.core.errors import ConfigError, DatasetError, SessionError, VectorFileError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.transcripts import BadLine, Transcript, read_stream
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.traits.policy import Limits, Policy
from persona_tui.traits.vector import TraitVector
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import METADATA_KEY, load_tensors
from persona_tui.vectors.persona import PersonaVector
from tests.stress.mutants import BYTES
from tests.vectors.conftest import Make

pytestmark = pytest.mark.slow

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
NUMBERS = st.floats(-1e6, 1e6).map(lambda value: value + 0.0)  # no -0.0
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

# The number of examples is that of the profile: see conftest.
tried = settings(suppress_health_check=list(HealthCheck))


def one_line(error: BaseException) -> None:
    """Check that an error is a line that can be shown."""
    assert str(error).strip() and len(str(error).splitlines()) == 1, repr(error)


# Policies ---------------------------------------------------------------------------------------------------

PRINTED = st.text(
    st.characters(max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=20
)  # all that YAML takes
LIMITS = st.builds(
    lambda ends, reason, when: {"min": min(ends), "max": max(ends), "reason": reason, "when": when},
    st.tuples(NUMBERS, NUMBERS),
    PRINTED,
    st.lists(PRINTED.filter(str.strip), max_size=2),
)


@tried
@given(st.dictionaries(NAMES, LIMITS, min_size=1, max_size=3), st.sampled_from(["reply", "conversation"]))
def test_a_policy_is_the_same_after_writing_and_reading(
    tmp_path: Path, traits: dict[str, Any], applies_to: str
) -> None:
    policy = Policy.model_validate({"traits": traits, "applies_to": applies_to})
    path = tmp_path / "policy.yaml"
    path.write_text(policy.model_dump_json(), encoding="utf-8")  # JSON is YAML, too
    assert Policy.load(path) == policy


@tried
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("<>"), NUMBERS), min_size=1, max_size=4))
def test_all_of_several_rules_hold_or_they_are_refused(rules: list[tuple[str, str, float]]) -> None:
    texts = [f"{trait}{sign}{limit!r}" for trait, sign, limit in rules]
    orders = [list(order) for order in itertools.permutations(texts)]
    highest = {
        name: min((x for n, s, x in rules if (n, s) == (name, ">")), default=math.inf) for name in "ab"
    }
    lowest = {
        name: max((x for n, s, x in rules if (n, s) == (name, "<")), default=-math.inf) for name in "ab"
    }
    if any(lowest[name] > highest[name] for name in "ab"):
        for order in orders:
            with pytest.raises(ConfigError) as refused:
                Policy.from_rules(order)
            one_line(refused.value)
        return
    scores = [{"a": one, "b": other} for _, _, x in rules for one in (x - 1, x, x + 1) for other in (x, -x)]
    for order in orders:
        policy = Policy.from_rules(order)
        for each in scores:
            broken = {name for name, sign, x in rules if (each[name] > x if sign == ">" else each[name] < x)}
            assert {breach.trait for breach in policy.breaches(each)} == broken


@tried
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_policy_or_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(data)
    try:
        assert all(isinstance(limits, Limits) for limits in Policy.load(path).traits.values())
    except ConfigError as error:
        one_line(error)


# Transcripts ------------------------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]),
            "content": TEXTS | JSON,
        }
    ),
    max_size=4,
)
OBJECTS = (
    MESSAGES.map(lambda value: {"messages": value})
    | st.fixed_dictionaries({"prompt": JSON, "completion": JSON})
    | st.fixed_dictionaries({"prompt": JSON, "chosen": JSON | MESSAGES, "rejected": JSON | MESSAGES})
    | st.fixed_dictionaries({"mapping": JSON, "current_node": JSON})
    | st.fixed_dictionaries({"body": MESSAGES.map(lambda value: {"messages": value}), "response": JSON})
    | JSON
)
SUFFIXES = st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt"])
LABELS = st.sampled_from(
    ["User: ", "Assistant: ", "**User:** ", "### Assistant\n", "Q: ", "A: ", "You said:\n"]
)
CHATS = st.lists(st.tuples(LABELS, TEXTS).map("".join), max_size=5).map("\n".join)


def read(data: bytes, name: str) -> list[Transcript]:
    """Read a file's bytes, and check that what is no conversation is told in a line."""
    found = []
    try:
        for item in read_stream(io.BytesIO(data), name, name.endswith(".jsonl")):
            if isinstance(item, BadLine):
                one_line(DatasetError(str(item)))
                continue
            assert item.says_something or item.thoughts
            assert all({"role", "content"} == each.keys() for each in item.messages)
            found.append(item)
    except DatasetError as error:
        one_line(error)
    return found


@tried
@given(
    st.binary(max_size=300)
    | st.lists(OBJECTS, max_size=4).map(lambda lines: "\n".join(map(json.dumps, lines)).encode())
    | st.lists(OBJECTS, max_size=3).map(lambda value: json.dumps(value, indent=1).encode())
    | CHATS.map(str.encode)
    | CHATS.map(lambda text: text.encode("utf-16")),
    SUFFIXES,
)
def test_any_bytes_are_conversations_or_a_line_for_what_is_not(data: bytes, name: str) -> None:
    read(data, name)


WORDS = st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=5).map(" ".join)
TALK = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@tried
@given(st.lists(TALK, min_size=1, max_size=3), st.sampled_from(["User: |Assistant: ", "Q: |A: ", "json"]))
def test_no_word_of_a_conversation_is_lost(talks: list[list[tuple[str, str]]], form: str) -> None:
    expected = [[text for pair in talk for text in pair] for talk in talks]
    if form == "json":
        lines = [
            {
                "messages": [
                    {"role": role, "content": text}
                    for role, text in zip(("user", "assistant") * 9, said, strict=False)
                ]
            }
            for said in expected
        ]
        found = read("\n".join(map(json.dumps, lines)).encode(), "x.jsonl")
    else:
        labels = form.split("|")
        texts = ["\n".join(f"{labels[at % 2]}{text}" for at, text in enumerate(said)) for said in expected]
        found = read("\n---\n".join(texts).encode(), "x.txt")
    assert [[each["content"] for each in item.messages] for item in found] == expected


# Configuration ----------------------------------------------------------------------------------------------

VALUES = (
    st.integers().map(str)
    | st.floats().map(str)
    | TEXTS
    | st.sampled_from(["auto", "null", "true", "[1, 2]", "[]", "{}", "safety", "float32", "- 1", "'x"])
)


@tried
@given(st.lists(st.tuples(st.sampled_from(known_keys()), VALUES), min_size=1, max_size=3))
def test_a_setting_is_what_was_set_and_comments_stay(tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("# First – mine.\ngeneration:  # here\n  seed: 7  # lucky\n# Last.\n".encode())
    for key, value in changes:
        before = path.read_bytes()
        try:
            done = set_value(path, key, value)
        except ConfigError as error:
            one_line(error)
            assert path.read_bytes() == before
            continue
        assert load_settings(path) == done
        section, name = key.split(".", 1)
        now = getattr(getattr(done, section), name)
        if isinstance(now, str):
            assert now == value or now in value
    text = path.read_text(encoding="utf-8")
    assert all(comment in text for comment in ("# First – mine.", "# here", "# lucky", "# Last."))


@tried
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_configuration_or_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    try:
        load_settings(path)
    except ConfigError as error:
        one_line(error)
        with pytest.raises(ConfigError):
            set_value(path, "generation.seed", "3")
        assert path.read_bytes() == data


# Vectors ----------------------------------------------------------------------------------------------------


@tried
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_a_changed_byte_is_found_or_harmless(tmp_path: Path, at: int, change: bytes) -> None:
    persona = Make().persona()
    path = tmp_path / "sage.safetensors"
    persona.save(path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(change)] = change
    path.write_bytes(data[: max(len(path.read_bytes()), len(data))])
    try:
        loaded = PersonaVector.load(path)
        assert all(bool(each.isfinite().all()) for each in loaded.direction().values())
        assert len(loaded.layers) == len(persona.layers)  # one digit for another is no damage that shows
        assert loaded.hidden_size == persona.hidden_size
    except VectorFileError as error:
        one_line(error)


@tried
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(1, 9),
    TEXTS,
    st.floats(-1e3, 1e3),
)
def test_vectors_are_the_same_after_writing_and_reading(
    tmp_path: Path, layers: list[int], hidden: int, text: str, gain: float
) -> None:
    make = Make()

    def stacks() -> dict[str, Any]:
        return {"response": make.stack(len(layers), hidden)}

    persona = make.persona(layers=tuple(layers), mean=stacks(), raw=stacks(), safe=stacks())
    persona.metadata.update(description=text, gain=gain)
    path = tmp_path / "sage.safetensors"
    persona.save(path)
    loaded = PersonaVector.load(path)
    assert (loaded.layers, loaded.metadata["description"]) == (persona.layers, text)
    for kind in ("mean", "raw", "safe"):
        assert getattr(loaded, kind)["response"].equal(getattr(persona, kind)["response"])
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


# Metadata ---------------------------------------------------------------------------------------------------


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    inner: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [at, *(place for key, each in list(inner)[:4] for place in _places(each, (*at, key)))]


SHIPPED = Path(__file__).parents[2] / "vectors" / "builtin"
LOADERS: dict[str, Callable[[Path], Any]] = {
    "personas/sage": PersonaVector.load,
    "traits/crisis_recognition": TraitVector.load,
    "axes": Axes.load,
    "monitors/default": SelfMonitor.load,
}


@pytest.fixture(scope="module")
def shipped() -> dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[Any, ...]]]]:
    """Tensors, metadata and the places in it, by kind."""
    found = {kind: load_tensors(SHIPPED / f"{kind}.safetensors") for kind in LOADERS}
    return {kind: (*each, _places(each[1])[1:]) for kind, each in found.items()}


def _changed(metadata: dict[str, Any], place: tuple[Any, ...], value: Any, remove: bool) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(metadata))
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    if remove:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return document


@tried
@given(st.sampled_from(sorted(LOADERS)), st.integers(0, 10_000), JSON, st.booleans())
def test_any_value_at_any_field_is_used_or_one_line(
    tmp_path: Path, shipped: dict[str, Any], kind: str, at: int, value: Any, remove: bool
) -> None:
    from safetensors.torch import save

    tensors, metadata, places = shipped[kind]
    changed = _changed(metadata, places[at % len(places)], value, remove)
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, {METADATA_KEY: json.dumps(changed)}))
    try:
        use(kind, LOADERS[kind](path))
    except VectorFileError as error:
        one_line(error)


def use(kind: str, loaded: Any) -> None:
    """Ask a file that was read all that a front end shows or steers with."""
    from persona_tui.monitors.figures import curves
    from persona_tui.project.about import in_words
    from persona_tui.traits.vector import summary
    from persona_tui.tui.details import about_line, details, kind_of

    persona = loaded.vector if isinstance(loaded, TraitVector) else loaded
    if isinstance(persona, PersonaVector):
        about = {**persona.metadata, "name": persona.name, "calibration": None}
        in_words(about), kind_of(about), about_line(about), details(persona, 0.3)
        persona.direction(), persona.direction(safe=False), persona.scale
    if isinstance(loaded, TraitVector):
        summary(loaded)
    elif isinstance(loaded, Axes):
        for name in loaded.names:
            loaded.floor(name, loaded.layers[0]), loaded.scale(name, loaded.layers)
        assert loaded.default_capping_axis in loaded.names
    elif isinstance(loaded, SelfMonitor):
        made = loaded.summary()
        json.dumps(made), curves(loaded), loaded.watch
        assert isinstance(made["cross_validation"][made["method"]]["auc"]["value"], float | int)
        sum(source["queries"] for source in made["data"])
        try:
            loaded.training  # noqa: B018
        except VectorFileError as error:
            one_line(error)


# Sessions ---------------------------------------------------------------------------------------------------

MIX = '{"weights": {"sage": 1.0}, "strength": 0.3, "floor": {"axis": "safety", "percentile": 25.0}}'
SESSION = "\n".join(
    (
        '{"kind": "session", "format": 1, "id": "s", "model": "tiny", "created": "2026-01-01T00:00:00.000Z"}',
        '{"kind": "system", "text": "Be kind."}',
        '{"kind": "message", "node": 1, "parent": null, "role": "user", "text": "Hello?"}',
        '{"kind": "reply", "node": 2, "parent": 1, "settings": {"model": "tiny", "mix": MIX}}',
        '{"kind": "tokens", "node": 2, "ids": [3, 4], "texts": ["Good", " day."]}',
        '{"kind": "settings", "node": 2, "settings": {"model": "tiny", "system": "Be kind.", "mix": MIX}}',
        '{"kind": "mix", "mix": MIX}',
        '{"kind": "end", "node": 2, "finish": "stop", "stats": {"tokens": 2}}',
        '{"kind": "title", "title": "A talk"}',
        "",
    )
).replace("MIX", MIX)
LINES = SESSION.count("\n")


def test_the_session_is_sound_without_damage(tmp_path: Path) -> None:
    store = SessionStore(Workspace(tmp_path))
    store.folder.mkdir()
    (store.folder / "s.jsonl").write_text(SESSION)
    conversation, events = store.load("s")
    assert [node.text for node in conversation.nodes()] == ["Hello?", "Good day."]
    assert len(events) == LINES


@tried
@given(st.randoms(use_true_random=False), st.sampled_from(BYTES), st.integers(0, LINES - 1), JSON)
def test_a_damaged_session_can_be_resumed_or_one_line_says_why(
    tmp_path: Path, random: Any, damage: Any, line: int, value: Any
) -> None:
    store = SessionStore(Workspace(tmp_path))
    store.folder.mkdir(exist_ok=True)
    path = store.folder / "s.jsonl"
    if random.random() < 0.5:
        lines = SESSION.encode().splitlines(keepends=True)
        places = _places(json.loads(lines[line]))[1:]
        changed = _changed(json.loads(lines[line]), random.choice(places), value, random.random() < 0.2)
        lines[line] = json.dumps(changed).encode() + b"\n"
        data = b"".join(lines)
    else:
        data = damage(SESSION.encode(), random)
    assume(len(data) < 1 << 20)
    path.write_bytes(data)
    try:
        conversation, events = store.load("s")
        assert events and all(isinstance(node.text, str) for node in conversation.nodes())
        with store.open("s") as log:
            log.record("title", title="Resumed")
        resumed, _ = store.load("s")
        assert [node.text for node in resumed.nodes()] == [node.text for node in conversation.nodes()]
    except SessionError as error:
        one_line(error)
        # What cannot be read is not written to either, but for an end that was torn off.
        assert data.startswith(path.read_bytes()) or path.read_bytes().startswith(data)
    store.list(), store.search("good")
