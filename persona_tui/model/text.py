"""From conversations to token ids, and from token ids back to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError
from persona_tui.model.control import THOUGHTS, control_tokens, template_text
from persona_tui.model.request import Message, is_continued
from persona_tui.model.template import apply_template

ROLES = ("system", "user", "assistant")
BETWEEN = "\n\n"  # stands between messages of one role, which are one turn

# Base models have no chat template; they are shown a conversation as plain text:
#
#     System: <text>
#     User: <text>
#     Assistant:
_PLAIN_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOPS = tuple(f"\n{label}:" for label in _PLAIN_LABELS.values())

# What instruction-tuned models end a turn with, for those that leave it out of their generation config.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
)

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes part of a character to


def is_chat_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer knows how its model wants conversations to be written."""
    return bool(getattr(tokenizer, "chat_template", None))


def check_messages(messages: Sequence[Message]) -> None:
    """Raise a GenerationError unless the conversation can be answered by an assistant."""
    if not messages:
        raise GenerationError("An empty conversation cannot be answered.")
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise GenerationError(
                f"A message needs a role ({', '.join(ROLES)}) and a content, not {str(message)[:80]}."
            )


# What a template adds by itself -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendering:
    """What a template writes that is in no message; kept with whatever was made, and used again.

    Attributes:
        date: "today" for the template, as in ISO 8601; None = the template writes no date.
        default_system: what stands in the place of a missing system prompt; None = the template's own.
        thinking: whether the model may think before it answers, if its template can ask for that.
    """

    date: str | None = None
    default_system: str | None = None
    thinking: bool = False

    @classmethod
    def now(cls, tokenizer: PreTrainedTokenizerBase) -> Rendering:
        """Return what the tokenizer's template adds at this moment."""
        facts = _facts(tokenizer)
        date = datetime.now().isoformat(timespec="seconds") if facts.dated else None
        return cls(date, facts.default_system or None)

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Rendering | None:
        """Return what `record` gave; None if there is nothing."""
        if not record:
            return None
        date, system = record.get("date"), record.get("default_system")
        thinking = record.get("thinking") is True
        return cls(None if date is None else str(date), None if system is None else str(system), thinking)

    def record(self) -> dict[str, Any]:
        """Return what there is, for JSON: empty if the template adds nothing."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


_THOUGHT, _THOUGHT_END = THOUGHTS
_NOTHING_FIXED = Rendering()
_MARK = "qz\N{MIDDLE DOT}marker\N{MIDDLE DOT}zq"  # no template has it
_SOME_DAY = "2001-02-03T04:05:06"


@dataclass(frozen=True)
class _Facts:
    """What was found out about a template by rendering markers.

    Attributes:
        takes_system: whether a system message comes out where it was put in.
        default_system: what stands there when there is none; empty if nothing does.
        dated: whether it writes today's date.
        thinks: whether it can leave it to its caller if a reply begins with thoughts.
        opens_thought: whether it then opens them itself, so that a reply begins in the middle of them.
    """

    takes_system: bool = True
    default_system: str = ""
    dated: bool = False
    thinks: bool = False
    opens_thought: bool = False


_found_facts: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, _Facts]] = WeakKeyDictionary()


def _facts(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    template = template_text(tokenizer)
    known = _found_facts.get(tokenizer)
    if known is None or known[0] != template:
        known = _found_facts[tokenizer] = (template, _find_out(tokenizer, template))
    return known[1]


def _find_out(tokenizer: PreTrainedTokenizerBase, template: str) -> _Facts:
    if not template:
        return _Facts()
    user = [{"role": "user", "content": "Hi"}]
    some_day = Rendering(_SOME_DAY)
    dated = "strftime_now" in template and _attempt(tokenizer, user, some_day) != _attempt(
        tokenizer, user, Rendering("2002-03-04T05:06:07")
    )
    thoughtful = _attempt(tokenizer, user, replace(some_day, thinking=True)) or ""
    opens = thoughtful.rstrip().endswith(_THOUGHT)
    thinks = opens or thoughtful != _attempt(tokenizer, user, some_day)
    told = _attempt(tokenizer, [{"role": "system", "content": _MARK}, *user], some_day)
    if told is None or _MARK not in told:
        return _Facts(False, "", dated, thinks, opens)
    untold = _attempt(tokenizer, user, some_day) or ""
    before, after = told.split(_MARK, 1)
    inserted = untold.startswith(before) and untold.endswith(after) and len(untold) > len(before + after)
    default = untold[len(before) : len(untold) - len(after)] if inserted else ""
    return _Facts(True, default, dated, thinks, opens)


def _attempt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering
) -> str | None:
    """Return a conversation in the template's words; None if it refuses that."""
    try:
        return _templated(tokenizer, messages, rendering)
    except TemplateError:
        return None


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering) -> str:
    day = None if rendering.date is None else datetime.fromisoformat(rendering.date)
    text = apply_template(tokenizer, messages, rendering.thinking, day)
    if not rendering.thinking and text.rstrip().endswith(_THOUGHT):  # a template without such a switch
        text = f"{text.rstrip()}\n\n{_THOUGHT_END}\n\n"
    return text


# Rendering --------------------------------------------------------------------------------------------------


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering | None = None
) -> str:
    """Return the text of a conversation up to where the assistant's next words begin.

    Written with the model's chat template, or as plain text for a base model. A conversation that ends with
    words of the assistant goes on from there, in the same turn. Neighbours of one role are one turn, with an
    empty line between them. Where the template insists, a greeting follows an empty message, and a system
    prompt that it would drop begins the first message.

    Args:
        tokenizer: of the model.
        messages: the conversation.
        rendering: what the template adds; None = what it adds now.

    Raises:
        GenerationError: the template refuses the conversation all the same.
    """
    return control_tokens(tokenizer).unmark(render_marked(tokenizer, messages, rendering))


def render_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering | None = None
) -> str:
    """Return `render`'s text with the control tokens in contents marked, for `encode_marked`."""
    check_messages(messages)
    controls = control_tokens(tokenizer)
    marked = [
        {**each, "content": controls.mark(each["content"], reply=each["role"] == "assistant")}
        for each in messages
    ]
    turns = joined(marked)
    begun = turns.pop()["content"] if is_continued(turns) else None
    if not is_chat_tokenizer(tokenizer):
        lines = [f"{_PLAIN_LABELS[each['role']]}: {each['content']}" for each in turns]
        return "\n".join([*lines, "Assistant:"]) + ("" if begun is None else f" {begun}")
    rendering = rendering or _NOTHING_FIXED
    if begun is None or not begun.startswith(_THOUGHT):
        return _accepted(tokenizer, turns, rendering) + (begun or "")
    prompt = _accepted(tokenizer, turns, replace(rendering, thinking=True))
    opened = prompt.rstrip()
    return (opened.removesuffix(_THOUGHT) if opened.endswith(_THOUGHT) else prompt) + begun


def can_think(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a template can have replies begin with thoughts, or without."""
    return is_chat_tokenizer(tokenizer) and _facts(tokenizer).thinks


def opened_thought(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering | None = None
) -> str:
    """Return what the prompt has opened and the reply goes on with: `<think>`, or nothing."""
    if rendering is None or not rendering.thinking or is_continued(messages):
        return ""
    return f"{_THOUGHT}\n" if can_think(tokenizer) and _facts(tokenizer).opens_thought else ""


def joined(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with neighbours of one role as one message, an empty line between them."""
    turns: list[Message] = []
    for each in messages:
        if turns and turns[-1]["role"] == each["role"]:
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}{BETWEEN}{each['content']}"}
        else:
            turns.append(dict(each))
    return turns


def _accepted(tokenizer: PreTrainedTokenizerBase, turns: list[Message], rendering: Rendering) -> str:
    """Return the first form of a conversation that the template takes, system prompt included."""
    default, facts = rendering.default_system, _facts(tokenizer)
    if default is not None and default != facts.default_system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": default}, *turns]
    system = turns[0]["content"].strip() if turns[0]["role"] == "system" else ""
    forms = [turns, _after_empty(turns)] if facts.takes_system or not system else []
    if turns[0]["role"] == "system" and (system or turns[1:]):
        forms.append(_without_system(turns))
    refusal: Exception | None = None
    for form in forms:
        try:
            text = _templated(tokenizer, form, rendering)
        except TemplateError as error:
            refusal = refusal or error
            continue
        if system in text:
            return text
    why = "it drops the system prompt" if refusal is None else " ".join(str(refusal).split())
    raise GenerationError(f"The model's chat template refuses this conversation: {why}.") from refusal


def _after_empty(turns: Sequence[Message]) -> list[Message]:
    """Return the same conversation with an empty message before a greeting or after a system prompt."""
    first = 1 if turns[0]["role"] == "system" else 0
    if first < len(turns) and turns[first]["role"] == "user":
        return list(turns)
    return [*turns[:first], {"role": "user", "content": ""}, *turns[first:]]


def _without_system(turns: Sequence[Message]) -> list[Message]:
    """Return the same conversation for a template that knows no system turn: its text opens the first user
    turn.
    """
    system, *rest = turns
    if not system["content"].strip():
        return rest
    return joined([{"role": "user", "content": system["content"]}, *rest])


# Encoding ---------------------------------------------------------------------------------------------------


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], rendering: Rendering | None = None
) -> list[int]:
    """Return the token ids of `render`: those of `apply_chat_template`, but for control tokens in contents.

    Those are text. Without a template, the tokenizer's own special tokens are around the text.
    """
    return encode_marked(
        tokenizer, render_marked(tokenizer, messages, rendering), special=not is_chat_tokenizer(tokenizer)
    )


def message_span(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    ids: Sequence[int],
    rendering: Rendering | None = None,
) -> range:
    """Return which of a prompt's tokens are the user's last message: those that change when it is left empty.

    Args:
        tokenizer: wrote `ids`.
        messages: the conversation.
        ids: its `encode_prompt`.
        rendering: as it was for that.

    Returns:
        At least one token; the whole prompt where the template takes no empty message.
    """
    at = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=-1)
    emptied = [dict(each) for each in messages]
    emptied[at]["content"] = ""
    try:
        other = encode_prompt(tokenizer, emptied, rendering)
    except GenerationError:
        return range(len(ids))
    shorter = min(len(ids), len(other))
    start = next((place for place in range(shorter) if ids[place] != other[place]), shorter)
    same = (back for back in range(shorter - start) if ids[-1 - back] != other[-1 - back])
    stop = len(ids) - next(same, shorter - start)
    return range(start, stop) if start < stop else range(len(ids) - 1, len(ids))


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a response as it would follow its prompt, without an end of turn."""
    marked = control_tokens(tokenizer).mark(text, reply=True)
    return encode_marked(tokenizer, marked if is_chat_tokenizer(tokenizer) else f" {marked}", special=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Return the token ids of a content, in which control tokens are text.

    Args:
        tokenizer: of the model.
        text: what somebody wrote.
        special: whether the tokenizer's own special tokens are put around it.
    """
    return encode_marked(tokenizer, control_tokens(tokenizer).mark(text), special=special)


MOST_CHARACTERS = 1 << 23  # a tokenizer needs more than a hundred bytes for each


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Return the token ids of a text whose contents were marked, as by `render_marked`."""
    if len(text) > MOST_CHARACTERS:
        raise GenerationError(
            f"A text has {len(text):,} characters; more than {MOST_CHARACTERS:,} are not read at once."
        )
    return control_tokens(tokenizer).encode(text, special=special)


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids, special tokens left out."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token id that ends the assistant's turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, (list, tuple)) else [configured])
    ids.add(tokenizer.eos_token_id)
    specials = tokenizer.get_added_vocab()
    ids.update(specials.get(token) for token in _TURN_ENDS)
    ids.add(_written_end(tokenizer))
    return frozenset(int(each) for each in ids if each is not None)


def _written_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token that the template writes behind a reply, if it does."""
    if not is_chat_tokenizer(tokenizer):
        return None
    turns = [{"role": role, "content": _MARK} for role in ("user", "assistant", "user")]
    written = (_attempt(tokenizer, turns, Rendering(_SOME_DAY)) or "").split(_MARK)
    behind = written[2] if len(written) == 4 else ""
    controls = control_tokens(tokenizer).ids
    return next(
        (id for name, id in controls.items() if behind.startswith(name) and name not in THOUGHTS), None
    )


def pad_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Return an id to fill rows up with, one of an embedding's `rows`. It is masked, so any will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and token < rows:
            return int(token)
    return 0


def first_stop(text: str, stops: Sequence[str]) -> int:
    """Return where the first of some stop texts begins, or the length of the text."""
    return min((at for at in (text.find(stop) for stop in stops) if at >= 0), default=len(text))


class TextStream:
    """Turns a growing list of token ids into pieces of text that are never taken back.

    Characters that are spread over several tokens appear once they are whole, and what may be the beginning
    of a stop text is held back until it is clear that it is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str] = (),
        before: Sequence[int] = (),
        opened: str = "",
    ) -> None:
        """
        Args:
            tokenizer: of the model that writes.
            stops: texts that end the writing.
            before: the last tokens of a text that goes on; what follows then keeps its leading space.
            opened: what the text begins with, though no token of it is fed.
        """
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = list(before)
        self._settled = len(before)  # tokens before this one are decoded for good
        self._context = 0  # decoding starts here: a token's text can depend on the one before
        self._pending = opened
        self._begun = bool(before)
        self._stopped = False

    def feed(self, token: int) -> str:
        """Return the new text that a token brings; often one word, sometimes nothing."""
        self._ids.append(token)
        before = decode_ids(self._tokenizer, self._ids[self._context : self._settled])
        after = decode_ids(self._tokenizer, self._ids[self._context :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return self._release(after[len(before) :], final=False)

    def finish(self) -> str:
        """Return what was still held back when the last token has been fed."""
        before = decode_ids(self._tokenizer, self._ids[self._context : self._settled])
        after = decode_ids(self._tokenizer, self._ids[self._context :])
        return self._release(after[len(before) :].rstrip(_UNFINISHED), final=True)

    def _release(self, new: str, *, final: bool) -> str:
        text = self._pending + new
        if not self._begun:
            text = text.lstrip()  # base models and some templates begin with a space
        if self._stopped or not text:
            return ""
        end = first_stop(text, self._stops)
        self._stopped = end < len(text)
        if not self._stopped and not final:
            end = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._begun = self._begun or end > 0
        self._pending = "" if self._stopped else text[end:]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
