"""Conversations in the objects that services, trainers and exports write: a table, a row for each form.

A new form is one more row. Each says whether it `matches` an object, and how to `read` it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from persona_tui.datasets.turns import ROLES, TranscriptError, Turn, joined, joint, style_of, turn

_CALLS = ("function_call", "tool_call", "tool_calls")  # roles of what is no text
SKIPPED = "a message without text (for example a tool call) is skipped"
NO_TEXT = "a part that is not text is left out"


@dataclass(frozen=True)
class TurnsRead:
    """One conversation in an object.

    Attributes:
        part: which of several, such as "chosen"; "" = the only one.
        turns: what was said.
        judged: the first turn whose reply counts; those before are shared with the other parts.
        notes: what was not read, for people.
    """

    part: str
    turns: list[Turn]
    judged: int = 0
    notes: tuple[str, ...] = ()


Raw = list[Any]  # messages as they stand in the object


@dataclass(frozen=True)
class Form:
    """A kind of object.

    Attributes:
        matches: whether an object is one.
        read: its conversations: a part's name, and raw messages.
        keys: the keys that it reads; None = it explains the whole object.
        compared: whether its parts are alternatives: only the turns in which they differ count.
    """

    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], list[tuple[str, Raw]]]
    keys: frozenset[str] | None = None
    compared: bool = False


_LISTS = ("messages", "conversations", "conversation", "chat_messages", "contents")
_QUESTIONS = ("prompt", "question", "instruction", "input")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("user", "assistant"),
    ("input", "output"),
    ("question", "answer"),
    ("human", "assistant"),
    ("query", "response"),
)
_OF_ALL_FORMS = frozenset({"id", "label", "kto_tag", "turn", "system"})


def read_object(value: dict[str, Any]) -> list[TurnsRead]:
    """Return the conversations in an object of any form.

    Raises:
        TranscriptError: it has none that can be read, in a few words.
    """
    form = _form_of(value)
    unread = () if form.keys is None else sorted(set(value) - form.keys - _OF_ALL_FORMS)
    told = tuple(f'"{key}" is not read' for key in unread)
    found = []
    for part, raw in form.read(value):
        notes: Counter[str] = Counter(told)
        found.append(TurnsRead(part, joined(_turns(raw, notes)), 0, tuple(notes.elements())))
    if not form.compared:
        return found
    first, second = (each.turns for each in found)
    same = next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    return [TurnsRead(each.part, each.turns, min(same, len(each.turns) - 1), each.notes) for each in found]


def is_object(value: dict[str, Any]) -> bool:
    """Return whether an object is of a form that is known."""
    return any(form.matches(value) for form in FORMS)


def raw_messages(value: dict[str, Any]) -> Raw:
    """Return the messages of an object's first conversation, as they stand there.

    Raises:
        TranscriptError: it is of no known form.
    """
    return _form_of(value).read(value)[0][1]


def _form_of(value: dict[str, Any]) -> Form:
    form = next((form for form in FORMS if form.matches(value)), None)
    if form is None:
        raise TranscriptError('"messages" is missing: a list of objects with "role" and "content"')
    return form


def read_messages(raw: Raw) -> TurnsRead:
    """Return the conversation in a bare list of messages."""
    notes: Counter[str] = Counter()
    turns = joined(_turns(raw, notes))
    return TurnsRead("", turns, 0, tuple(notes.elements()))


def _turns(raw: Raw, notes: Counter[str]) -> Iterator[Turn]:
    for place, item in enumerate(raw, start=1):
        if not isinstance(item, dict):
            raise TranscriptError(f"message {place} is not an object with a role and a content")
        name = item.get("role", item.get("from", item.get("sender")))
        author = item.get("author")
        if name is None and isinstance(author, dict):
            name = author.get("role")
        if str(name).casefold() in _CALLS:
            notes[SKIPPED] += 1
            continue
        role = ROLES.get(str(name).casefold())
        if role is None:
            raise TranscriptError(f"message {place} has the unknown role {json.dumps(name)[:40]}")
        text, thought = _content(item, role, place, notes)
        said = turn(role, text, thought)
        if said.content or said.thought:
            yield said
        else:
            notes[SKIPPED] += 1


def _content(item: dict[str, Any], role: str, place: int, notes: Counter[str]) -> tuple[str, str]:
    """Return what a message says, and what it says that it thought."""
    # What a model declines with is what it says.
    known = [key for key in ("content", "value", "text", "parts", "refusal") if item.get(key) is not None]
    content = item[known[0]] if known else None
    thought = next((item[key] for key in _THOUGHT_KEYS if isinstance(item.get(key), str)), "")
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, str):
        return content, thought
    if isinstance(content, list):
        return _parts(content, thought, notes)
    if (content is None and (role == "assistant" or "content" in item)) or isinstance(content, dict):
        return "", thought
    raise TranscriptError(f"message {place} has no text as its content")


_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


def _parts(parts: list[Any], thought: str, notes: Counter[str]) -> tuple[str, str]:
    said = list[str]()
    thoughts = [thought] if thought else []
    for part in parts:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        thinks = isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")
        if thinks:
            text = part.get("thinking", text)
        if not isinstance(text, str):
            notes[NO_TEXT] += 1
        else:
            (thoughts if thinks else said).append(text)
    return "\n".join(said), "\n\n".join(thoughts)


def _as_messages(value: Any, role: str) -> Raw:
    if isinstance(value, dict):
        return [value]
    if isinstance(value, str) and role == "assistant" and (style := style_of(value)):
        return [
            {"role": each.role, "content": each.content} for _, said in style.read(value) for each in said
        ]
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


_SYSTEMS = ("systemInstruction", "system_instruction")


def _listed(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    key = next(key for key in _LISTS if key in value)
    if not isinstance(value[key], list) or not value[key]:
        raise TranscriptError(f'"{key}" must be a non-empty list of messages')
    system = next((value[each] for each in _SYSTEMS if isinstance(value.get(each), dict)), None)
    return [("", [*([] if system is None else [{**system, "role": "system"}]), *value[key]])]


def _pair(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    asked, answered = _pair_of(value) or ("", "")
    question = value[asked]
    if asked == "instruction":
        more = [value[key] for key in ("input", "context") if isinstance(value.get(key), str)]
        question = joint(str(question), *(each for each in more if each.strip()))
    said = list(_style_of_prompt(question) or _as_messages(question, "user"))
    answer = value[answered]
    reply = list(answer) if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    return [("", [*_history(value.get("history")), *said, *reply])]


def _history(pairs: Any) -> Raw:
    """Earlier turns, as pairs of what was asked and answered."""
    if not pairs:
        return []
    if not isinstance(pairs, list) or not all(isinstance(each, list) and len(each) == 2 for each in pairs):
        raise TranscriptError('"history" must be a list of pairs: what was said, and the reply')
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _style_of_prompt(text: Any) -> Raw | None:
    """Return the turns of a prompt that is a labelled text, and ends where the reply has to begin."""
    style = style_of(text) if isinstance(text, str) else None
    turns = [each for _, said in style.read(text) for each in said] if style is not None else []
    if not turns or turns[-1] != Turn("assistant", ""):
        return None
    return [{"role": each.role, "content": each.content} for each in turns[:-1]]


def _pair_of(value: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in value and pair[1] in value), None)


_PREFERRED = {"chosen": "preferred_output", "rejected": "non_preferred_output"}  # the latter are OpenAI's


def _preference(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """Return the conversation with either reply. A reply may be the whole conversation again."""
    key = next((key for key in (*_QUESTIONS, *_LISTS) if value.get(key)), None)
    asked = [] if key is None else value[key]
    if isinstance(asked, dict) and is_object(asked):
        before = raw_messages(asked)
    else:
        before = _as_messages(asked, "user")
    found = []
    for part, own in _PREFERRED.items():
        said = _as_messages(value[part if part in value else own], "assistant")
        whole = any(isinstance(each, dict) and _is_user(each) for each in said)
        found.append((part, said if whole else [*before, *said]))
    return found


def _is_user(message: dict[str, Any]) -> bool:
    return ROLES.get(str(message.get("role", message.get("from"))).casefold()) == "user"


def _batch_body(value: dict[str, Any]) -> Any:
    """Return the answer, or else the request, of a line of a batch service."""
    response = value.get("response")
    return response.get("body") if isinstance(response, dict) else value.get("body")


def _batch(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    body = _batch_body(value)
    failed = body.get("error")
    if failed:
        raise TranscriptError(f"this request has failed: {_reason(failed)}")
    return _form_of(body).read(body)


def _failed(value: dict[str, Any]) -> Any:
    """Return why a line of a batch service has no answer; None if it has one."""
    result = value.get("result")
    if isinstance(result, dict) and result.get("type", "succeeded") != "succeeded":
        return result.get("error") or result["type"]
    return value.get("error") if "custom_id" in value and not value.get("response") else None


def _refuse(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    raise TranscriptError(f"this request has failed: {_reason(_failed(value))}")


def _reason(error: Any) -> str:
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    said = error.get("message", error.get("code", error.get("type"))) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:100]


def _of_items(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """Return an answer of OpenAI's responses API: its messages, and how many other items there are."""
    asked, system = value.get("input"), value.get("instructions")
    front = [{"role": "system", "content": system}] if isinstance(system, str) else []
    others = {"role": "assistant", "content": None}
    said = [each if _is_item(each) else others for each in value["output"]]
    return [("", [*front, *([] if asked is None else _as_messages(asked, "user")), *said])]


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "message"


def _chunks(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """Return a chat of AI Studio."""
    chunks = [each for each in value["chunkedPrompt"].get("chunks", []) if isinstance(each, dict)]
    return [
        (
            "",
            [
                {"role": each.get("role"), "thinking": each.get("text"), "content": None}
                if each.get("isThought")
                else each
                for each in chunks
            ],
        )
    ]


def _inside(*path: str) -> Form:
    """Return what lies deeper in an object, and is of another form or a single message."""

    def inner(value: Any) -> dict[str, Any]:
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def read(value: dict[str, Any]) -> list[tuple[str, Raw]]:
        found = inner(value)
        return [("", [found])] if "role" in found else _form_of(found).read(found)

    def matches(value: dict[str, Any]) -> bool:
        found = inner(value)
        return bool(found) and ("role" in found or is_object(found))

    return Form(matches, read)


def _choices(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    if not value["choices"]:
        raise TranscriptError("this answer has no choices, so nothing was said")
    several = len(value["choices"]) > 1
    return [
        (f"choice {place}" if several else "", [choice["message"]])
        for place, choice in enumerate(value["choices"], start=1)
    ]


def _branch(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """Return the current branch of an exported chat, from its last message back to its first."""
    nodes: dict[str, Any] = value["mapping"]
    place = value.get("current_node")
    if not isinstance(place, str) or place not in nodes:
        ends = [key for key, node in nodes.items() if isinstance(node, dict) and not node.get("children")]
        place = ends[-1] if ends else None
    said: Raw = []
    seen: set[str] = set()
    while isinstance(place, str) and place in nodes and place not in seen:
        seen.add(place)
        node = nodes[place] if isinstance(nodes[place], dict) else {}
        if isinstance(node.get("message"), dict):
            said.append(node["message"])
        place = node.get("parent")
    return [("", said[::-1])]


def _has_choices(value: dict[str, Any]) -> bool:
    choices = value.get("choices")
    return isinstance(choices, list) and all(
        isinstance(each, dict) and isinstance(each.get("message"), dict) for each in choices
    )


FORMS = (
    Form(lambda value: _failed(value) is not None, _refuse),
    Form(lambda value: isinstance(_batch_body(value), dict), _batch),
    _inside("result", "message"),  # Anthropic's batches
    _inside("chat"),  # Open WebUI's exports
    Form(lambda value: isinstance(value.get("chunkedPrompt"), dict), _chunks),
    Form(lambda value: isinstance(out := value.get("output"), list) and any(map(_is_item, out)), _of_items),
    Form(_has_choices, _choices),
    Form(lambda value: isinstance(value.get("mapping"), dict), _branch),
    Form(
        lambda value: all(part in value or own in value for part, own in _PREFERRED.items()),
        _preference,
        frozenset({*_PREFERRED, *_PREFERRED.values(), *_QUESTIONS, *_LISTS}),
        compared=True,
    ),
    Form(lambda value: any(key in value for key in _LISTS), _listed, frozenset({*_LISTS, *_SYSTEMS})),
    Form(
        lambda value: _pair_of(value) is not None,
        _pair,
        frozenset({"context", "history", *(key for pair in _PAIRS for key in pair)}),
    ),
)
