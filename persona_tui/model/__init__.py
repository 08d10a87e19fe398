"""One loaded causal language model: reading, steering and capping its residual stream while it writes."""

from persona_tui.model.generation import Finish, Sampling, Watch
from persona_tui.model.residual import Cap, Interventions, ResidualHooks
from persona_tui.model.text import Message
from persona_tui.model.wrapper import (
    Activations,
    Generation,
    ModelWrapper,
    Reading,
    Request,
    Scored,
    TokenEvent,
    conversation,
)

__all__ = [
    "Activations",
    "Cap",
    "Finish",
    "Generation",
    "Interventions",
    "Message",
    "ModelWrapper",
    "Reading",
    "Request",
    "ResidualHooks",
    "Sampling",
    "Scored",
    "TokenEvent",
    "Watch",
    "conversation",
]
