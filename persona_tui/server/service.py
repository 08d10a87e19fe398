"""What all the endpoints stand on: requests in, turns out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from persona_tui.chat.review import Critic, Review, revising
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, Mix
from persona_tui.datasets.transcripts import BadLine, Transcript
from persona_tui.model import Message, ModelWrapper, Request, Sampling
from persona_tui.model.prompts import PromptEncoder
from persona_tui.model.text import Rendering
from persona_tui.monitors.guard import Guard
from persona_tui.monitors.second_opinion import Opinion, Validator, critique
from persona_tui.project.project import Project
from persona_tui.server.limits import Capacity, Refused, TooLarge
from persona_tui.server.measures import Measures
from persona_tui.server.turns import AnswerRow, Defence, Exchange
from persona_tui.server.voices import Voice, Voices
from persona_tui.server.worker import Worker
from persona_tui.steering import SteeringEngine
from persona_tui.steering.rows import VoicedRow
from persona_tui.traits.live import LiveTraits, live_traits
from persona_tui.traits.score import TraitScorer

if TYPE_CHECKING:
    from persona_tui.monitors.monitor import SelfMonitor

T = TypeVar("T")


@dataclass(frozen=True)
class Wish:
    """What a request asks for, in whatever form it came.

    Attributes:
        prompts: conversations, or texts to be continued; each is answered `count` times.
        voice: who answers.
        sampling: how tokens are chosen.
        count: replies to each prompt.
        stops: texts that end a reply.
        likeliest: how many of the likeliest tokens are told with each.
        mixes: instead of the voice's: each prompt is answered once with each of them, and all replies draw
            the same random numbers, so that what differs comes from the mixes alone.
        rendering: what the chat template writes by itself; None = as when the model was loaded.
    """

    prompts: Sequence[list[Message] | str]
    voice: Voice
    sampling: Sampling
    count: int = 1
    stops: tuple[str, ...] = ()
    likeliest: int = 0
    mixes: tuple[Mix, ...] = ()
    rendering: Rendering | None = None

    @property
    def rows(self) -> int:
        """Replies to each prompt."""
        return len(self.mixes) or self.count


class Service:
    """A project that answers requests.

    Attributes:
        project: the workspace and its model, which is loaded.
        limits: what is taken on.
        validator: has the last word on replies while a guard is on; None = nobody.
        critic: reads drafts under the guard `critique`; the model itself, from any thread but its own.
        measures: what is counted.
        worker: owns the model.
        turns: by id, those of the native API that are being written.
        started: when, in seconds since 1970.
    """

    def __init__(
        self, project: Project, limits: Capacity | None = None, validator: Validator | None = None
    ) -> None:
        """
        Args:
            project: its model is loaded here if it is not yet.
            limits: what is taken on.
            validator: has the last word on replies under a guard; None = nobody.

        Raises:
            PersonaTuiError: the model cannot be loaded, or the guard of the settings has no monitor.
        """
        self.project = project
        self.limits = limits or Capacity()
        self.validator = validator
        if self.validator is not None:
            self.validator.check()
        self.measures = Measures()
        self._engine = project.engine
        self._encoder = PromptEncoder(project.model)
        self._reading = threading.Lock()  # vector files are read by one thread at a time
        self._monitor: SelfMonitor | None = None
        self.turns: dict[str, Exchange] = {}
        self.started = int(time.time())
        if project.settings.monitoring.guard not in ("off", "critique"):
            _ = self.monitor
        self.worker = Worker(self._engine, self.limits)
        self.worker.on_batch = self.measures.batch.observe
        self.critic: Critic = self._critic

    @property
    def engine(self) -> SteeringEngine:
        """What writes replies."""
        return self._engine

    @property
    def model(self) -> ModelWrapper:
        """The model; it belongs to the worker."""
        return self.project.model

    @property
    def encoder(self) -> PromptEncoder:
        """What tokenizes, on any thread."""
        return self._encoder

    @property
    def base(self) -> str:
        """The model's name for clients: never a path on this machine."""
        name = self.project.settings.model.name
        is_path = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
        return self.project.slug if is_path else name

    @property
    def voices(self) -> Voices:
        """Whom clients may choose from; personas that are made meanwhile are among them."""
        personas, settings = self.project.personas, self.project.settings
        return Voices(
            self.base,
            personas.list_available(),
            personas.list_traits(),
            self.project.default_mix(),
            settings.monitoring.guard,
        )

    @property
    def template(self) -> str:
        """The model's chat template; empty if it has none."""
        return self._encoder.template

    @property
    def size(self) -> int:
        """Bytes of the model's weights."""
        return sum(each.numel() * each.element_size() for each in self.model.model.parameters())

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen where a request does not say."""
        return self._engine.sampling

    @property
    def monitor(self) -> SelfMonitor:
        """The monitor that judges.

        Raises:
            PersonaTuiError: it does not exist or cannot be used.
        """
        if self._monitor is None:
            chosen, monitors = self.project.settings.monitoring, self.project.monitors
            self._monitor = monitors.load(chosen.monitor, self.model)
        return self._monitor

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do something that reads files or tokenizes, beside the event loop."""

        def locked() -> T:
            with self._reading:
                return work()

        return await asyncio.to_thread(locked)

    async def with_model(self, work: Callable[[], T]) -> T:
        """Do something that needs the model; see `Worker.call` for the errors."""
        return await asyncio.wrap_future(self.worker.call(work))

    async def begin(self, wish: Wish) -> Exchange:
        """Have a request answered.

        Raises:
            Refused: it is too long, or too much waits already.
            PersonaTuiError: it cannot be answered as it is.
        """
        turn = Exchange(self.worker, self.measures, self.limits.seconds)
        lives = await self.with_model(lambda: self._lives(wish)) if wish.voice.policy is not None else []
        self.worker.coming += 1  # on the event loop only
        try:
            await self.off_loop(lambda: self._fill(turn, wish, lives))
            turn.begin()
        finally:
            self.worker.coming -= 1
        self.measures.tokens.labels("prompt").inc(turn.prompt_tokens)
        return turn

    def _fill(self, turn: Exchange, wish: Wish, lives: Sequence[LiveTraits]) -> None:
        wish = replace(wish, sampling=wish.sampling.with_seed())
        for prompt in wish.prompts:
            ids = self._encoded(prompt, wish.rendering)
            turn.prompt_tokens += len(ids)
            for place in range(wish.rows):
                written = len(turn.answers)
                # As the first reply with this seed has it everywhere else; then its neighbours'.
                seed = wish.sampling.row_seed(0 if wish.mixes else written)
                mix = wish.mixes[place] if wish.mixes else wish.voice.mix
                row = self._row(wish, prompt, ids, seed, mix, lives[written] if lives else None)
                turn.add(row, self._defence(wish, prompt, row))

    def _row(
        self,
        wish: Wish,
        prompt: list[Message] | str,
        ids: list[int],
        seed: int | None,
        mix: Mix,
        live: LiveTraits | None,
    ) -> AnswerRow:
        is_text = isinstance(prompt, str)
        request = Request(
            [] if isinstance(prompt, str) else prompt,
            seed,
            wish.sampling,
            ids,
            is_text,
            wish.stops,
            threading.Event(),
            wish.likeliest,
        )
        voiced = VoicedRow(self._engine, request, mix, wish.voice.traced)
        return AnswerRow(voiced, self._guard(wish.voice, asked_of(prompt)), live)

    def _defence(self, wish: Wish, prompt: list[Message] | str, row: AnswerRow) -> Defence | None:
        """Return what a reply goes through behind its guard."""
        review = Review.under(wish.voice.guard, self.validator)
        if review is None:
            return None
        if isinstance(prompt, str):
            return Defence(review, asked_of(prompt), self.critic)

        async def again(draft: str) -> tuple[AnswerRow, int]:
            longer = replace(wish, prompts=[[*prompt, *revising(draft)]], count=1, mixes=())
            lives = await self.with_model(lambda: self._lives(longer)) if wish.voice.policy else [None]

            def made() -> tuple[AnswerRow, int]:
                (messages,) = longer.prompts
                ids = self._encoded(messages, wish.rendering)
                live, voiced = lives[0], row.voiced
                return self._row(longer, messages, ids, voiced.request.seed, voiced.mix, live), len(ids)

            return await self.off_loop(made)

        return Defence(review, asked_of(prompt), self.critic, again)

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have together."""
        context = self.model.context_length
        return self.limits.tokens if context is None else min(context, self.limits.tokens)

    def _encoded(self, prompt: list[Message] | str, rendering: Rendering | None) -> list[int]:
        encoder = self._encoder
        ids = encoder.text(prompt) if isinstance(prompt, str) else encoder.conversation(prompt, rendering)
        if not ids:
            raise Refused("An empty prompt cannot be continued.", param="prompt")
        most = self.context
        if len(ids) >= most:
            raise TooLarge(
                f"The prompt has {len(ids)} tokens; at most {most - 1} are answered here: shorten the "
                "conversation."
            )
        return ids

    def _guard(self, voice: Voice, asked: str) -> Guard | None:
        if voice.guard == "off" or (voice.guard == "critique" and not self._has_monitor()):
            return None
        monitor = self.monitor
        guard = Guard(lambda: monitor)
        guard.set_mode(voice.guard)
        guard.asked = asked
        return guard

    def _critic(self, asked: str, reply: str) -> Opinion:
        return self.worker.call(lambda: critique(self.model, asked, reply)).result()

    def _has_monitor(self) -> bool:
        """Return whether there is a monitor, which a critique can do without."""
        try:
            self.project.monitors.check_exists(self.project.settings.monitoring.monitor)
        except PersonaTuiError:
            return False
        return True

    # On the thread that owns the model ----------------------------------------------------------------------

    def _lives(self, wish: Wish) -> list[LiveTraits]:
        """Return what holds each answer against the policy; the traits' gates read each prompt once."""
        policy, found = wish.voice.policy, list[LiveTraits]()
        assert policy is not None
        vectors = [self._engine.personas.get(f"{TRAIT_PREFIX}{name}") for name in policy.traits]
        for prompt in wish.prompts:
            messages = [] if isinstance(prompt, str) else prompt
            turn = 1 + sum(each["role"] == "assistant" for each in messages)
            found += live_traits(policy, vectors, self.model, messages, turn, wish.rows)
        return found

    def judge(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return what the monitor says of texts as a user's messages, in OpenAI's form."""
        monitor = self.monitor
        results = []
        for reading in monitor.read(texts, monitor.layers_of()):
            verdict, harms = monitor.judge(reading, "message"), monitor.harm_probabilities(reading)
            likely = None if verdict.safe else verdict.category
            # How likely each harm is if there is one: of a safe text that would say nothing.
            scores = {name: 0.0 if verdict.safe else share for name, share in harms.items()}
            results.append(
                {
                    "flagged": not verdict.safe,
                    "categories": {name: name == likely for name in harms},
                    "category_scores": scores,
                    "category_applied_input_types": {name: ["text"] for name in harms},
                    "persona_tui": verdict.as_dict(),
                }
            )
        return results

    def score(self, names: Sequence[str], conversations: Sequence[list[Message]]) -> list[dict[str, Any]]:
        """Return how the last reply of each conversation scores; no name = on all traits."""
        traits = self.project.traits.select(names)
        found = TraitScorer(self.model, traits).score([Transcript(each, "input") for each in conversations])
        return [
            {"error": each.problem}
            if isinstance(each, BadLine)
            else {
                "scores": each.replies[-1].scores,
                "not_applicable": sorted(each.replies[-1].outside),
                "tokens": each.replies[-1].n_tokens,
            }
            for each in found
        ]

    def close(self) -> None:
        """Stop what runs, and end the worker."""
        self.worker.close()


def asked_of(prompt: list[Message] | str) -> str:
    """Return the message of a prompt that is answered; the whole of a text that is continued."""
    if isinstance(prompt, str):
        return prompt
    return next((each["content"] for each in reversed(prompt) if each["role"] == "user"), "")
