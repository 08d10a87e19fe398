"""`SteeringEngine`: conversations in, steered replies out."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from persona_tui.core.mix import Mix
from persona_tui.model import (
    Finish,
    Generation,
    Interventions,
    Message,
    Request,
    Sampling,
    TokenEvent,
    Watch,
)
from persona_tui.model.results import mean_nats
from persona_tui.steering.mix_control import Floor, MixControl, OnMix, scaled
from persona_tui.vectors.maths import TraceScale


@dataclass(frozen=True)
class Reply:
    """A finished reply.

    Attributes:
        text: what was said.
        tokens: how many tokens that took.
        prompt_tokens: the length of the prompt.
        seconds: from the request to the last token.
        capped_tokens: at how many of the tokens the floor had to act.
        floor: what it was held above; None if nothing was capped.
        finish: "stop", "length", "cancelled" or, by a guard, "refused".
        nats_from_plain: how much more probable steering made its tokens, on average, in nats; None if it was
            not guided. See `mean_nats`.
    """

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    capped_tokens: int
    finish: Finish
    nats_from_plain: float | None = None
    floor: Floor | None = None


class StreamGuard(Protocol):
    """What a stream may be watched by (`monitors.Guard`)."""

    @property
    def watch(self) -> Watch | None:
        """What the stream has to read for it; None = nothing."""
        ...

    def over(self, events: Iterator[TokenEvent], asked: str) -> Iterator[TokenEvent]:
        """Return the stream's events, of the answer to a message, as they are judged; may end early."""
        ...


class SteeringEngine(MixControl):
    """Generates with any mix of personas, and with a floor that holds them back.

    Generating belongs to one thread; `mix`, `set_mix` and the other setters may be used from any.

    Attributes:
        on_note: told, in one sentence, whenever a reply begins with less than was asked for: without a floor
            where there is none, or without the trace of a damaged file.
    """

    def generate(
        self,
        user_prompt: str,
        persona: str | None = None,
        persona_strength: float | None = None,
        enable_safety_capping: bool = True,
        system_override: str | None = None,
    ) -> str:
        """Answer one prompt.

        Args:
            user_prompt: the question.
            persona: who answers; None = nobody in particular.
            persona_strength: how loud; None = the default strength.
            enable_safety_capping: whether the floor is enforced.
            system_override: a system prompt, if any.

        Raises:
            PersonaNotFoundError: there is no such persona.
        """
        weights = {} if persona is None else {persona: 1.0}
        mix = self._one_off(weights, persona_strength, enable_safety_capping)
        return self.reply([{"role": "user", "content": user_prompt}], mix=mix, system=system_override).text

    def generate_with_composite(
        self, user_prompt: str, persona_blend: Mapping[str, float], enable_safety_capping: bool = True
    ) -> str:
        """Answer one prompt with a blend of personas, at the default strength.

        Raises:
            PersonaNotFoundError: one of them does not exist.
        """
        mix = self._one_off(persona_blend, None, enable_safety_capping)
        return self.reply([{"role": "user", "content": user_prompt}], mix=mix).text

    def _one_off(self, weights: Mapping[str, float], strength: float | None, cap: bool) -> Mix:
        strength = self.default_strength if strength is None else strength
        return Mix(weights, strength, capping=cap, plausibility=self._mix.plausibility)

    @property
    def sampling(self) -> Sampling:
        """How replies are sampled where a call does not say."""
        return Sampling.of(self.settings.generation)

    def reply(
        self,
        messages: Sequence[Message],
        *,
        mix: Mix | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        stop: threading.Event | None = None,
        guard: StreamGuard | None = None,
    ) -> Reply:
        """Answer a conversation at once; the arguments are those of `stream`."""
        started = time.monotonic()
        conversation, mix = with_system(messages, system), mix or self._mix
        with self.as_in_chat():
            events = list(self._write(conversation, [mix], sampling, {}, stop, guard=guard))
            prompt_tokens = self.model.count_tokens(conversation)
        said = [event for event in events if event.token_id >= 0]
        return Reply(
            text="".join(event.text for event in events).strip(),
            tokens=len(said),
            prompt_tokens=prompt_tokens,
            seconds=time.monotonic() - started,
            capped_tokens=sum(event.capped > 0 for event in said),
            finish=events[-1].finish or "stop" if events else "cancelled",
            nats_from_plain=mean_nats(events),
            floor=self.floor_of(mix),
        )

    def stream(
        self,
        messages: Sequence[Message],
        *,
        mix: Mix | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        stop: threading.Event | None = None,
        on_mix: OnMix | None = None,
        guard: StreamGuard | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation, token by token: `stream_rows` with a single row.

        Args:
            mix: what to speak with, fixed; None = the present mix, followed while it changes.
        """
        return self.stream_rows(
            messages, [mix], sampling=sampling, system=system, stop=stop, on_mix=on_mix, guard=guard
        )

    def stream_rows(
        self,
        messages: Sequence[Message],
        mixes: Sequence[Mix | None],
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
        stop: threading.Event | None = None,
        on_mix: OnMix | None = None,
        guard: StreamGuard | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation once per mix, as the rows of one batch, token by token.

        All rows draw the random numbers that a single reply with this seed would draw, so that what differs
        between them comes from the mixes alone.

        Args:
            messages: the conversation; the last message is the user's.
            mixes: what each row is spoken with, fixed; None = the present mix, followed while it changes.
            sampling: by default as `generation` in the settings says.
            system: a system prompt, instead of one that the conversation may begin with.
            stop: when set, no further token is written in any row.
            on_mix: if a row follows the present mix, told whenever one takes effect, before the token that is
                the first to be chosen with it: that token's index, and the mix (see `describe`).
            guard: judges the message before the first token and the reply as it grows, from the same passes;
                may end the stream. What ends one row ends all.

        Yields:
            One event per token; its `row` is the place of its mix. Its projections are on scales that mean
            something. By loaded persona: 0 is the average of ordinary replies, 1 that of the persona's own
            prompted replies. By loaded trait ("trait:NAME"): −1 is the average of its low examples, 1 that of
            its high ones. For the axes ("assistant", "safety"): 0 is the average of ordinary replies, 1 their
            standard deviation.

        Raises:
            PersonaNotFoundError: a mix names a persona that does not exist.
            GenerationError: the conversation is too long, or memory ran out.
        """
        if None in mixes:  # what is asked for once is not loaded for good
            self._load(self._mix)
        traces = self.traces([mix for mix in mixes if mix is not None])
        events = self._write(with_system(messages, system), mixes, sampling, traces, stop, on_mix, guard)
        with self.as_in_chat():  # until the prompt is written
            first = list(itertools.islice(events, 1))
        yield from scaled(itertools.chain(first, events), traces)

    def circumstances(self) -> dict[str, Any]:
        """Return what besides the model and the settings decides about the last digits, and so close
        choices."""
        import torch

        return {
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": self.settings.model.quantization,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def as_in_chat(self) -> AbstractContextManager[None]:
        """Within, the model thinks before it answers, if `generation.think` and its template let it.

        Outside, where replies are measured, thinking models answer at once.
        """
        record = {**self.model.rendering.record(), "thinking": self.settings.generation.think}
        return self.model.rendered_as(record)

    def repeat(
        self,
        messages: Sequence[Message],
        mixes: Mapping[int, Mix],
        sampling: Sampling,
        system: str | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation as it was answered before: `repeat_rows` with a single row."""
        return self.repeat_rows(messages, [mixes], sampling, system)

    def repeat_rows(
        self,
        messages: Sequence[Message],
        rows: Sequence[Mapping[int, Mix]],
        sampling: Sampling,
        system: str | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation as `stream_rows` answered it before, token by token.

        The tokens are the same if the model, the machine and the sampling with its seed are. Nothing is
        loaded for good, and the events have no projections.

        Args:
            messages: the conversation.
            rows: for each row, by token: what to speak with from that one on. The first is for token 0.
            sampling: with the seed that was used then.
            system: a system prompt, if any.
        """
        changes = [{index: self.interventions(mix) for index, mix in row.items()} for row in rows]
        requests = _same_seed(with_system(messages, system), len(rows), sampling)
        return self.model.stream(requests, sampling, _scheduled(changes))

    def _write(
        self,
        conversation: list[Message],
        mixes: Sequence[Mix | None],
        sampling: Sampling | None,
        traces: Mapping[str, TraceScale],
        stop: threading.Event | None,
        on_mix: OnMix | None = None,
        guard: StreamGuard | None = None,
    ) -> Iterator[TokenEvent]:
        sampling = sampling or self.sampling
        for mix in mixes:
            for note in (self.unenforced(mix or self._mix), self.doubtful(mix or self._mix)):
                if note:
                    self.on_note(note)
        watch = guard.watch if guard is not None else None
        events = self.model.stream(
            _same_seed(conversation, len(mixes), sampling),
            sampling,
            self._rows(mixes, on_mix),
            {name: trace.vectors for name, trace in traces.items()},
            stop,
            watch,
        )
        if guard is None or watch is None:
            return events
        return guard.over(events, conversation[-1]["content"])

    def _load(self, mix: Mix) -> None:
        loaded = self.personas.list_loaded()
        for name in mix.speaking:
            if name not in loaded:
                self.personas.load(name)

    def generate_batch(
        self, requests: Sequence[Request], mix: Mix | None = None, sampling: Sampling | None = None
    ) -> list[Generation]:
        """Answer many conversations in one batch, all with the same mix (by default the present one)."""
        return self.model.generate(requests, sampling or self.sampling, self.interventions(mix or self._mix))

    # Reading again ------------------------------------------------------------------------------------------

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        mixes: Mapping[int, Mix] | None = None,
        system: str | None = None,
        traced: Iterable[str] | None = None,
    ) -> list[TokenEvent]:
        """Return a reply that is there already, token by token, with projections as in `stream`, in a pass or
        a few.

        Args:
            messages: what it answers.
            reply: its text, or its token ids.
            mixes: by token: what it was spoken with from that one on. None = it is read without any.
            system: the system prompt that it was spoken with, if any.
            traced: personas and traits that it is compared with; None = those that are loaded.

        Raises:
            PersonaNotFoundError: a mix names a persona that does not exist.
            GenerationError: it is too long, or memory ran out.
        """
        traces = self.traces(names=traced)
        axes = {name: trace.vectors for name, trace in traces.items()}
        changes = {index: self.interventions(mix) for index, mix in (mixes or {}).items()}
        events = self.model.reread_reply(with_system(messages, system), reply, axes, changes)
        return list(scaled(iter(events), traces))

    def reread_message(
        self, messages: Sequence[Message], system: str | None = None, traced: Iterable[str] | None = None
    ) -> list[TokenEvent]:
        """Return the user's last message, token by token, read without a mix: `Backend.reread_message`."""
        traces = self.traces(names=traced)
        axes = {name: trace.vectors for name, trace in traces.items()}
        events = self.model.reread_message(with_system(messages, system), axes)
        return list(scaled(iter(events), traces))


def _same_seed(conversation: list[Message], rows: int, sampling: Sampling) -> list[Request]:
    """One request per row, all with the seed that a single reply would have."""
    return [Request(conversation, sampling.row_seed(0))] * rows


def _scheduled(rows: Sequence[Mapping[int, Interventions]]) -> Callable[[], Interventions | None]:
    """Return a function that returns what changes with each token, for all rows; None = nothing does."""
    tokens, present = itertools.count(), [Interventions.none() for _ in rows]

    def poll() -> Interventions | None:
        token = next(tokens)
        changed = [(place, row[token]) for place, row in enumerate(rows) if token in row]
        for place, interventions in changed:
            present[place] = interventions
        return Interventions.by_row(present) if changed else None

    return poll


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return the conversation with another system prompt in front, if one is given."""
    if system is None:
        return list(messages)
    rest = list(messages[1:]) if messages and messages[0]["role"] == "system" else list(messages)
    return [{"role": "system", "content": system}, *rest]
