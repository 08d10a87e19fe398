"""Extract directions from a language model's residual stream, steer with them, and hear what they do.

Importing this package is quick: the names below, and torch and transformers with them, load on first use.
"""

from typing import TYPE_CHECKING

from persona_tui.core.lazy import lazily

if TYPE_CHECKING:
    from persona_tui.api import apply, load, score
    from persona_tui.core.mix import Mix
    from persona_tui.datasets.generator import DatasetGenerator
    from persona_tui.extraction.extractor import ActivationExtractor
    from persona_tui.model.request import Sampling
    from persona_tui.model.wrapper import ModelWrapper
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.project.project import Project
    from persona_tui.steering.engine import SteeringEngine
    from persona_tui.traits.definition import TraitDefinition
    from persona_tui.traits.extract import PersonaVectorExtractor
    from persona_tui.traits.vector import TraitVector
    from persona_tui.vectors.manager import PersonaManager
    from persona_tui.vectors.persona import PersonaVector

__version__ = "0.1.0"

__all__ = [
    "ActivationExtractor",
    "DatasetGenerator",
    "Mix",
    "ModelWrapper",
    "PersonaManager",
    "PersonaVector",
    "PersonaVectorExtractor",
    "Project",
    "Sampling",
    "SelfMonitor",
    "SteeringEngine",
    "TraitDefinition",
    "TraitVector",
    "apply",
    "load",
    "score",
]

__getattr__ = lazily(
    __name__,
    {
        "ActivationExtractor": "persona_tui.extraction.extractor",
        "DatasetGenerator": "persona_tui.datasets.generator",
        "Mix": "persona_tui.core.mix",
        "ModelWrapper": "persona_tui.model.wrapper",
        "PersonaManager": "persona_tui.vectors.manager",
        "PersonaVector": "persona_tui.vectors.persona",
        "PersonaVectorExtractor": "persona_tui.traits.extract",
        "Project": "persona_tui.project.project",
        "Sampling": "persona_tui.model.request",
        "SelfMonitor": "persona_tui.monitors.monitor",
        "SteeringEngine": "persona_tui.steering.engine",
        "TraitDefinition": "persona_tui.traits.definition",
        "TraitVector": "persona_tui.traits.vector",
        "apply": "persona_tui.api",
        "load": "persona_tui.api",
        "score": "persona_tui.api",
    },
)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted([*globals(), *__all__])
