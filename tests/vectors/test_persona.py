"""Personas: files, steering directions, and shapes that do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import load_tensors, save_tensors
from persona_tui.vectors.persona import KINDS, Calibration, PersonaVector
from tests.vectors.conftest import HIDDEN, LAYERS, Make

CALIBRATION = Calibration(
    recipe="prompt_last",
    layers=(2, 4),
    gain=2.5,
    default_strength=0.3,
    expression=0.9,
    fluency_drop=0.2,
    curve=[
        {
            "recipe": "prompt_last",
            "layers": [2, 4],
            "coefficient": 0.3,
            "expression": 0.9,
            "fluency_drop": 0.1,
            "chosen": True,
        }
    ],
)


def test_a_file_brings_everything_back(make: Make, tmp_path: Path) -> None:
    persona = make.persona(calibration=CALIBRATION)
    persona.save(tmp_path / "sage.safetensors")
    loaded = PersonaVector.load(tmp_path / "sage.safetensors")
    assert (loaded.name, loaded.layers, loaded.calibration) == ("sage", LAYERS, CALIBRATION)
    assert loaded.metadata.items() >= persona.metadata.items()
    assert loaded.metadata["hidden_size"] == HIDDEN
    for kind in KINDS:
        for recipe, stack in getattr(persona, kind).items():
            assert torch.equal(getattr(loaded, kind)[recipe], stack)


def test_saving_what_was_loaded_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    make.persona(calibration=CALIBRATION).save(tmp_path / "one")
    PersonaVector.load(tmp_path / "one").save(tmp_path / "two")
    one, two = (load_tensors(tmp_path / name) for name in ("one", "two"))
    assert one[1] == two[1]
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def test_uncalibrated_direction_is_the_response_vector_as_it_is(make: Make) -> None:
    persona = make.persona()
    assert list(persona.direction()) == list(LAYERS)
    assert torch.equal(persona.direction()[2], persona.safe["response"][1])
    assert torch.equal(persona.direction(safe=False)[2], persona.raw["response"][1])


def test_uncalibrated_direction_keeps_to_the_target_layers(make: Make) -> None:
    persona = make.persona(metadata={"target_layers": [2, 4, 9]})
    assert list(persona.direction()) == [2, 4]


def test_calibrated_direction_has_its_recipe_layers_and_gain(make: Make) -> None:
    persona = make.persona().with_calibration(CALIBRATION)
    assert list(persona.direction()) == [2, 4]
    torch.testing.assert_close(persona.direction()[4], 2.5 * persona.safe["prompt_last"][2])
    assert list(persona.with_calibration(None).direction()) == list(LAYERS)


def test_one_recipe_is_enough(make: Make, tmp_path: Path) -> None:
    stack = {"prompt_last": make.stack()}
    persona = make.persona(mean=stack, raw=stack, safe=stack)
    persona.save(tmp_path / "x")
    assert PersonaVector.load(tmp_path / "x").recipe == "prompt_last"


def test_what_does_not_fit_together_is_refused(make: Make) -> None:
    for changes in (
        {"layers": ()},
        {"layers": (4, 2, 1)},
        {"layers": (1, 1, 2)},
        {"layers": (-1, 2, 4)},
        {"layers": (1, 2)},
        {"mean": {}, "raw": {}, "safe": {}},
        {"safe": {"response": make.stack()}},
        {"raw": {"response": make.stack(), "prompt_last": make.stack(columns=HIDDEN + 1)}},
        {"raw": {"response": make.stack()[0], "prompt_last": make.stack()}},
        {"calibration": Calibration("response", (3,), 1.0, 0.3, 1.0, 0.0)},
        {"calibration": Calibration("other", (2,), 1.0, 0.3, 1.0, 0.0)},
    ):
        with pytest.raises(ValueError):
            make.persona(**changes)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [1, 2]},
        {"layers": "all"},
        {"layers": None},
        {"kind": "axes"},
        {"format_version": 99},
        {"calibration": {"gain": 2}},
        {"calibration": {"gain": "loud", "recipe": "response", "layers": [2]}},
        {"calibration": [1]},
    ],
)
def test_a_file_with_wrong_metadata_is_refused_in_one_line(make: Make, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "sage.safetensors"
    make.persona().save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | change)
    with pytest.raises(VectorFileError) as caught:
        PersonaVector.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_file_with_a_wrong_shape_is_refused_with_both_sizes(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "sage.safetensors"
    make.persona().save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors | {"safe.response": make.stack(columns=HIDDEN - 1)}, metadata)
    with pytest.raises(VectorFileError, match=rf"\[3, {HIDDEN - 1}\], not \[3, {HIDDEN}\]"):
        PersonaVector.load(path)


def test_with_the_guide_a_persona_may_be_louder(make: Make, tmp_path: Path) -> None:
    both = replace(CALIBRATION, gain=6.0, plausibility=0.02, unguided_gain=2.5)
    make.persona(calibration=both).save(tmp_path / "x")
    persona = PersonaVector.load(tmp_path / "x")
    assert persona.calibration == both
    torch.testing.assert_close(persona.direction(guided=True)[4], 6.0 * persona.safe["prompt_last"][2])
    torch.testing.assert_close(persona.direction()[4], 2.5 * persona.safe["prompt_last"][2])
    assert (persona.gain(guided=True), persona.gain()) == (6.0, 2.5)


def test_a_file_with_one_gain_is_as_loud_with_the_guide_as_without(make: Make) -> None:
    for persona in (make.persona(calibration=CALIBRATION), make.persona(metadata={"gain": 2.5})):
        assert persona.gain(guided=True) == persona.gain() == 2.5
    uncalibrated = make.persona(metadata={"gain": 3.0, "unguided_gain": 1.5})
    assert (uncalibrated.gain(guided=True), uncalibrated.gain()) == (3.0, 1.5)
