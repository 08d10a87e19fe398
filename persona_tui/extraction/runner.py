"""`BatchRunner`: answers to many requests, and the sums of what the model's layers did meanwhile.

1. Requests are sorted by length and cut into batches; every request has its own seed, so a response does not
   depend on the batch it was in.
2. The model answers a batch and captures activations in that same pass.
3. Each response's mean is added to one running sum per recipe: memory does not grow with the number of
   responses.
4. What is finished is kept on the disk if there is a job (`PartialStore.job`), and several processes share
   the batches if several were launched.

Before that it is decided which questions go with which system prompt, the seed of every single response, and
how much work that is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from persona_tui.core.config import Settings, capture_layers
from persona_tui.core.processes import processes
from persona_tui.datasets.schema import Question
from persona_tui.extraction.checkpoints import PartialStore, Stage, Tally
from persona_tui.extraction.sums import ActivationSums, joined, parted
from persona_tui.model import Backend, Interventions, Message, Request, Sampling, conversation
from persona_tui.model.batching import MemoryLimit, batches
from persona_tui.model.pool import Pooled

T = TypeVar("T")

# The questions kept for calibration never take more than this share of all questions.
_MOST_HELD_OUT = 0.2

WRITING = 1.5  # what a token costs that is written, in tokens that are read, where that was not measured


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model: read in one go, or written one after the other."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.written + other.written)

    def __mul__(self, times: int) -> Work:
        return Work(self.read * times, self.written * times)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.read + self.written

    def cost(self, price: float) -> float:
        """Return what it takes, in tokens read: `price` is that of a token written."""
        return self.read + price * self.written


def usual_tokens(most: int) -> int:
    """Return how long replies of at most `most` tokens are: short ones mostly fill that, long ones do not."""
    return min(most, 40 + most * 55 // 100)


def in_words(seconds: float) -> str:
    """Return a duration as one would say it: `about 4 minutes`."""
    if seconds < 50:
        return f"about {max(5, round(seconds / 5) * 5)} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"


def item_seed(seed: int, *parts: object) -> int:
    """Return a seed that depends on what an item is, not where it stands: 62 bits of a hash of all parts."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return the items in an order that depends on the seed alone."""
    result = list(items)
    random.Random(item_seed(seed, "order")).shuffle(result)
    return result


def split_questions(
    questions: Sequence[Question], wanted: int, held_out: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Divide the questions between extraction and calibration, so that no vector is tuned on what made it.

    Args:
        questions: all there are.
        wanted: the most questions to extract with.
        held_out: the most questions to calibrate with; never more than a fifth of all, and at least one.
        seed: decides which ones.

    Returns:
        The extraction questions and the calibration questions. A single question serves both.
    """
    order = shuffled(questions, seed)
    if len(order) < 2:
        return order, order
    cut = len(order) - max(1, min(held_out, int(len(order) * _MOST_HELD_OUT)))
    return order[: min(wanted, cut)], order[cut:]


def persona_requests(
    system_prompts: Sequence[str | None],
    questions: Sequence[Question],
    per_prompt: int,
    seed: int,
    kind: str,
) -> list[Request]:
    """Return `per_prompt` requests for every prompt. None asks without one, so that the template may insert
    its own; an empty one asks with an empty one.

    Each prompt takes up the shuffled questions where the one before left off, so that together they cover all
    questions evenly. Two calls with as many prompts ask exactly the same questions: a difference of their
    means is not a difference of questions.
    """
    order = shuffled(questions, seed)
    requests = []
    for prompt_index, system_prompt in enumerate(system_prompts):
        for sample in range(per_prompt):
            question = order[(prompt_index * per_prompt + sample) % len(order)]
            own_seed = item_seed(seed, kind, prompt_index, question.id, sample // len(order))
            messages = conversation(question.question, system_prompt)
            if system_prompt == "":
                messages = [{"role": "system", "content": ""}, *messages]
            requests.append(Request(messages, own_seed))
    return requests


def dataset_hash(items: Sequence[str]) -> str:
    """Return a short hash of the texts that a vector was made from; vector files remember it."""
    return hashlib.sha256("\x1e".join(items).encode()).hexdigest()[:16]


Progress = Callable[[int, int, str], None]
Checkpoint = Callable[[], None]
RowInterventions = Callable[[Sequence[int]], Interventions]


@dataclass(frozen=True)
class _Pooling:
    """How replies are summed up.

    Attributes:
        layers: where they are read.
        belongs: told a reply; whether it is of the first kind. None = all are of one kind.
        kept: requests whose own activations are kept as well.
    """

    layers: tuple[int, ...]
    belongs: Callable[[str], bool] | None = None
    kept: Collection[int] = ()


_SCORE_CHUNK = 64  # responses that are scored between two checkpoints


class BatchRunner:
    """Has one model write, read and score many conversations, in batches that can be taken up again."""

    def __init__(
        self,
        model_wrapper: Backend,
        config: Settings,
        on_progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        *,
        on_step: Checkpoint | None = None,
        partial: PartialStore | None = None,
        log: Callable[[str], None] | None = None,
        on_prompt: Callable[[str], None] | None = None,
        on_reply: Callable[[str], None] | None = None,
    ) -> None:
        """Take the arguments of the same names of `ActivationExtractor`."""
        self.model = model_wrapper
        self.settings = config
        self.layers = tuple(capture_layers(config, model_wrapper.n_layers))
        self.tokens = 0  # that have passed through the model, read and written
        self._on_progress = on_progress
        self._checkpoint = checkpoint
        self._on_step = on_step
        self._log = log or (lambda line: None)
        self._on_prompt = on_prompt or (lambda prompt: None)
        self._on_reply = on_reply or (lambda reply: None)
        self._memory = MemoryLimit(self._say_shortage)
        self.partial = partial if partial is not None else PartialStore()
        self.price = WRITING  # of a token that is written, in tokens that are read
        self._done = self._total = 0.0
        self._tokens = 1.0  # of all kinds, to a token read, so that progress is told in what was announced

    def expect(self, work: Work) -> None:
        """Begin a longer piece of work, so that progress is measured against all of it and not one run's."""
        self._done, self._total = 0.0, work.cost(self.price)
        self._tokens = work.tokens / self._total if self._total else 1.0

    def _advance(self, read: int, written: int, note: str | None = None) -> None:
        """Count tokens as done, as many as were planned for."""
        self._done += Work(read, written).cost(self.price)
        if note is not None:
            self._report(note)

    def say(self, line: str) -> None:
        """Tell whoever listens what happens on the way."""
        self._log(line)

    def passed(self, tokens: int, note: str) -> None:
        """Count tokens that were read in another way than those below; give way, or give up."""
        self.tokens += tokens
        self._advance(tokens, 0, note)

    def run(self, requests: Sequence[Request], note: str = "", keep: int = 0) -> ActivationSums:
        """Answer requests and sum up their activations.

        Args:
            requests: the conversations, each with its seed.
            note: what they are for, for whoever watches the progress.
            keep: of how many responses, spread evenly over the requests, the own mean is kept as well.
        """
        wanted = set(_spread(len(requests), keep))
        recipe = ["sums", list(self.layers), keep]
        stage = self._stage(recipe, requests, self.sampling)
        pooling = _Pooling(self.layers, kept=wanted)
        for items, answered in self._answers(stage, requests, note, self.sampling, pooling=pooling):
            sums = ActivationSums(self.layers)
            for pool in answered.pools.values():
                sums.join(pool)
            for item, generation in zip(items, answered.replies, strict=True):
                if generation.activations is not None and generation.activations.n_tokens:
                    sums.kept[item] = generation.activations.response
            stage.add(sums.tally(items))
        return ActivationSums.of(self.layers, stage.everyones())

    def run_sorted(
        self, requests: Sequence[Request], belongs: Callable[[str], bool], note: str = ""
    ) -> tuple[ActivationSums, ActivationSums]:
        """Answer requests and sum up the activations of two kinds of answers apart.

        Args:
            requests: the conversations, each with its seed.
            belongs: told an answer; whether it is of the first kind.
            note: what they are for.

        Returns:
            The sums of the first kind, and those of all others.
        """
        stage = self._stage(["sorted sums", list(self.layers), belongs.__name__], requests, self.sampling)
        pooling = _Pooling(self.layers, belongs)
        for items, answered in self._answers(stage, requests, note, self.sampling, pooling=pooling):
            kinds = {kind: ActivationSums(self.layers) for kind in (True, False)}
            for kind, pool in answered.pools.items():
                kinds[kind].join(pool)
            stage.add(joined(kinds, items))
        return parted(self.layers, stage.everyones())

    def read_replies(self, conversations: Sequence[list[Message]], note: str = "") -> ActivationSums:
        """Sum up the activations of replies that are there already, each the last of its conversation.

        Raises:
            GenerationError: one is empty or does not fit the context.
        """
        stage = self.partial.stage(
            ["given replies", list(self.layers), list(self.model.identity), list(conversations)]
        )

        def read(items: Sequence[int]) -> Tally:
            self.checkpoint()
            chosen = [conversations[item] for item in items]
            sums = ActivationSums(self.layers)
            for activations in self.model.read(chosen, self.layers):
                sums.add(activations)
            passed = sum(self.model.count_tokens(each[:-1]) for each in chosen) + sums.tokens
            self.tokens += passed
            self._advance(passed, 0, note)
            return sums.tally(items)

        return ActivationSums.of(self.layers, stage.finish(len(conversations), _SCORE_CHUNK, read))

    def texts(
        self,
        requests: Sequence[Request],
        note: str = "",
        sampling: Sampling | None = None,
        interventions: RowInterventions | None = None,
        what: Sequence[object] = (),
        twins: Sequence[bool] = (),
    ) -> list[str]:
        """Answer requests; the answers in the requests' order.

        Args:
            requests: the conversations, each with its seed.
            note: what they are for.
            sampling: by default as `extraction` says.
            interventions: given the numbers of a batch's requests, what is done to its rows.
            what: everything that the interventions depend on, tensors included, to know them again by.
            twins: for each request, whether the guide's twin reads along; empty = nowhere.
        """
        sampling = sampling or self.sampling
        stage = self._stage(["texts", *what], requests, sampling)
        for items, answered in self._answers(stage, requests, note, sampling, interventions, twins=twins):
            said = {item: each.text for item, each in zip(items, answered.replies, strict=True)}
            stage.add(Tally(frozenset(items), values=said))
        values = stage.everyones().values
        return [str(values[item]) for item in range(len(requests))]

    def scores(
        self,
        pairs: Sequence[tuple[list[Message], str]],
        note: str = "",
        interventions: Interventions | None = None,
        what: Sequence[object] = (),
    ) -> list[float]:
        """Return how probable responses are after their conversations, in nats per token (`Backend.score`).

        Args:
            pairs: conversations, each with the response to it.
            note: what it is for.
            interventions: what is done to the model meanwhile; by default nothing.
            what: everything that they depend on, tensors included, to know them again by.
        """
        asked = [list(pair) for pair in pairs]
        stage = self.partial.stage(["scores", *what, list(self.model.identity), asked])
        count, done = self.model.count_tokens, 0

        def score(items: Sequence[int]) -> Tally:
            nonlocal done
            self.checkpoint()
            chosen = [pairs[item] for item in items]
            scored = self.model.score(chosen, interventions and interventions.of_rows(items))
            passed = sum(each.n_tokens for each in scored) + sum(count(messages) for messages, _ in chosen)
            self.tokens += passed
            self._advance(passed, 0, note)
            logprobs = {item: each.logprob for item, each in zip(items, scored, strict=True)}
            return Tally(frozenset(items), values=logprobs)

        values = stage.finish(len(pairs), _SCORE_CHUNK, score).values
        return [float(values[item]) for item in range(len(pairs))]

    def _stage(self, recipe: Sequence[object], requests: Sequence[Request], sampling: Sampling) -> Stage:
        asked = [[each.messages, each.seed] for each in requests]
        return self.partial.stage([*recipe, list(self.model.identity), asdict(sampling), asked])

    def _works(self, stage: Stage, prompts: Sequence[int], rows: Sequence[int], usual: int) -> list[Work]:
        """Return what each request takes; it is added to the total, and what has been done is counted."""
        works = [Work(prompt, usual) * count for prompt, count in zip(prompts, rows, strict=True)]
        self._total = max(self._total, self._done + sum(works, Work()).cost(self.price))
        for item in stage.done:
            self._advance(works[item].read, works[item].written)
        return works

    def _answers(
        self,
        stage: Stage,
        requests: Sequence[Request],
        note: str,
        sampling: Sampling,
        interventions: RowInterventions | None = None,
        twins: Sequence[bool] = (),
        pooling: _Pooling | None = None,
    ) -> Iterator[tuple[list[int], Pooled]]:
        """Answer what is unanswered, or this process' share of it; yield numbers of requests, and answers."""
        prompts = [self.model.count_tokens(each.messages) for each in requests]
        lengths = [prompt + sampling.max_new_tokens for prompt in prompts]
        rows = [1 + twin for twin in twins] or [1] * len(requests)  # that pass through the model
        works = self._works(stage, prompts, rows, usual_tokens(sampling.max_new_tokens))
        self._report(note)
        if len(stage.done) == len(requests):
            return
        planned = batches(lengths, self.settings.extraction.batch_size)
        # Batches are planned from all requests, so that those left over are answered among the same others.
        left = [rest for batch in planned if (rest := [item for item in batch if item not in stage.done])]

        def answer(items: list[int]) -> Pooled:
            self._on_prompt(requests[items[0]].messages[-1]["content"])
            own = [requests[item] for item in items]
            if pooling is not None:
                kept = {row for row, item in enumerate(items) if item in pooling.kept}
                return self.model.pooled(
                    own, sampling, pooling.layers, pooling.belongs, kept, on_step=self._on_step
                )
            way = interventions(items) if interventions is not None else None
            return Pooled(self.model.generate(own, sampling, way, on_step=self._on_step))

        def foreseen(items: list[int]) -> bool:
            own = [requests[item] for item in items]
            way = None if interventions is None else partial(interventions, items)
            return self.model.foresee(own, sampling, way, pooling is not None)

        crew = processes()
        with crew.own_share(), self._foreseeing():
            share, ahead = crew.share(left), 0
            for place, batch in enumerate(share):
                ahead = max(ahead, place)
                while ahead < len(share) and foreseen(share[ahead]):
                    ahead += 1
                for items, answered in self._memory.run(batch, lengths, answer):
                    self.tokens += sum(
                        rows[item] * (each.prompt_tokens + len(each.token_ids))
                        for item, each in zip(items, answered.replies, strict=True)
                    )
                    yield items, answered
                    done = sum((works[item] for item in items), Work()) * crew.count
                    self._advance(done.read, done.written)
                    self._on_reply(answered.replies[0].text)
                    self._report(note)

    @contextmanager
    def _foreseeing(self) -> Iterator[None]:
        """Within, the model may be told what comes next; what is left of that is dropped."""
        try:
            yield
        finally:
            self.model.foresee(())

    @property
    def sampling(self) -> Sampling:
        """How responses are sampled for extraction."""
        extraction = self.settings.extraction
        return Sampling(extraction.max_new_tokens, extraction.temperature, extraction.top_p)

    def checkpoint(self) -> None:
        """Give way, or give up if somebody asked for that."""
        if self._checkpoint is not None:
            self._checkpoint()

    def _report(self, note: str) -> None:
        if self._on_progress is not None:
            done = round(self._done * self._tokens)
            self._on_progress(done, max(done, round(self._total * self._tokens)), note)
        self.checkpoint()

    def _say_shortage(self, rows: int, fewer: int) -> None:
        self._log(f"Not enough memory for {rows} responses at a time: continuing with {fewer}.")


def _spread(total: int, wanted: int) -> list[int]:
    """Return `wanted` numbers spread evenly over `range(total)`; all of them if there are fewer."""
    if wanted >= total:
        return list(range(total))
    return [number * total // wanted for number in range(wanted)]
