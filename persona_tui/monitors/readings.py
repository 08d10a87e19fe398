"""Reading texts as a monitor will meet them: once each, all layers at a time.

A query is read where a chat reads it: as the user's message, in the model's chat template (or as plain text
for a base model), up to where the reply would begin. That one pass gives two positions:

- `message`: the message's own tokens, the template left out. A detector learns from means over whole
  messages, and judges a message by its most dangerous part: the whole, a sentence, or a window of a long one
  (`model.parts`). So neither thanks nor dots around a request move what is read of the request;
- `prompt_last`: the last token before the reply.

For judging replies the same text is read as something that the assistant says: `reply`, the mean over its
tokens. The monitor's texts are queries only, so what is learned is which subjects are dangerous, not what a
harmful answer looks like.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from persona_tui.core.jobs import JobContext
from persona_tui.core.statistics import Flags, Numbers
from persona_tui.extraction.checkpoints import PartialStore, Tally
from persona_tui.model import Message, Reading, conversation
from persona_tui.monitors.detectors import Detector
from persona_tui.monitors.disguise import plainly
from persona_tui.monitors.spelling import words_of

if TYPE_CHECKING:
    from persona_tui.model import ModelWrapper

MESSAGE, PROMPT_LAST, REPLY = "message", "prompt_last", "reply"
BEFORE_REPLY = "Please go on."  # what the user says before a text that is read as a reply

_CHUNK = 32  # texts between two reports of progress


@dataclass(frozen=True, eq=False)
class Amid:
    """What probes of messages learn from beside the queries themselves (`monitors.amid`).

    Attributes:
        layers: where, ascending.
        rows: parts of messages, `[n, layers, hidden]`.
        safe: `[n]`.
        groups: of the queries that each is made of, `[n]`: it is left out with either's template.
    """

    layers: tuple[int, ...]
    rows: Tensor
    safe: Flags
    groups: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class TextReadings:
    """What was read of some texts.

    Attributes:
        layers: where, ascending.
        at: position -> `[texts, layers, hidden]`, float32.
        parts: of the messages, `[all parts, layers, hidden]`, one message after the other; None = the whole
            ones only.
        counts: how many parts each message has.
        amid: what else probes of messages learn from.
    """

    layers: tuple[int, ...]
    at: Mapping[str, Tensor]
    parts: Tensor | None = None
    counts: tuple[int, ...] = ()
    amid: Amid | None = None

    def select(self, position: str, layers: Sequence[int]) -> Tensor:
        """`[texts, layers, hidden]` of some of the layers, in the order asked for."""
        return self._at_layers(self.at[position], layers)

    def rows(self, position: str, layer: int) -> Numbers:
        """Return what is learned from at one layer, `[texts, hidden]`."""
        rows: Numbers = self.select(position, [layer])[:, 0].double().numpy()
        return rows

    def _at_layers(self, tensor: Tensor, layers: Sequence[int]) -> Tensor:
        rows = [self.layers.index(layer) for layer in layers]
        return tensor if rows == [*range(len(self.layers))] else tensor[:, rows]

    def judged(self, position: str, layers: Sequence[int]) -> Tensor:
        """Return what a detector scores: `[all parts, layers, hidden]` of messages, else as `select`."""
        parts = self.parts if position == MESSAGE else None
        return self._at_layers(self.at[position] if parts is None else parts, layers)

    def most_dangerous(self, position: str, scores: Tensor) -> Tensor:
        """Scores of what is `judged`, `[all parts, ...]`, as the lowest one of each text, `[texts, ...]`."""
        if self.parts is None or position != MESSAGE:
            return scores
        return torch.segment_reduce(scores, "min", lengths=torch.tensor(self.counts), axis=0)

    def worst(self, detector: Detector, position: str) -> list[int]:
        """Return which of what is judged at a position, a row for each text, is the part that decides."""
        if self.parts is None or position != MESSAGE:
            return list(range(len(self.at[position])))
        firsts = [0, *itertools.accumulate(self.counts[:-1])]
        if detector.position != MESSAGE:
            return firsts
        scores = detector.form.scores(self.judged(MESSAGE, detector.layers))
        by_text = zip(firsts, self.counts, strict=True)
        return [first + int(scores[first : first + count].argmin()) for first, count in by_text]

    def scores(self, detector: Detector) -> Tensor:
        """Return what a detector says of each text, `[texts]`."""
        scores = detector.form.scores(self.judged(detector.position, detector.layers))
        return self.most_dangerous(detector.position, scores)


def read_queries(
    model: ModelWrapper,
    queries: Sequence[str],
    layers: Sequence[int],
    context: JobContext | None = None,
    partial: PartialStore | None = None,
) -> TextReadings:
    """Read texts as a user's messages, without their disguise (`plainly`), at both positions.

    Within a job of `partial`, what is read is kept until the job has succeeded.

    Raises:
        GenerationError: a text does not fit the model's context.
        JobCancelled: the context says so.
    """

    def read(some: Sequence[list[Message]]) -> list[Tensor]:
        return [torch.cat([_last(each)[None], _parts(each)]) for each in model.read_messages(some, layers)]

    words = words_of(model.tokenizer)
    conversations = [conversation(plainly(query, words)) for query in queries]
    found = _in_chunks(model, conversations, layers, read, context, "messages", partial)
    last, whole = (torch.stack([each[place] for each in found]) for place in (0, 1))
    counts = tuple(len(each) - 1 for each in found)
    parts = torch.cat([each[1:] for each in found])
    return TextReadings(tuple(layers), {MESSAGE: whole, PROMPT_LAST: last}, parts, counts)


def read_as_replies(
    model: ModelWrapper,
    texts: Sequence[str],
    layers: Sequence[int],
    context: JobContext | None = None,
    partial: PartialStore | None = None,
) -> TextReadings:
    """Read texts as if the assistant said them; kept like `read_queries`.

    Raises:
        GenerationError: a text is empty or does not fit the model's context.
        JobCancelled: the context says so.
    """

    def read(some: Sequence[list[Message]]) -> list[Tensor]:
        return [each.response for each in model.read(list(some), layers)]

    before = conversation(BEFORE_REPLY)
    conversations = [[*before, {"role": "assistant", "content": text}] for text in texts]
    found = _in_chunks(model, conversations, layers, read, context, "replies", partial)
    return TextReadings(tuple(layers), {REPLY: torch.stack(found)})


def _in_chunks(
    model: ModelWrapper,
    conversations: Sequence[list[Message]],
    layers: Sequence[int],
    read: Callable[[Sequence[list[Message]]], list[Tensor]],
    context: JobContext | None,
    what: str,
    partial: PartialStore | None,
) -> list[Tensor]:
    """Return what is read of each conversation."""
    context, partial = context or JobContext(), partial or PartialStore()
    stage = partial.stage(["readings of parts", what, list(model.identity), list(layers), conversations])
    done = len(stage.done)

    def read_some(items: Sequence[int]) -> Tally:
        nonlocal done
        context.checkpoint()
        context.progress(done, len(conversations), f"reading {what}")
        done += len(items)
        found = read([conversations[item] for item in items])
        return Tally(frozenset(items), rows=dict(zip(items, found, strict=True)))

    rows = stage.finish(len(conversations), _CHUNK, read_some).rows
    return [rows[item] for item in range(len(conversations))]


def _last(reading: Reading) -> Tensor:
    assert reading.last is not None  # a message has one
    return reading.last


def _parts(reading: Reading) -> Tensor:
    assert reading.parts is not None  # a message has at least the whole
    return reading.parts


def places_of(reading: Reading, layers: Sequence[int]) -> list[int]:
    """Return where in a reading some layers are."""
    return [reading.layers.index(layer) for layer in layers]
