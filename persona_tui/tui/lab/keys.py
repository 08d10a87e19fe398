"""The lab screens' keys, apart from the screens: those import torch, and keys are known before that."""

from textual.binding import Binding

MONITORS = [
    Binding("e", "evaluate", "measure", id="monitors_evaluate"),
    Binding("f", "fit", "fit", id="monitors_fit"),
    Binding("s", "save", "use this", id="monitors_save"),
    Binding("r", "reset", "as fitted", id="monitors_reset"),
    Binding("w", "write", "files", id="monitors_write"),
]
TRAITS = [
    Binding("x", "extract", "extract", id="traits_extract"),
    Binding("l", "calibrate", "labels", id="traits_calibrate"),
    Binding("s", "save", "use this", id="traits_save"),
    Binding("r", "reset", "undo", id="traits_reset"),
    Binding("p", "policy", "policy", id="traits_policy"),
    Binding("w", "write", "files", id="traits_write"),
]
