"""The direction of a monitor, to steer with: from what it calls dangerous to what it calls safe.

A monitor's file has the mean activations of safe and of dangerous messages at every layer. Their difference
is a direction like a persona's. It is not calibrated, and stays in the monitor's file.
"""

from __future__ import annotations

from pathlib import Path

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import check_kind, load_tensors
from persona_tui.vectors.persona import PersonaVector, default_gains

_POSITIONS = ("message", "prompt_last")
_RECIPE = "response"
_BAND = (0.3, 0.6)  # of the depth, as for personas


def monitor_direction(path: Path, name: str) -> PersonaVector:
    """Return a monitor's direction as a persona of this name; positive strengths move towards what is safe.

    Raises:
        VectorFileError: the file is missing, damaged, or no monitor with content vectors.
    """
    tensors, metadata = load_tensors(path)
    check_kind(path, metadata, "monitor")
    for position in _POSITIONS:
        stacks = [tensors.get(f"stack.content.{position}.{side}") for side in ("safe", "dangerous")]
        if stacks[0] is not None and stacks[1] is not None:
            safe, dangerous = stacks[0].float(), stacks[1].float()
            break
    else:
        raise VectorFileError(f"{path} has no content vectors to steer with: fit the monitor again.")
    depth = len(safe)
    band = [layer for layer in range(depth) if _BAND[0] * depth <= layer < _BAND[1] * depth] or [depth - 1]
    raw = safe - dangerous
    direction = PersonaVector(
        name,
        tuple(range(depth)),
        mean={_RECIPE: safe},
        raw={_RECIPE: raw},
        safe={_RECIPE: raw.clone()},
        metadata={**metadata, "kind": "persona", "source": "monitor", "target_layers": band},
    )
    direction.metadata.update(default_gains(direction, band))
    return direction
