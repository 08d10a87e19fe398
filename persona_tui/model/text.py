"""From conversations to token ids, and from token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")

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
    """Whether the tokenizer knows how its model wants conversations to be written."""
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


def is_continued(messages: Sequence[Message]) -> bool:
    """Whether the answer to a conversation goes on with what the assistant said last."""
    return len(messages) > 1 and messages[-1]["role"] == "assistant"


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text of a conversation up to where the assistant's next words begin.

    Written with the model's chat template, or as plain text for a base model. A conversation that ends with
    words of the assistant goes on from there, in the same turn.
    """
    check_messages(messages)
    if is_continued(messages):
        begun = messages[-1]["content"]
        return render(tokenizer, messages[:-1]) + (begun if is_chat_tokenizer(tokenizer) else f" {begun}")
    if not is_chat_tokenizer(tokenizer):
        lines = [f"{_PLAIN_LABELS[message['role']]}: {message['content']}" for message in messages]
        return "\n".join([*lines, "Assistant:"])
    try:
        return _templated(tokenizer, messages)
    except TemplateError as error:
        if messages[0]["role"] == "system" and len(messages) > 1:
            return render(tokenizer, _without_system(messages))
        raise GenerationError(f"The model's chat template refuses this conversation: {error}.") from error


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    # Thinking models are asked to answer at once: a response is what is heard, and what is measured.
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return str(text)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template that knows no system turn: its text opens the first user turn."""
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of `render`, with the special tokens of the chat template, or else of the tokenizer."""
    return encode(tokenizer, render(tokenizer, messages), special=not is_chat_tokenizer(tokenizer))


def message_span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ids: Sequence[int]
) -> range:
    """Which of a prompt's tokens are the user's last message: those that change when it is left empty.

    Args:
        tokenizer: wrote `ids`.
        messages: the conversation.
        ids: its `encode_prompt`.

    Returns:
        At least one token; the whole prompt where the template takes no empty message.
    """
    at = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=-1)
    emptied = [dict(each) for each in messages]
    emptied[at]["content"] = ""
    try:
        other = encode_prompt(tokenizer, emptied)
    except GenerationError:
        return range(len(ids))
    shorter = min(len(ids), len(other))
    start = next((place for place in range(shorter) if ids[place] != other[place]), shorter)
    same = (back for back in range(shorter - start) if ids[-1 - back] != other[-1 - back])
    stop = len(ids) - next(same, shorter - start)
    return range(start, stop) if start < stop else range(len(ids) - 1, len(ids))


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a response as it would follow its prompt, without an end of turn."""
    return encode(tokenizer, text if is_chat_tokenizer(tokenizer) else f" {text}", special=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Token ids of a text, with or without the special tokens that the tokenizer puts around one."""
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token id that ends the assistant's turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, (list, tuple)) else [configured])
    ids.add(tokenizer.eos_token_id)
    specials = tokenizer.get_added_vocab()
    ids.update(specials.get(token) for token in _TURN_ENDS)
    return frozenset(int(each) for each in ids if each is not None)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill rows up with. It is masked, so any will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first of some stop texts begins, or the length of the text."""
    return min((at for at in (text.find(stop) for stop in stops) if at >= 0), default=len(text))


class TextStream:
    """Turns a growing list of token ids into pieces of text that are never taken back.

    Characters that are spread over several tokens appear once they are whole, and what may be the beginning
    of a stop text is held back until it is clear that it is none.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        """
        Args:
            tokenizer: of the model that writes.
            stops: texts that end the writing.
            before: the last tokens of a text that goes on; what follows then keeps its leading space.
        """
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = list(before)
        self._settled = len(before)  # tokens before this one are decoded for good
        self._context = 0  # decoding starts here: a token's text can depend on the one before
        self._pending = ""
        self._begun = bool(before)
        self._stopped = False

    def feed(self, token: int) -> str:
        """The new text that a token brings; often one word, sometimes nothing."""
        self._ids.append(token)
        before = decode_ids(self._tokenizer, self._ids[self._context : self._settled])
        after = decode_ids(self._tokenizer, self._ids[self._context :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return self._release(after[len(before) :], final=False)

    def finish(self) -> str:
        """What was still held back when the last token has been fed."""
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
    """How many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
