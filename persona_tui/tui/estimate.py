"""How long making a persona takes here: measured on the model, with one batch of real prompts."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.jobs import JobContext

if TYPE_CHECKING:
    from persona_tui.extraction.extractor import ActivationExtractor
    from persona_tui.project.project import Project

_STEPS = 8  # tokens that are timed
_LONGEST = 3.0  # seconds that timing may take after the first token
_SHARE = 0.6  # of the longest reply, where nothing is known of this model's replies
_SCORING = 1.15  # calibration reads its replies twice, which is quicker than writing them


@dataclass(frozen=True)
class Pace:
    """What a persona costs on this machine.

    Attributes:
        per_prompt: replies for each system prompt.
        calibration: replies for the calibration; 0 = it is off.
        seconds: per reply.
        calibration_seconds: per reply of the calibration.
    """

    per_prompt: int
    calibration: int
    seconds: float
    calibration_seconds: float

    def estimate(self, prompts: int) -> str:
        """Say how much work some system prompts are."""
        replies = prompts * self.per_prompt + self.calibration
        seconds = prompts * self.per_prompt * self.seconds + self.calibration * self.calibration_seconds
        return f"{replies:,} replies, {in_words(seconds)} on this machine."


def measure(project: Project) -> Pace:
    """Time one batch; runs on the model's thread, for a few seconds at most.

    Raises:
        PersonaTuiError: the model or the questions cannot be used.
    """
    from persona_tui.extraction.calibration import response_count

    extractor = project.studio(JobContext()).extractor
    settings = project.settings
    first, step = _time_batch(extractor)
    batch = max(1, min(settings.extraction.batch_size, settings.extraction.num_samples_per_prompt))
    tokens = _usual_tokens(project, settings.extraction.max_new_tokens)
    short = min(tokens, settings.calibration.max_new_tokens * 0.75)
    return Pace(
        per_prompt=settings.extraction.num_samples_per_prompt,
        calibration=response_count(extractor) if settings.calibration.enabled else 0,
        seconds=(first + tokens * step) / batch,
        calibration_seconds=(first + short * step) / batch * _SCORING,
    )


def _time_batch(extractor: ActivationExtractor) -> tuple[float, float]:
    """Return how long a batch takes to its first token, and from one token to the next, in seconds."""
    from persona_tui.model import Sampling

    settings = extractor.settings.extraction
    requests = extractor.persona_requests(["You are a patient old gardener. Stay in character."], "estimate")
    times, stop = [time.monotonic()], threading.Event()

    def on_step() -> None:
        times.append(time.monotonic())
        if times[-1] - times[1] > _LONGEST:
            stop.set()

    extractor.model.generate(
        requests[: settings.batch_size],
        Sampling(_STEPS, settings.temperature),
        capture_layers=extractor.layers,
        on_step=on_step,
        stop=stop,
    )
    first = times[1] - times[0]
    return first, (times[-1] - times[1]) / (len(times) - 2) if len(times) > 2 else first


def _usual_tokens(project: Project, longest: int) -> float:
    """Return how long replies are, from the personas that there are."""
    counts = [
        project.personas.get(name).metadata.get("counts", {}) for name in project.personas.list_available()
    ]
    tokens = sum(count.get("tokens", 0) for count in counts)
    replies = sum(count.get("responses", 0) for count in counts)
    return min(tokens / replies, longest) if replies else longest * _SHARE


def in_words(seconds: float) -> str:
    """Return a duration as one would say it: `about 4 minutes`."""
    if seconds < 50:
        return f"about {max(5, round(seconds / 5) * 5)} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"
