"""`ActivationExtractor`: prompts in, mean activations and personas out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from persona_tui.core.config import Settings, band_layers, resolve_layers
from persona_tui.core.errors import DatasetError, GenerationError, VectorFileError
from persona_tui.datasets.schema import Question
from persona_tui.extraction.checkpoints import PartialStore
from persona_tui.extraction.runner import (
    BatchRunner,
    Checkpoint,
    Progress,
    Work,
    dataset_hash,
    in_words,
    item_seed,
    persona_requests,
    split_questions,
    usual_tokens,
)
from persona_tui.extraction.sums import ActivationSums, Baseline
from persona_tui.model import Backend, Request, conversation
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import DISTILLED, RECIPES
from persona_tui.vectors.maths import normalize, orthogonalize_persona
from persona_tui.vectors.persona import PersonaVector, default_gains

_WORTH_TIMING = 10_000  # tokens; less is done before a time could be told
_TIMED_TOKENS = 8
DEFAULT, NO_SYSTEM = "default", "none"  # values of extraction.baseline; any other is a system prompt
BASELINE_PASSES = 5  # as many as an archetype has prompts
FLOOR_RESPONSES = 100  # of the baseline, that floors are measured on


class ActivationExtractor(BatchRunner):
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
            on_progress: called with work done, all work (in tokens, weighed by their time), and what for.
            checkpoint: called between batches; may let other work run, or raise (`JobCancelled`) to give up.
            on_step: called after every token; may raise.
            questions: the extraction questions; needed for personas only.
            axes: this model's axes, if they have been extracted.
            partial: keeps what is finished, within its jobs. By default nothing is kept.
            log: told what happens on the way, in one line.
            on_prompt: told, before every batch, what its first request asks.
            on_reply: told, after every batch, what its first request was answered.
        """
        super().__init__(
            model_wrapper,
            config,
            on_progress,
            checkpoint,
            on_step=on_step,
            partial=partial,
            log=log,
            on_prompt=on_prompt,
            on_reply=on_reply,
        )
        self.target_layers = tuple(resolve_layers(config, model_wrapper.n_layers).target)
        self.band = tuple(each for each in band_layers(config, model_wrapper.n_layers) if each in self.layers)
        self.axes = axes
        self.baseline: Baseline | None = None
        self.use_questions(questions)

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
        """Return the direction from the negative to the positive mean, by target layer: unit, `[hidden]`."""
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
        """Return the mean response without a persona, by recipe: that of the axes, if it was asked for with
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
        """Return the baseline that is there if it will do, else a new one: replies as to five prompts."""
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
        """Return exactly the questions that a persona of five prompts is asked."""
        chosen = self.settings.extraction.baseline
        system = {DEFAULT: None, NO_SYSTEM: ""}.get(chosen, chosen)
        return self.persona_requests([system] * BASELINE_PASSES, kind="baseline")

    def work(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> Work:
        """Return how much work it is to answer requests, with replies of the usual length."""
        most = self.settings.extraction.max_new_tokens if max_new_tokens is None else max_new_tokens
        read = sum(self.model.count_tokens(each.messages) for each in requests)
        return Work(read, usual_tokens(most) * len(requests))

    def persona_requests(self, system_prompts: Sequence[str | None], kind: str) -> list[Request]:
        """Return the configured number of requests for each system prompt.

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
        """Return what the responses of one persona come to: mean, raw and safe vectors of both recipes.

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
        """Return what every vector file says about the model and the settings it comes from."""
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
        """Return the model's axes.

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

    # How long it takes --------------------------------------------------------------------------------------

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
        """Find the price of writing; return the seconds that reading one token takes.

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


def completed(persona: PersonaVector, axes: Axes | None) -> PersonaVector:
    """Return a persona with its `safe` vectors, if there are axes to make them with; else as it is.

    Its metadata say whether that is still to be done (`orthogonalised` false).
    """
    if axes is None:
        return replace(persona, metadata={**persona.metadata, "orthogonalised": False})
    if set(persona.layers) - set(axes.layers):
        return persona
    rows = [axes.layers.index(layer) for layer in persona.layers]
    safe = {
        recipe: orthogonalize_persona(raw, axes.safety["response" if recipe == DISTILLED else recipe][rows])
        for recipe, raw in persona.raw.items()
    }
    metadata = {key: value for key, value in persona.metadata.items() if key != "orthogonalised"}
    return replace(persona, safe=safe, metadata=metadata)
