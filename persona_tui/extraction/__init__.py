"""From prompts to vectors: activations, axes, personas, and how loud a persona has to be."""

from persona_tui.extraction.axes import capping, extract_axes
from persona_tui.extraction.calibration import calibrated, weakness
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.personas import PersonaStudio
from persona_tui.extraction.sums import ActivationSums

__all__ = [
    "ActivationExtractor",
    "ActivationSums",
    "PersonaStudio",
    "calibrated",
    "capping",
    "extract_axes",
    "weakness",
]
