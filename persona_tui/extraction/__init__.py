"""From prompts to vectors: activations, axes, personas, and how loud a persona has to be.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from persona_tui.core.lazy import lazily

if TYPE_CHECKING:
    from persona_tui.extraction.axes import extract_axes
    from persona_tui.extraction.calibration import calibrated, weakness
    from persona_tui.extraction.extractor import ActivationExtractor
    from persona_tui.extraction.personas import PersonaStudio
    from persona_tui.extraction.sums import ActivationSums

__all__ = [
    "ActivationExtractor",
    "ActivationSums",
    "PersonaStudio",
    "calibrated",
    "extract_axes",
    "weakness",
]

__getattr__ = lazily(
    __name__,
    {
        "ActivationExtractor": "persona_tui.extraction.extractor",
        "ActivationSums": "persona_tui.extraction.sums",
        "PersonaStudio": "persona_tui.extraction.personas",
        "calibrated": "persona_tui.extraction.calibration",
        "extract_axes": "persona_tui.extraction.axes",
        "weakness": "persona_tui.extraction.calibration",
    },
)
