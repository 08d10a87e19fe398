"""One loaded causal language model: reading, steering and capping its residual stream while it writes.

The names below are imported when they are first used: finding a model's weights (`sources`) needs no torch.
"""

from typing import TYPE_CHECKING

from persona_tui.core.lazy import lazily

if TYPE_CHECKING:
    from persona_tui.model.backend import Backend
    from persona_tui.model.generation import Finish, Sampling, Watch
    from persona_tui.model.interventions import Cap, Interventions
    from persona_tui.model.residual import ResidualHooks
    from persona_tui.model.text import Message
    from persona_tui.model.wrapper import (
        Activations,
        Generation,
        Likelihood,
        ModelWrapper,
        Reading,
        Request,
        TokenEvent,
        conversation,
    )

__all__ = [
    "Activations",
    "Backend",
    "Cap",
    "Finish",
    "Generation",
    "Interventions",
    "Likelihood",
    "Message",
    "ModelWrapper",
    "Reading",
    "Request",
    "ResidualHooks",
    "Sampling",
    "TokenEvent",
    "Watch",
    "conversation",
]

_GENERATION = ("Finish", "Sampling", "Watch")
__getattr__ = lazily(
    __name__,
    dict.fromkeys(__all__, "persona_tui.model.wrapper")
    | dict.fromkeys(_GENERATION, "persona_tui.model.generation")
    | dict.fromkeys(("Cap", "Interventions"), "persona_tui.model.interventions")
    | {
        "Backend": "persona_tui.model.backend",
        "Message": "persona_tui.model.text",
        "ResidualHooks": "persona_tui.model.residual",
    },
)
