"""How long making a persona takes here: measured on the model, with one batch of ordinary prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.jobs import JobContext

if TYPE_CHECKING:
    from persona_tui.project.project import Project

# A usual system prompt, for those that are not written yet.
_PROMPT = "You are a patient old gardener. Stay in character in every answer."


@dataclass(frozen=True)
class Pace:
    """What a persona costs on this machine.

    Attributes:
        tokens: that pass through the model, by number of system prompts less one.
        seconds: the same.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def estimate(self, prompts: int) -> str:
        """Say how much work some system prompts are."""
        from persona_tui.extraction.runner import in_words

        at = min(max(prompts, 1), len(self.tokens)) - 1
        return f"{self.tokens[at]:,} tokens, {in_words(self.seconds[at])} on this machine."


def measure(project: Project, most_prompts: int = 10) -> Pace:
    """Time one batch; runs on the model's thread, for a few seconds at most.

    Raises:
        PersonaTuiError: the model or the questions cannot be used.
    """
    studio = project.studio(JobContext())
    reading = studio.extractor.time_a_batch()
    works = [list(studio.persona_work([_PROMPT] * count).values()) for count in range(1, most_prompts + 1)]
    price = studio.extractor.price
    return Pace(
        tuple(sum(each.tokens for each in work) for work in works),
        tuple(sum(each.cost(price) for each in work) * reading for work in works),
    )
