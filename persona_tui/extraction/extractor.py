"""`ActivationExtractor`: answers to many requests, and the sums of what the model's layers did meanwhile.

1. Requests are sorted by length and cut into batches; every request has its own seed, so a response does not
   depend on the batch it was in.
2. The model answers a batch and captures activations in that same pass.
3. Each response's mean is added to one running sum per recipe: memory does not grow with the number of
   responses.
4. What is finished is kept on the disk if there is a job (`PartialStore.job`), and several processes share
   the batches if several were launched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from persona_tui.core.config import Settings, band_layers, capture_layers, resolve_layers
from persona_tui.core.errors import DatasetError, GenerationError, VectorFileError
from persona_tui.core.processes import processes
from persona_tui.datasets.schema import Question
from persona_tui.extraction.baseline import Baseline
from persona_tui.extraction.checkpoints import PartialStore, Stage, Tally
from persona_tui.extraction.plan import (
    WRITING,
    Work,
    dataset_hash,
    in_words,
    item_seed,
    persona_requests,
    split_questions,
    usual_tokens,
)
from persona_tui.extraction.sums import ActivationSums, joined, parted
from persona_tui.model import (
    Backend,
    Generation,
    Interventions,
    Message,
    Request,
    Sampling,
    conversation,
)
from persona_tui.model.batching import MemoryLimit, batches
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.maths import normalize, orthogonalize_persona
from persona_tui.vectors.persona import RECIPES, PersonaVector, default_gains

Progress = Callable[[int, int, str], None]
Checkpoint = Callable[[], None]
RowInterventions = Callable[[Sequence[int]], Interventions]

_WORTH_TIMING = 10_000  # tokens; less is done before a time could be told
_TIMED_TOKENS = 8
_SCORE_CHUNK = 64  # responses that are scored between two checkpoints
DEFAULT, NO_SYSTEM = "default", "none"  # values of extraction.baseline; any other is a system prompt
BASELINE_PASSES = 5  # as many as an archetype has prompts
FLOOR_RESPONSES = 100  # of the baseline, that floors are measured on


class ActivationExtractor:
    """Turns prompts into activations and personas, with one model and its settings."""

    def __init__(
        self,
        model_wrapper: Backend,
        config: Settings,
        on_progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        *,
        on_step: Checkpoint | None = None,
        questions: Sequence[Question] = (),
        axes: Axes | None = None,
        partial: PartialStore | None = None,
        log: Callable[[str], None] | None = None,
        on_prompt: Callable[[str], None] | None = None,
        on_reply: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            model_wrapper: the model.
            config: `extraction` says how responses are made, which layers are wanted, and how many of what.
            on_progress: called with work done, all work, and what it is for; in tokens read (see `Work`).
            checkpoint: called between batches; may let other work run, or raise (`JobCancelled`) to give up.
            on_step: called after every token; may raise.
            questions: the extraction questions; needed for personas only.
            axes: this model's axes, if they have been extracted.
            partial: keeps what is finished, within its jobs. By default nothing is kept.
            log: told what happens on the way, in one line.
            on_prompt: told, before every batch, what its first request asks.
            on_reply: told, after every batch, what its first request was answered.
        """
        self.model = model_wrapper
        self.settings = config
        self.layers = tuple(capture_layers(config, model_wrapper.n_layers))
        self.target_layers = tuple(resolve_layers(config, model_wrapper.n_layers).target)
        self.band = tuple(each for each in band_layers(config, model_wrapper.n_layers) if each in self.layers)
        self.axes = axes
        self.baseline: Baseline | None = None
        self.tokens = 0  # that have passed through the model, read and written
        self.use_questions(questions)
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

    def use_questions(self, questions: Sequence[Question]) -> None:
        """Divide these questions between extraction and calibration."""
        self.questions, self.held_out_questions = split_questions(
            questions,
            self.settings.extraction.questions,
            self.settings.calibration.questions,
            self.settings.extraction.seed,
        )

    # The plan's methods -------------------------------------------------------------------------------------

    def extract_single(self, system_prompt: str | None, user_prompt: str) -> dict[int, Tensor]:
        """Answer one prompt; the mean over the response's tokens at each target layer, `[hidden]`."""
        return self.extract_batch([{"system": system_prompt, "user": user_prompt}])

    def extract_batch(self, prompts: Sequence[Mapping[str, str | None]]) -> dict[int, Tensor]:
        """Answer prompts, each `{"system": text or None, "user": text}`; the mean of their response
        activations.

        Returns:
            For each target layer `[hidden]`. Every response weighs the same, however long.

        Raises:
            GenerationError: the model said nothing at all.
        """
        if not prompts:
            raise GenerationError("no prompts to extract from")
        mean = self.run(self._plain_requests(prompts)).mean("response")
        return {layer: mean[self.layers.index(layer)] for layer in self.target_layers}

    def extract_contrastive(
        self,
        positive_prompts: Sequence[Mapping[str, str | None]],
        negative_prompts: Sequence[Mapping[str, str | None]],
    ) -> dict[int, Tensor]:
        """The direction from the negative to the positive mean: a unit vector `[hidden]` by target layer."""
        positive, negative = self.extract_batch(positive_prompts), self.extract_batch(negative_prompts)
        return {layer: normalize(positive[layer] - negative[layer]) for layer in self.target_layers}

    def _plain_requests(self, prompts: Sequence[Mapping[str, str | None]]) -> list[Request]:
        requests = []
        for index, prompt in enumerate(prompts):
            system, user = prompt.get("system"), prompt.get("user") or ""
            seed = item_seed(self.settings.extraction.seed, "prompt", index, system, user)
            requests.append(Request(conversation(user, system), seed))
        return requests

    # Personas -----------------------------------------------------------------------------------------------

    def extract_persona(
        self,
        name: str,
        prompts: Sequence[Mapping[str, Any]],
        description: str | None = None,
        source: str = "archetype",
    ) -> PersonaVector:
        """Extract one persona; it is not calibrated yet.

        Args:
            name: its name.
            prompts: its system prompts, each under the key "system_prompt".
            description: what it was made from, if that was a description.
            source: "archetype" or "generated".

        Raises:
            VectorFileError: the model's axes are for other layers than the settings ask for.
            DatasetError: there are no system prompts or no questions.
        """
        system_prompts = [str(prompt["system_prompt"]) for prompt in prompts]
        requests = self.persona_requests(system_prompts, kind="persona")
        baseline = self.assistant_baseline()
        sums, read = self.run(requests, note=name), self.work(requests).read
        return self.persona_from_sums(name, sums, baseline, system_prompts, description, source, read)

    def calibrated(self, persona: PersonaVector) -> PersonaVector:
        """Return the persona calibrated, if `calibration.enabled`; else as it is."""
        from persona_tui.extraction.calibration import calibrated

        return calibrated(self, persona) if self.settings.calibration.enabled else persona

    def assistant_baseline(self) -> dict[str, Tensor]:
        """Mean response activation without a persona, by recipe: that of the axes, if it was asked for with
        the same system prompt; else of replies of its own.

        Raises:
            VectorFileError: the model's axes are for other layers than the settings ask for.
            DatasetError: there are no questions.
        """
        if self.axes_serve:
            return self.matching_axes().baseline
        return self.ordinary_replies().mean

    @property
    def axes_serve(self) -> bool:
        """Whether there are axes whose baseline was asked for with the system prompt in the settings."""
        then = {} if self.axes is None else self.axes.metadata.get("extraction") or {}
        return self.axes is not None and then.get("baseline", DEFAULT) == self.settings.extraction.baseline

    def ordinary_replies(self) -> Baseline:
        """The baseline that is there if it will do, else a new one: as many replies as to five prompts."""
        requests = self.baseline_requests()
        if self.baseline is None or not self.has_baseline:
            sums = self.run(requests, note="assistant baseline", keep=FLOOR_RESPONSES)
            self.baseline = Baseline.of(sums, {**self.provenance(), "asked": len(requests)})
        return self.baseline

    @property
    def has_baseline(self) -> bool:
        """Whether the baseline that is there will do for these settings."""
        wanted = {**self.provenance(), "asked": len(self.baseline_requests())}
        return self.baseline is not None and self.baseline.serves(self.layers, wanted)

    def baseline_requests(self) -> list[Request]:
        """Exactly the questions that a persona of five prompts is asked."""
        chosen = self.settings.extraction.baseline
        system = {DEFAULT: None, NO_SYSTEM: ""}.get(chosen, chosen)
        return self.persona_requests([system] * BASELINE_PASSES, kind="baseline")

    def work(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> Work:
        """How much work it is to answer requests, with replies of the usual length."""
        most = self.settings.extraction.max_new_tokens if max_new_tokens is None else max_new_tokens
        read = sum(self.model.count_tokens(each.messages) for each in requests)
        return Work(read, usual_tokens(most) * len(requests))

    def persona_requests(self, system_prompts: Sequence[str | None], kind: str) -> list[Request]:
        """The configured number of requests for each system prompt.

        Raises:
            DatasetError: there are no system prompts or no questions.
        """
        if not system_prompts:
            raise DatasetError("a persona needs at least one system prompt")
        if not self.questions:
            raise DatasetError("there are no extraction questions; generate some: dataset generate questions")
        extraction = self.settings.extraction
        return persona_requests(
            system_prompts, self.questions, extraction.num_samples_per_prompt, extraction.seed, kind
        )

    def persona_from_sums(
        self,
        name: str,
        sums: ActivationSums,
        baseline: Mapping[str, Tensor],
        system_prompts: Sequence[str],
        description: str | None = None,
        source: str = "archetype",
        read: int = 0,
    ) -> PersonaVector:
        """What the responses of one persona come to: mean, raw and safe vectors of both recipes.

        Without axes, `safe` is `raw` for now: see `completed`. Until it is calibrated, it has the gain that
        a usual persona needs in this model's band. `read` says how many tokens its prompts had.
        """
        mean = sums.means()
        raw = {recipe: mean[recipe] - baseline[recipe] for recipe in RECIPES}
        metadata = {
            **self.provenance(),
            "kind": "persona",
            "name": name,
            "source": source,
            "description": description,
            "target_layers": list(self.band),
            "prompts": list(system_prompts),
            "counts": {
                "prompts": len(system_prompts),
                "questions": len(self.questions),
                "responses": sums.count,
                "tokens": sums.tokens,
                "passed": read + sums.tokens,
            },
        }
        persona = completed(PersonaVector(name, sums.layers, mean, raw, dict(raw), metadata), self.axes)
        persona.metadata.update(default_gains(persona, self.band))
        return persona

    def provenance(self) -> dict[str, Any]:
        """What every vector file says about the model and the settings it comes from."""
        return {
            "model_name": self.model.name,
            "rendering": self.model.rendering.record(),
            "model_fingerprint": self.model.fingerprint,
            "model_source": self.model.source,
            **self.model.sketch.record(),
            "hidden_size": self.model.hidden_size,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "extraction": {
                **self.settings.extraction.model_dump(exclude={"batch_size", "target_layers"}),
                "questions_hash": dataset_hash([question.question for question in self.questions]),
            },
        }

    def matching_axes(self) -> Axes:
        """The model's axes.

        Raises:
            VectorFileError: they have not been extracted, or for other layers than the settings ask for.
        """
        if self.axes is None:
            raise VectorFileError(f"the axes of {self.model.name} are missing: run `persona-tui init`")
        if tuple(self.axes.layers) != self.layers:
            raise VectorFileError(
                f"the axes of {self.model.name} are for other layers than the settings ask for: "
                "run `persona-tui extract-axes` again"
            )
        return self.axes

    # Core ---------------------------------------------------------------------------------------------------

    def announce(self, phases: Mapping[str, Work]) -> None:
        """Say how much work is to come, and how long it takes here; progress is measured against it.

        Args:
            phases: the work, by what it is for. Writing is timed on a first few tokens of ordinary replies.
        """
        work = sum(phases.values(), Work())
        if not work.tokens:
            return
        reading = self.time_a_batch() if work.tokens > _WORTH_TIMING else None
        self.expect(work)
        where = ", ".join(f"{name} {each.tokens:,}" for name, each in phases.items() if each.tokens)
        how_long = f": {in_words(work.cost(self.price) * reading)}" if reading is not None else ""
        self._log(f"About {work.tokens:,} tokens through the model ({where}){how_long}.")

    def time_a_batch(self) -> float:
        """Find the price of writing; the seconds that reading one token takes.

        A batch takes as many steps as its longest reply, which mostly is as long as allowed; and the later a
        step, the more there is to look back at.
        """
        requests = self.baseline_requests()[: self.settings.extraction.batch_size]
        times = [time.monotonic()]
        sampling = replace(self.sampling, max_new_tokens=_TIMED_TOKENS)
        self.model.generate(
            requests, sampling, capture_layers=self.layers, on_step=lambda: times.append(time.monotonic())
        )
        first = (times[1] - times[0]) / sum(self.model.count_tokens(each.messages) for each in requests)
        if len(times) > 2:
            most = self.settings.extraction.max_new_tokens
            step = (times[-1] - times[1]) / (len(times) - 2) * most / usual_tokens(most)
            self.price = step / len(requests) / first
        return first

    def expect(self, work: Work) -> None:
        """Begin a longer piece of work, so that progress is measured against all of it and not one run's."""
        self._done, self._total = 0.0, work.cost(self.price)

    def _advance(self, read: int, written: int, note: str | None = None) -> None:
        """Count tokens as done, as many as were planned for."""
        self._done += Work(read, written).cost(self.price)
        if note is not None:
            self._report(note)

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
        for items, generations in self._answers(stage, requests, note, self.sampling, None, self.layers):
            sums = ActivationSums(self.layers)
            for item, generation in zip(items, generations, strict=True):
                if generation.activations is None:
                    continue
                sums.add(generation.activations)
                if item in wanted and generation.activations.n_tokens:
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
        for items, generations in self._answers(stage, requests, note, self.sampling, None, self.layers):
            kinds = {kind: ActivationSums(self.layers) for kind in (True, False)}
            for generation in generations:
                if generation.activations is not None:
                    kinds[belongs(generation.text)].add(generation.activations)
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
        for items, generations in self._answers(stage, requests, note, sampling, interventions, twins=twins):
            said = {item: each.text for item, each in zip(items, generations, strict=True)}
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
        """How probable responses are after their conversations, in nats per token (`Backend.score`).

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
            scored = self.model.score(chosen, interventions)
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

    def _answers(
        self,
        stage: Stage,
        requests: Sequence[Request],
        note: str,
        sampling: Sampling,
        interventions: RowInterventions | None = None,
        capture: Sequence[int] = (),
        twins: Sequence[bool] = (),
    ) -> Iterator[tuple[list[int], list[Generation]]]:
        """Answer what is not yet answered, or this process' share of it: numbers of requests, answers."""
        prompts = [self.model.count_tokens(each.messages) for each in requests]
        lengths = [prompt + sampling.max_new_tokens for prompt in prompts]
        usual = usual_tokens(sampling.max_new_tokens)
        rows = [1 + twin for twin in twins] or [1] * len(requests)  # that pass through the model
        works = [Work(prompt, usual) * count for prompt, count in zip(prompts, rows, strict=True)]
        self._total = max(self._total, self._done + sum(works, Work()).cost(self.price))
        for item in stage.done:
            self._advance(works[item].read, works[item].written)
        self._report(note)
        if len(stage.done) == len(requests):
            return
        planned = batches(lengths, self.settings.extraction.batch_size)
        # Batches are planned from all requests, so that those left over are answered among the same others.
        left = [rest for batch in planned if (rest := [item for item in batch if item not in stage.done])]

        def answer(items: list[int]) -> list[Generation]:
            self._on_prompt(requests[items[0]].messages[-1]["content"])
            return self.model.generate(
                [requests[item] for item in items],
                sampling,
                interventions(items) if interventions is not None else None,
                capture,
                on_step=self._on_step,
            )

        crew = processes()
        with crew.own_share():
            for batch in crew.share(left):
                for items, generations in self._memory.run(batch, lengths, answer):
                    self.tokens += sum(
                        rows[item] * (each.prompt_tokens + len(each.token_ids))
                        for item, each in zip(items, generations, strict=True)
                    )
                    yield items, generations
                    done = sum((works[item] for item in items), Work()) * crew.count
                    self._advance(done.read, done.written)
                    self._on_reply(generations[0].text)
                    self._report(note)

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
            done = round(self._done)
            self._on_progress(done, max(done, round(self._total)), note)
        self.checkpoint()

    def _say_shortage(self, rows: int, fewer: int) -> None:
        self._log(f"Not enough memory for {rows} responses at a time: continuing with {fewer}.")


def _spread(total: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over `range(total)`; all of them if there are fewer."""
    if wanted >= total:
        return list(range(total))
    return [number * total // wanted for number in range(wanted)]


def completed(persona: PersonaVector, axes: Axes | None) -> PersonaVector:
    """A persona with its `safe` vectors, if there are axes to make them with; else as it is.

    Its metadata say whether that is still to be done (`orthogonalised` false).
    """
    if axes is None:
        return replace(persona, metadata={**persona.metadata, "orthogonalised": False})
    if set(persona.layers) - set(axes.layers):
        return persona
    rows = [axes.layers.index(layer) for layer in persona.layers]
    safe = {
        recipe: orthogonalize_persona(raw, axes.safety[recipe][rows]) for recipe, raw in persona.raw.items()
    }
    metadata = {key: value for key, value in persona.metadata.items() if key != "orthogonalised"}
    return replace(persona, safe=safe, metadata=metadata)
