"""One A/B comparison while it is being written: filled by the model's thread, emptied by the screen's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.chat.comparison import Comparison
    from persona_tui.model import TokenEvent
    from persona_tui.project.project import Project


@dataclass(eq=False)
class Trial:
    """Answers to be written side by side, and what came of them so far.

    Attributes:
        comparison: the question and the answers; the model's thread writes into it.
        sampling: what differs from the settings, by name of the engine's sampling fields.
        stop: set to end all answers after the present token.
        tokens: written and not yet shown.
    """

    comparison: Comparison
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    tokens: deque[TokenEvent] = field(default_factory=deque)

    def drain(self) -> list[TokenEvent]:
        """Return the tokens that came since the last time."""
        drained = []
        while self.tokens:
            drained.append(self.tokens.popleft())
        return drained

    @property
    def empty(self) -> bool:
        """Whether none of the answers has a word."""
        return not any(answer.text.strip() for answer in self.comparison.answers)


def write(project: Project, trial: Trial) -> None:
    """Write the answers; runs on the model's thread.

    Raises:
        PersonaTuiError: the model could not answer.
    """
    engine = project.engine
    sampling = replace(engine.sampling, **trial.sampling)
    for event in trial.comparison.speak(engine, sampling, trial.stop, engine.guard):
        trial.tokens.append(event)
