"""Turns of conversations in the forms that people have: two tables, one of objects and one of labelled text.

A new form is one more row. Each says whether it `matches` a value or a text, and how to `read` it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from persona_tui.core.errors import DatasetError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "customer", "client", "you", "q", "question"), "user"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "claude", "gemini", "copilot", "agent"), "assistant"),
    **dict.fromkeys(("model", "bot", "ai", "chatbot", "a", "answer"), "assistant"),
}
SKIPPED = "a message without text (for example a tool call) is skipped"
NO_TEXT = "a part that is not text is left out"

_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
)
_BEGINNINGS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>")
_THOUGHT = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_THOUGHT_END = re.compile(r"^[ \t]*</(?:think|thinking)>[ \t]*$", re.MULTILINE)


class TranscriptError(DatasetError):
    """Something is not a conversation."""


@dataclass(frozen=True)
class Turn:
    """One message: its role, what it says, and what was thought before it was said."""

    role: str
    content: str
    thought: str = ""


def turn(role: str, content: str, thought: str = "") -> Turn:
    """Make a turn of a raw text: without end tokens behind it, and a reply's thoughts apart."""
    content = _without_ends(content)
    if role == "assistant":
        found, content = _split_thought(content)
        thought = _joint(thought.strip(), found)
    return Turn(role, content, thought)


def _without_ends(text: str) -> str:
    text = text.strip()
    while True:
        ends = (*_ENDS, "</s>") if "<s>" not in text else _ENDS  # a struck-through word is no end
        end = next((end for end in ends if text.endswith(end)), None)
        if end is None:
            return text
        text = text.removesuffix(end).rstrip()


def _split_thought(text: str) -> tuple[str, str]:
    """The thoughts that a reply begins with, and the rest. Without an end everything is a thought."""
    if opened := _THOUGHT.match(text):
        return opened[2].strip(), text[opened.end() :].strip()
    if closed := _THOUGHT_END.search(text):  # some templates write the opening tag themselves
        return text[: closed.start()].strip(), text[closed.end() :].strip()
    return "", text


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """Return neighbours of one role as one turn, with an empty line between them."""
    found: list[Turn] = []
    for each in turns:
        if found and found[-1].role == each.role:
            last = found.pop()
            each = Turn(each.role, _joint(last.content, each.content), _joint(last.thought, each.thought))
        found.append(each)
    return found


def _joint(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


# Objects ----------------------------------------------------------------------------------------------------


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


_LISTS = ("messages", "conversations", "conversation", "chat_messages")
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
_OF_ALL_FORMS = frozenset({"id", "label", "turn", "system"})


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
    """What a message says, and what it says that it thought."""
    known = [key for key in ("content", "value", "text") if item.get(key) is not None]
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
        text = part.get("text") if isinstance(part, dict) else part
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


def _listed(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    key = next(key for key in _LISTS if key in value)
    if not isinstance(value[key], list) or not value[key]:
        raise TranscriptError(f'"{key}" must be a non-empty list of messages')
    return [("", value[key])]


def _pair(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    asked, answered = _pair_of(value) or ("", "")
    question = value[asked]
    extra = value.get("input")
    if asked == "instruction" and isinstance(extra, str) and extra.strip():
        question = f"{question}\n\n{extra}"
    answer = value[answered]
    reply = list(answer) if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    return [("", [*_as_messages(question, "user"), *reply])]


def _pair_of(value: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in value and pair[1] in value), None)


def _preference(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """The conversation with either reply. A reply may be the whole conversation again."""
    key = next((key for key in (*_QUESTIONS, *_LISTS) if value.get(key)), None)
    before = [] if key is None else _as_messages(value[key], "user")
    found = []
    for part in ("chosen", "rejected"):
        said = _as_messages(value[part], "assistant")
        whole = any(isinstance(each, dict) and _is_user(each) for each in said)
        found.append((part, said if whole else [*before, *said]))
    return found


def _is_user(message: dict[str, Any]) -> bool:
    return ROLES.get(str(message.get("role", message.get("from"))).casefold()) == "user"


def _batch_body(value: dict[str, Any]) -> Any:
    """The answer, or else the request, of a line of a batch service."""
    response = value.get("response")
    return response.get("body") if isinstance(response, dict) else value.get("body")


def _batch(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    body = _batch_body(value)
    return _form_of(body).read(body)


def _choices(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    several = len(value["choices"]) > 1
    return [
        (f"choice {place}" if several else "", [choice["message"]])
        for place, choice in enumerate(value["choices"], start=1)
    ]


def _branch(value: dict[str, Any]) -> list[tuple[str, Raw]]:
    """The current branch of an exported chat, from its last message back to its first."""
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
    Form(lambda value: isinstance(_batch_body(value), dict), _batch),
    Form(_has_choices, _choices),
    Form(lambda value: isinstance(value.get("mapping"), dict), _branch),
    Form(
        lambda value: "chosen" in value and "rejected" in value,
        _preference,
        frozenset({"chosen", "rejected", *_QUESTIONS, *_LISTS}),
        compared=True,
    ),
    Form(lambda value: any(key in value for key in _LISTS), _listed, frozenset(_LISTS)),
    Form(
        lambda value: _pair_of(value) is not None,
        _pair,
        frozenset(key for pair in _PAIRS for key in pair),
    ),
)


# Labelled text ----------------------------------------------------------------------------------------------

_WORDS = r"(?P<who>system|user|human|customer|client|assistant|agent|chatbot|bot|ai|chatgpt|gpt|model)"
_SEPARATOR = re.compile(r"(?:^|\n)[ \t]*-{3,}\s*\Z")


@dataclass(frozen=True)
class Style:
    """A way to write a text's turns: what opens one, with the speaker as the group `who`."""

    opener: re.Pattern[str]

    def matches(self, text: str) -> bool:
        """Whether a text begins with a turn, and both a user and an assistant speak in it."""
        roles: set[str] = set()
        for place, match in enumerate(self.opener.finditer(text)):
            if place == 0 and text[: match.start()].strip() not in ("", *_BEGINNINGS):
                return False
            roles.add(_role(match))
            if {"user", "assistant"} <= roles:
                return True
        return False

    def read(self, text: str) -> Iterator[tuple[int, list[Turn]]]:
        """Yield conversations, each with its first line, from 1.

        A line of dashes stands between two, where a user or a system prompt follows it.
        """
        openers = list(self.opener.finditer(text))
        turns: list[Turn] = []
        line, begun, counted = 1, 1, 0
        for match, after in zip(openers, [*openers[1:], None], strict=True):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            begun = begun if turns else line
            content = text[match.end() : after.start() if after else len(text)]
            ends = after is not None and _role(after) != "assistant" and _SEPARATOR.search(content)
            turns.append(turn(_role(match), content[: ends.start()] if ends else content))
            if ends:
                yield begun, joined(turns)
                turns = []
        yield begun, joined(turns)


def _role(match: re.Match[str]) -> str:
    return ROLES[match["who"].casefold()]


def _style(pattern: str) -> Style:
    return Style(re.compile(pattern.replace("WHO", _WORDS), re.IGNORECASE | re.MULTILINE))


STYLES = (
    _style(r"<\|im_start\|>WHO[ \t]*\n?"),
    _style(r"<\|start_header_id\|>WHO<\|end_header_id\|>\s*"),
    _style(r"<start_of_turn>WHO[ \t]*\n?"),
    _style(r"<\|turn>WHO[ \t]*\n?"),
    _style(r"<\|WHO\|>[ \t]*\n?"),
    _style(r"^[ \t]*WHO[ \t]*:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*|__)WHO[ \t]*(?::(?:\*\*|__)|(?:\*\*|__)[ \t]*:)[ \t]*"),
    _style(r"^#{1,6}[ \t]+(?:\*\*)?WHO[ \t]*:?(?:\*\*)?[ \t]*$"),
    _style(r"^[ \t]*(?:#{1,6}[ \t]+)?(?P<who>you|chatgpt|claude|gemini|copilot)[ \t]+said:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*)?(?P<who>question|answer|q|a)[ \t]*:(?:\*\*)?[ \t]*"),
)


def style_of(text: str) -> Style | None:
    """Return the way in which a text's turns are written, or None if it has none that we know."""
    return next((style for style in STYLES if style.matches(text)), None)
