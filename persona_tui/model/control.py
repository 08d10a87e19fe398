"""Control tokens inside of what people write: they are text, never the beginning or end of a turn.

1. `mark` puts a sentinel in the place of every control token in a content; a chat template leaves it alone.
2. `encode` turns the rendered text into ids: sentinels become the ids of the control tokens' plain text. The
   text around them is divided as if the token itself stood there, so that nothing else changes.
3. `unmark` gives the text back.

Sentinels are private-use characters. One that stands in a content itself is marked, too, so that it stays
what it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any
from weakref import WeakKeyDictionary, proxy

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from persona_tui.model.template import apply_template

_FIRST, _LAST = 0xF0000, 0xFFFFD  # a whole plane of private-use characters
_SENTINELS = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_BEFORE = "\ufdd0"  # no character at all
# Written by thinking models as part of a reply; a template knows them, but they begin and end no turn.
THOUGHTS = ("<think>", "</think>")


_CONTROL_SHAPE = re.compile(r"<\|.+\|>")
_NO_TEXT = re.compile(r"[^\w\s]")


class ControlTokens:
    """The control tokens of one tokenizer, with one chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = proxy(tokenizer)  # which this is remembered for as long as it lives
        self.template = template_text(tokenizer)
        self.ids: dict[str, int] = {}
        written = self.template + _rendered(tokenizer)
        for number, token in sorted(tokenizer.added_tokens_decoder.items()):
            name = token.content
            # Not all are marked as special. A template also writes white space and words, which are text.
            shaped = _CONTROL_SHAPE.fullmatch(name) or (_NO_TEXT.search(name) and name in written)
            if name and (token.special or shaped):
                self.ids[name] = int(number)
        longest_first = sorted(self.ids, key=len, reverse=True)
        private = f"[{chr(_FIRST)}-{chr(_LAST)}]"
        self._all = re.compile("|".join([*map(re.escape, longest_first), private]))
        spoken = [token for token in longest_first if token not in THOUGHTS]
        self._in_replies = re.compile("|".join([*map(re.escape, spoken), private]))
        self._sentinels: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._plain: dict[str, list[int]] = {}
        self._divider: Tokenizer | None = None
        self._speller: Tokenizer | None = None

    def mark(self, content: str, *, reply: bool = False) -> str:
        """Return a content with sentinels for its control tokens; the same object if it has none.

        Args:
            content: of one message.
            reply: whether a model may have written it; its thoughts are then left as they are.
        """
        pattern = self._in_replies if reply else self._all
        return pattern.sub(lambda found: self._sentinel(found[0]), content)

    def unmark(self, text: str) -> str:
        """Return a marked text as it was."""
        return _SENTINELS.sub(lambda found: self._texts.get(found[0], found[0]), text)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a marked text, with or without the special tokens that a tokenizer puts around one."""
        if _SENTINELS.search(text) is None:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            return ids
        if self._backend() is None:
            return self._encode_in_parts(text, special=special)
        divider = self._with_sentinels()
        encoded = divider.encode(text, add_special_tokens=special).ids
        names = {divider.token_to_id(each): each for each in self._texts}
        found: list[int] = []
        for each in encoded:
            found += self._spelled(names[each]) if each in names else [each]
        return found

    def _sentinel(self, text: str) -> str:
        if text not in self._sentinels:
            sentinel = chr(_FIRST + len(self._sentinels))
            self._sentinels[text], self._texts[sentinel] = sentinel, text
        return self._sentinels[text]

    def _backend(self) -> Tokenizer | None:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend if isinstance(backend, Tokenizer) else None

    def _with_sentinels(self) -> Tokenizer:
        """Return a copy of the tokenizer that knows the sentinels, too."""
        if self._divider is None:
            self._divider = _copied(self._state())
        self._divider.add_tokens([_sentinel_token(each) for each in self._texts])
        return self._divider

    def _spelled(self, sentinel: str) -> list[int]:
        """Return the ids of a control token's text in the middle of a text."""
        if sentinel not in self._plain:
            if self._speller is None:
                state = self._state()
                self._speller = _copied({**state, "added_tokens": []})
                self._speller.add_tokens([_sentinel_token(_BEFORE)])
            self._plain[sentinel] = self._without_controls(self._speller, self._texts[sentinel])
        return self._plain[sentinel]

    def _without_controls(self, speller: Tokenizer, text: str) -> list[int]:
        # After another token, as some tokenizers put a space before the first word of a text.
        ids: list[int] = speller.encode(_BEFORE + text, add_special_tokens=False).ids[1:]
        if len(text) > 1 and not set(ids).isdisjoint(self.ids.values()):
            # The vocabulary itself has the token as a word: written in two parts, it is not found.
            return [each for part in (text[:1], text[1:]) for each in self._without_controls(speller, part)]
        return ids

    def _state(self) -> dict[str, Any]:
        backend = self._backend()
        assert backend is not None
        state: dict[str, Any] = json.loads(backend.to_str())
        return state

    def _encode_in_parts(self, text: str, *, special: bool) -> list[int]:
        """Return the same for a tokenizer that is written in Python and cannot be copied with more tokens."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"({_SENTINELS.pattern})", text)):
            if part in self._texts:
                plain = self._texts[part]
                ids += self._tokenizer(plain, add_special_tokens=False, split_special_tokens=True)[
                    "input_ids"
                ]
            elif part or (special and number == 0):
                ids += self._tokenizer(part, add_special_tokens=special and number == 0)["input_ids"]
        return ids


def _sentinel_token(sentinel: str) -> AddedToken:
    return AddedToken(sentinel, normalized=False, special=False)


def _copied(state: dict[str, Any]) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template; empty if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return str(tokenizer.get_chat_template()) if template else ""


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the template writes around messages, put together from parts perhaps."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    texts = []
    for messages in (turns, [{"role": "system", "content": "x"}, *turns]):
        with contextlib.suppress(TemplateError):
            texts.append(apply_template(tokenizer, messages))
    return "\n".join(texts)


def thought_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Return the ids that begin and end thoughts; None if the tokenizer has none of its own."""
    known = tokenizer.get_added_vocab()
    if not all(name in known for name in THOUGHTS):
        return None
    return int(known[THOUGHTS[0]]), int(known[THOUGHTS[1]])


_known: WeakKeyDictionary[PreTrainedTokenizerBase, ControlTokens] = WeakKeyDictionary()


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer with its present template, found once."""
    found = _known.get(tokenizer)
    if found is None or found.template != template_text(tokenizer):
        found = _known[tokenizer] = ControlTokens(tokenizer)
    return found
