"""`SteeringEngine`: conversations in, steered replies out.

The present mix is turned into vectors and floors in the thread that changes it. A running stream asks, before
every token, whether there is something new; what it is given are tensors to copy into buffers. So a fader
acts on the next token, and a mistake (an unknown persona) is raised where it was made.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Protocol

from torch import Tensor

from persona_tui.core.config import Settings, resolve_layers
from persona_tui.core.errors import PersonaTuiError, WorkspaceError
from persona_tui.core.mix import Mix
from persona_tui.core.ranges import PERCENTILE
from persona_tui.extraction.axes import capping
from persona_tui.model import (
    Backend,
    Cap,
    Finish,
    Generation,
    Interventions,
    Message,
    Request,
    Sampling,
    TokenEvent,
    Watch,
)
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.scales import TraceScale, axis_scale, mean_of, vector_scale

ASSISTANT_TRACE = "assistant"

OnMix = Callable[[int, dict[str, Any]], None]  # a token's index, and the mix from that one on


@dataclass(frozen=True)
class Floor:
    """A floor that is enforced.

    Attributes:
        axis: under which projections it lies.
        percentile: of ordinary responses, where it lies.
        layers: where activations are held above it; never empty.
    """

    axis: str
    percentile: float
    layers: tuple[int, ...]


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

    def over(self, events: Iterator[TokenEvent]) -> Iterator[TokenEvent]:
        """Return the stream's events as they are judged; may end early."""
        ...


class SteeringEngine:
    """Generates with any mix of personas, and with a floor that holds them back.

    Generating belongs to one thread; `mix`, `set_mix` and the other setters may be used from any.

    Attributes:
        on_note: told, in one sentence, whenever a reply begins with less than was asked for: without a floor
            where there is none, or without the trace of a damaged file.
    """

    def __init__(self, model_wrapper: Backend, persona_manager: PersonaManager, config: Settings) -> None:
        """
        Args:
            model_wrapper: the model, on whatever runs it.
            persona_manager: the personas and axes made on that model.
            config: `steering` gives the first mix, `generation` how replies are sampled.
        """
        self.model: Backend = model_wrapper
        self.personas = persona_manager
        self.settings = config
        self.capping_layers = tuple(resolve_layers(config, model_wrapper.n_layers).capping)
        self._lock = threading.RLock()
        self._percentile = float(config.steering.safety_floor_percentile)
        steering = config.steering
        self._mix = Mix(
            strength=steering.default_strength,
            capping=steering.capping,
            plausibility=steering.plausibility,
        )
        self.on_note: Callable[[str], None] = lambda note: None
        self._caps: dict[tuple[str, float], tuple[Axes, dict[int, Cap]]] = {}
        self._live = Interventions.none()
        self._version = 0

    # The present mix ----------------------------------------------------------------------------------------

    @property
    def mix(self) -> Mix:
        """What is spoken with unless a call says otherwise."""
        return self._mix

    def set_mix(self, mix: Mix) -> None:
        """Speak with another mix, from the next token of a running stream on.

        Raises:
            PersonaNotFoundError: it names a persona that does not exist; the old mix stays.
        """
        with self._lock:
            self._live, self._mix = self.interventions(mix), mix
            self._version += 1

    @property
    def default_strength(self) -> float:
        """The strength where none is given."""
        return self._mix.strength

    def set_default_strength(self, strength: float) -> None:
        """Change the default strength, from the next token of a running stream on."""
        with self._lock:
            self.set_mix(replace(self._mix, strength=strength))

    @property
    def safety_floor(self) -> float:
        """The percentile at which floors lie where a mix does not say."""
        return self._percentile

    def set_safety_floor(self, percentile: float) -> None:
        """Move the floor to another percentile (0 to 100) of ordinary responses' projections.

        It is looked up in the axis file, and holds from the next token of a running stream on.

        Raises:
            PersonaTuiError: the percentile is out of range.
        """
        PERCENTILE.check("a percentile", percentile)
        with self._lock:
            self._percentile = float(percentile)
            self.set_mix(self._mix)

    def interventions(self, mix: Mix) -> Interventions:
        """What a mix does to the residual stream.

        The personas' vectors are blended layer by layer over all layers where any of them is added. At a
        layer where one of them adds nothing it counts as a zero vector with its weight: a blend of a persona
        at layer 4 and one at layer 5 adds half of each at its own layer.

        The guide is off where nothing is added: strength 0, or no persona, is exactly the plain model.

        Raises:
            PersonaNotFoundError: it names a persona that does not exist.
            VectorFileError: a persona's or the axes' file cannot be used.
        """
        composite = self.personas.get_composite(mix.weights, mix.safe, mix.layers, mix.plausibility > 0)
        steering: Mapping[int, Tensor] = {}
        if mix.strength:
            steering = {layer: mix.strength * vector for layer, vector in composite.items()}
        caps = self._capping(mix) if mix.capping else {}
        return Interventions(steering, caps, mix.plausibility if steering else 0.0)

    def describe(self, mix: Mix) -> dict[str, Any]:
        """A mix as a transcript has it, ready for JSON: enough to speak with it again (`Mix.from_record`).

        Besides the mix' own fields: `added_at`, the layers where personas are added; `floor`, the axis,
        percentile and layers of the floor (None if nothing is capped); `vectors`, by persona, and
        `floor.file`: the SHA-256 of the files that they came from.
        """
        live, enforced, floor = self.interventions(mix), self.floor_of(mix), None
        if enforced is not None:
            floor = {**asdict(enforced), "layers": list(enforced.layers), "file": self.personas.digest()}
        files = {name: self.personas.digest(name) for name, weight in mix.weights.items() if weight}
        return {**asdict(mix), "added_at": sorted(live.steering), "floor": floor, "vectors": files}

    def floor_of(self, mix: Mix) -> Floor | None:
        """Return the floor that is enforced when a mix speaks; None if nothing is capped, wished or not."""
        caps, axis = self._capping(mix) if mix.capping else {}, self.capping_axis(mix)
        if not caps or axis is None:
            return None
        percentile = self._percentile if mix.percentile is None else mix.percentile
        return Floor(axis, percentile, tuple(sorted(caps)))

    def unenforced(self, mix: Mix) -> str:
        """Return what of a mix' capping cannot be enforced, as one sentence; "" if all of it is."""
        if not mix.capping:
            return ""
        axes, floor = self.personas.axes, self.floor_of(mix)
        advice = "`persona-tui extract-axes` makes it"
        if axes is None:
            return f"Capping is on, but nothing is capped: {self.model.name} has no axes yet; {advice}."
        bare = [layer for layer in self.capping_layers if floor is None or layer not in floor.layers]
        if not bare:
            return ""
        there = f"at layer{'s' if len(bare) > 1 else ''} {', '.join(map(str, bare))} there is no floor"
        return f"Capping is on, but {'nothing is capped: ' if floor is None else ''}{there}; {advice}."

    def _load(self, mix: Mix) -> None:
        loaded = self.personas.list_loaded()
        for name, weight in mix.weights.items():
            if weight and name not in loaded:
                self.personas.get(name)
                # Where nothing can be written, it is loaded for this run.
                with contextlib.suppress(WorkspaceError):
                    self.personas.load(name)

    @property
    def can_cap(self) -> bool:
        """Whether there are floors to enforce: the axes have been extracted."""
        return self.personas.axes is not None

    def capping_axis(self, mix: Mix | None = None) -> str | None:
        """The axis that a mix (by default the present one) is capped on; None while there are no axes.

        That is the mix' own, else the one in the settings, else the one measured to be safer on this model.
        """
        axes = self.personas.axes
        if axes is None:
            return None
        configured = self.settings.steering.capping_axis
        wanted = (mix or self._mix).capping_axis or (configured if configured != "auto" else None)
        return wanted or axes.default_capping_axis

    def _capping(self, mix: Mix) -> dict[int, Cap]:
        axes, name = self.personas.axes, self.capping_axis(mix)
        if axes is None or name is None:
            return {}
        key = (name, self._percentile if mix.percentile is None else mix.percentile)
        known = self._caps.get(key)
        if known is None or known[0] is not axes:
            known = self._caps[key] = (axes, capping(axes, name, self.capping_layers, key[1]))
        return known[1]

    # Generating ---------------------------------------------------------------------------------------------

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
        generation = self.settings.generation
        return Sampling(generation.max_new_tokens, generation.temperature, generation.top_p, generation.seed)

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
        stop: threading.Event | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation as it was answered before: `repeat_rows` with a single row."""
        return self.repeat_rows(messages, [mixes], sampling, system, stop)

    def repeat_rows(
        self,
        messages: Sequence[Message],
        rows: Sequence[Mapping[int, Mix]],
        sampling: Sampling,
        system: str | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer a conversation as `stream_rows` answered it before, token by token.

        The tokens are the same if the model, the machine and the sampling with its seed are. Nothing is
        loaded for good, and the events have no projections.

        Args:
            messages: the conversation.
            rows: for each row, by token: what to speak with from that one on. The first is for token 0.
            sampling: with the seed that was used then.
            system: a system prompt, if any.
            stop: when set, no further token is written.
        """
        changes = [{index: self.interventions(mix) for index, mix in row.items()} for row in rows]
        requests = _same_seed(with_system(messages, system), len(rows), sampling)
        return self.model.stream(requests, sampling, _scheduled(changes), stop=stop)

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
            if unenforced := self.unenforced(mix or self._mix):
                self.on_note(unenforced)
        watch = guard.watch if guard is not None else None
        events = self.model.stream(
            _same_seed(conversation, len(mixes), sampling),
            sampling,
            self._rows(mixes, on_mix),
            {name: trace.vectors for name, trace in traces.items()},
            stop,
            watch,
        )
        return events if guard is None or watch is None else guard.over(events)

    def _rows(
        self, mixes: Sequence[Mix | None], on_mix: OnMix | None
    ) -> Interventions | Callable[[], Interventions | None]:
        """The interventions of a batch; a function that is asked for them if a row follows the mix."""
        rows = [None if mix is None else self.interventions(mix) for mix in mixes]
        fixed = [row for row in rows if row is not None]
        if len(fixed) == len(rows):
            return Interventions.by_row(fixed)
        follow = self._follow(on_mix)

        def poll() -> Interventions | None:
            present = follow()
            if present is None:
                return None
            return Interventions.by_row([present if row is None else row for row in rows])

        return poll

    def generate_batch(
        self, requests: Sequence[Request], mix: Mix | None = None, sampling: Sampling | None = None
    ) -> list[Generation]:
        """Answer many conversations in one batch, all with the same mix (by default the present one)."""
        return self.model.generate(requests, sampling or self.sampling, self.interventions(mix or self._mix))

    def _follow(self, on_mix: OnMix | None) -> Callable[[], Interventions | None]:
        """A function that returns the present mix' interventions, if they changed since it was last asked."""
        with self._lock:
            self.set_mix(self._mix)  # a persona's file may be another one than when the mix was set
        seen, tokens = -1, itertools.count()

        def poll() -> Interventions | None:
            nonlocal seen
            token = next(tokens)
            with self._lock:
                if self._version == seen:
                    return None
                seen, live = self._version, self._live
                described = self.describe(self._mix) if on_mix is not None else {}
            if on_mix is not None:
                on_mix(token, described)
            return live

        return poll

    # Traces -------------------------------------------------------------------------------------------------

    def traces(self, mixes: Sequence[Mix] = (), names: Iterable[str] | None = None) -> dict[str, TraceScale]:
        """What a stream's tokens are compared with: the axes, and personas and traits.

        Args:
            mixes: whoever speaks in one of them is among these.
            names: the others; None = all that are loaded, but for damaged files, which are noted (`on_note`).

        Raises:
            PersonaNotFoundError: one of them does not exist.
            VectorFileError: the file of one of them cannot be used.
        """
        spoken = [name for mix in mixes for name, weight in mix.weights.items() if weight]
        loaded = self.personas.list_loaded() if names is None else ()
        found = {name: scale for name in loaded if (scale := self._scale_of(name))}
        found |= {name: vector_scale(self.personas.get(name)) for name in [*(names or ()), *spoken]}
        axes = self.personas.axes
        if axes is not None:
            found |= {
                name: axis_scale(axes, name, self.capping_layers)
                for name in axes.names
                if name in axes.projections
            }
        return {name: trace for name, trace in found.items() if trace.vectors}

    def _scale_of(self, name: str) -> TraceScale | None:
        """The scale of what is only traced; None of a damaged file, which keeps nobody from talking."""
        try:
            return vector_scale(self.personas.get(name))
        except PersonaTuiError as error:
            self.on_note(f"{name} is not traced: {error} `persona-tui unload {name}` unloads it.")
            return None

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        mixes: Mapping[int, Mix] | None = None,
        system: str | None = None,
        traced: Iterable[str] | None = None,
    ) -> list[TokenEvent]:
        """A reply that is there already, token by token, with projections as in `stream`, in a pass or a few.

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
        """The user's last message, token by token, read without a mix; see `Backend.reread_message`."""
        traces = self.traces(names=traced)
        axes = {name: trace.vectors for name, trace in traces.items()}
        events = self.model.reread_message(with_system(messages, system), axes)
        return list(scaled(iter(events), traces))

    def floor_reading(self, name: str, mix: Mix | None = None) -> float | None:
        """Where the floor of a mix (by default the present one) lies on the scale of a trace.

        None if the mix does not cap that axis.
        """
        mix, axes = mix or self._mix, self.personas.axes
        if axes is None or not mix.capping or name != self.capping_axis(mix):
            return None
        trace, caps = axis_scale(axes, name, self.capping_layers), self._capping(mix)
        readings = [
            caps[layer].floor * float(vector.norm())
            for layer, vector in trace.vectors.items()
            if layer in caps
        ]
        return mean_of(readings) - trace.ordinary if readings else None

    def loudness(self, mix: Mix | None = None) -> dict[int, float]:
        """How long a mix' vector (by default the present one's) is at each layer where it is added.

        As a share of the length of ordinary replies' mean activation there; empty without axes.
        """
        axes = self.personas.axes
        if axes is None:
            return {}
        ordinary = next(iter(axes.baseline.values())).norm(dim=-1)
        return {
            layer: float(vector.norm() / ordinary[axes.layers.index(layer)])
            for layer, vector in self.interventions(mix or self._mix).steering.items()
            if layer in axes.layers
        }


def mean_nats(events: Iterable[TokenEvent]) -> float | None:
    """Return the mean of log p_steered − log p_plain over a reply's tokens, in nats: its nats from plain.

    None if no twin has read along. (This is no loss of fluency, which is measured against prompted replies.)
    """
    nats = [event.nats for event in events if event.nats is not None]
    return fmean(nats) if nats else None


def _same_seed(conversation: list[Message], rows: int, sampling: Sampling) -> list[Request]:
    """One request per row, all with the seed that a single reply would have."""
    return [Request(conversation, sampling.row_seed(0))] * rows


def _scheduled(rows: Sequence[Mapping[int, Interventions]]) -> Callable[[], Interventions | None]:
    """A function that returns what changes with each token, for all rows; None = nothing does."""
    tokens, present = itertools.count(), [Interventions.none() for _ in rows]

    def poll() -> Interventions | None:
        token = next(tokens)
        changed = [(place, row[token]) for place, row in enumerate(rows) if token in row]
        for place, interventions in changed:
            present[place] = interventions
        return Interventions.by_row(present) if changed else None

    return poll


def scaled(events: Iterator[TokenEvent], traces: Mapping[str, TraceScale]) -> Iterator[TokenEvent]:
    """Return the events with their projections counted from what is ordinary."""
    for event in events:
        projections = {name: value - traces[name].ordinary for name, value in event.projections.items()}
        yield replace(event, projections=projections)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation with another system prompt in front, if one is given."""
    if system is None:
        return list(messages)
    rest = list(messages[1:]) if messages and messages[0]["role"] == "system" else list(messages)
    return [{"role": "system", "content": system}, *rest]
