"""Axes and floors."""

from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import load_tensors, save_tensors
from tests.vectors.conftest import LAYERS, Make


def test_a_file_brings_everything_back(make: Make, tmp_path: Path) -> None:
    axes = make.axes()
    axes.save(tmp_path / "axes.safetensors")
    loaded = Axes.load(tmp_path / "axes.safetensors")
    assert loaded.layers == LAYERS
    assert loaded.names == ("assistant", "safety")
    for part in ("baseline", "safety", "assistant", "projections"):
        for name, stack in getattr(axes, part).items():
            assert torch.equal(getattr(loaded, part)[name], stack)


def test_before_there_are_personas_there_is_no_assistant_axis(make: Make, tmp_path: Path) -> None:
    axes = make.axes(assistant=None, projections={"safety": make.stack().sort(dim=1).values})
    axes.save(tmp_path / "axes.safetensors")
    loaded = Axes.load(tmp_path / "axes.safetensors")
    assert (loaded.assistant, loaded.names, loaded.default_capping_axis) == (None, ("safety",), "safety")
    with pytest.raises(VectorFileError, match='no "assistant" axis'):
        loaded.axis("assistant", 2)


@pytest.mark.parametrize("percentile", [0, 1, 24.9, 25, 50, 99.5, 100])
@pytest.mark.parametrize("layer", LAYERS)
def test_any_floor_is_the_quantile(make: Make, layer: int, percentile: float) -> None:
    axes = make.axes()
    expected = torch.quantile(axes.projections["safety"][LAYERS.index(layer)], percentile / 100).item()
    assert axes.floor("safety", layer, percentile) == expected


def test_a_lower_percentile_is_a_lower_floor(make: Make) -> None:
    axes = make.axes()
    assert axes.floor("assistant", 2, 5) < axes.floor("assistant", 2, 25) < axes.floor("assistant", 2, 60)


def test_the_axis_at_a_layer_is_its_row(make: Make) -> None:
    axes = make.axes()
    assert torch.equal(axes.axis("safety", 4, "prompt_last"), axes.safety["prompt_last"][2])


def test_unknown_axes_and_layers_are_one_line(make: Make) -> None:
    axes = make.axes(projections={})
    for call, part in (
        (lambda: axes.axis("safty", 2), 'Did you mean "safety"'),
        (lambda: axes.axis("safety", 3), "layer 3"),
        (lambda: axes.floor("safety", 2), "no floor"),
    ):
        with pytest.raises(VectorFileError) as caught:
            call()
        assert part in str(caught.value)


def test_the_measured_default_wins(make: Make) -> None:
    assert make.axes().default_capping_axis == "assistant"
    assert make.axes(metadata={"default_capping_axis": "safety"}).default_capping_axis == "safety"
    assert make.axes(metadata={"default_capping_axis": "other"}).default_capping_axis == "assistant"


def test_what_does_not_fit_together_is_refused(make: Make) -> None:
    ragged = {"safety": make.stack(rows=2).sort(dim=1).values}
    for changes in (
        {"safety": {"response": make.stack(), "prompt_last": make.stack()}},
        {"projections": {"safety": make.stack()}},
        {"projections": ragged},
        {"projections": {"other": make.stack().sort(dim=1).values}},
        {"projections": {"safety": make.stack(columns=0)}},
        {"layers": (1, 2)},
    ):
        with pytest.raises(ValueError):
            make.axes(**changes)


def test_a_persona_file_is_no_axes_file(make: Make, tmp_path: Path) -> None:
    make.persona().save(tmp_path / "x.safetensors")
    with pytest.raises(VectorFileError, match="'persona', not 'axes'"):
        Axes.load(tmp_path / "x.safetensors")


def test_a_file_without_a_part_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "axes.safetensors"
    make.axes().save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {k: t for k, t in tensors.items() if not k.startswith("baseline")}, metadata)
    with pytest.raises(VectorFileError) as caught:
        Axes.load(path)
    assert "\n" not in str(caught.value)


def test_an_axis_from_before_refusals_were_counted_is_weak(make: Make) -> None:
    axes = make.axes()
    assert "all answers" in str(axes.weakness("safety")) and axes.weakness("assistant") is None
    assert axes.doubt("safety").endswith("Count refusals: persona-tui extract-axes")


@pytest.mark.parametrize(
    ("unsafe", "safe", "what_to_do"),
    [
        ((60, 2), (60, 58), "--refusals given"),
        ((20, 20), (20, 20), "--samples 12"),
        ((60, 60), (60, 10), "answers safe prompts"),
        ((60, 60), (60, 58), ""),
    ],
)
def test_a_weak_axis_says_what_to_do(
    make: Make, unsafe: tuple[int, int], safe: tuple[int, int], what_to_do: str
) -> None:
    record = {
        "unsafe": {"asked": unsafe[0], "refused": unsafe[1]},
        "safe": {"asked": safe[0], "answered": safe[1]},
    }
    axes = make.axes(metadata={"refusals": record})
    assert what_to_do in axes.remedy("safety") and bool(axes.remedy("safety")) == bool(what_to_do)
    assert bool(axes.doubt("safety")) == (axes.weakness("safety") is not None) == bool(what_to_do)
    assert axes.remedy("assistant") == axes.doubt("assistant") == ""
