"""The keys of the monitor and trait screens, apart from these: they import torch, keys are known before.

What stands before the colon of a description is what the bottom row has room for.
"""

from textual.binding import Binding

MONITORS = [
    Binding("f5", "evaluate", "measure: all methods on the test sets, as a job", id="monitors_evaluate"),
    Binding("f", "fit", "fit: another monitor, or this one again, as a job", id="monitors_fit"),
    Binding("ctrl+s", "save", "use this: method and threshold, from now on", id="monitors_save"),
    Binding("r", "reset", "as fitted: the threshold of cross-validation", id="monitors_reset"),
    Binding("w", "write", "files: all results as JSON and CSV", id="monitors_write"),
]
MAP = [
    Binding("f5", "again", "again: with the voice and the conversation of now", id="map_again"),
    Binding("left", "step(-1)", "persona before", show=False, id="map_before"),
    Binding("right", "step(1)", "next persona", id="map_after"),
]
DRIFT = [
    Binding("f5", "again", "again: with the conversation of now", id="drift_again"),
    Binding("c", "app.cap", "cap: from here on", id="drift_cap"),
]
HEAT = [
    Binding("left", "step(-1)", "token before", show=False, id="heat_before"),
    Binding("right", "step(1)", "token after", id="heat_after"),
    Binding("home", "step(-100000)", "first token", show=False, id="heat_first"),
    Binding("end", "step(100000)", "last token", show=False, id="heat_last"),
    Binding("d", "direction(1)", "direction", id="heat_direction"),
    Binding("D", "direction(-1)", "direction before", show=False, id="heat_direction_back"),
]
SWEEP = [
    Binding("f5", "again", "again: with the voice of now, as a job", id="sweep_again"),
    Binding("1", "use(0)", "to 5 speak with that strength", id="sweep_use_1"),
    *(
        Binding(f"{at}", f"use({at - 1})", f"speak with strength {at}", show=False, id=f"sweep_use_{at}")
        for at in range(2, 6)
    ),
]
TRAITS = [
    Binding("f5", "extract", "extract: a trait's vectors, as a job", id="traits_extract"),
    Binding("l", "calibrate", "labels: find the best threshold for them", id="traits_calibrate"),
    Binding("ctrl+s", "save", "use this: threshold, from now on", id="traits_save"),
    Binding("r", "reset", "undo: the threshold in use", id="traits_reset"),
    Binding("p", "policy", "policy: what scores are allowed", id="traits_policy"),
    Binding("w", "write", "files: this conversation's scores as JSON and CSV", id="traits_write"),
]
PICTURES = [*MAP, *DRIFT, *HEAT, *SWEEP]
