"""One loaded causal language model: reading, steering and capping its residual stream while it writes.

The names below are imported when they are first used: finding a model's weights (`sources`) needs no torch.
"""

from typing import TYPE_CHECKING

from persona_tui.core.lazy import lazily

if TYPE_CHECKING:
    from persona_tui.model.backend import Backend
    from persona_tui.model.request import Cap, Interventions, Message, Request, Sampling, Watch, conversation
    from persona_tui.model.residual import ResidualHooks
    from persona_tui.model.results import Activations, Finish, Generation, Likelihood, Reading, TokenEvent
    from persona_tui.model.wrapper import ModelWrapper

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

_RESULTS = ("Activations", "Finish", "Generation", "Likelihood", "Reading", "TokenEvent")
_REQUEST = ("Cap", "Interventions", "Message", "Request", "Sampling", "Watch", "conversation")
__getattr__ = lazily(
    __name__,
    dict.fromkeys(_RESULTS, "persona_tui.model.results")
    | dict.fromkeys(_REQUEST, "persona_tui.model.request")
    | {
        "Backend": "persona_tui.model.backend",
        "ModelWrapper": "persona_tui.model.wrapper",
        "ResidualHooks": "persona_tui.model.residual",
    },
)
