"""Other programs' files, read: the layers they belong to, and files that cannot be read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.formats.direction import Direction
from persona_tui.formats.read import read_foreign

LAYERS, WIDTH = 4, 6


def rows(count: int) -> Tensor:
    """Row i is filled with i + 1, so that every row can be told from the others."""
    return torch.arange(1.0, count + 1)[:, None].expand(count, WIDTH).clone()


def only(path: Path, **options: object) -> Direction:
    (found,) = read_foreign(path, LAYERS, **options)  # type: ignore[arg-type]
    return found


def saved(tmp_path: Path, content: object, name: str = "v.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def firsts(direction: Direction) -> dict[int, float]:
    return {layer: float(vector[0]) for layer, vector in direction.vectors.items()}


def test_rows_of_hidden_states_are_shifted_by_one(tmp_path: Path) -> None:
    # persona_vectors: row 0 is the embeddings, row k block k - 1, the last after the final norm.
    found = only(saved(tmp_path, rows(LAYERS + 1), "evil_response_avg_diff.pt"))
    assert firsts(found) == {0: 2, 1: 3, 2: 4}
    assert "shifted" in found.notes[0]


def test_rows_of_blocks_stay_where_they_are(tmp_path: Path) -> None:
    assert firsts(only(saved(tmp_path, rows(LAYERS)))) == {0: 1, 1: 2, 2: 3, 3: 4}
    axis = only(saved(tmp_path, {"axis": rows(LAYERS), "metadata": {"model": "x"}}))
    assert firsts(axis) == {0: 1, 1: 2, 2: 3, 3: 4} and axis.description == "model: x"
    role = only(saved(tmp_path, {"vector": rows(LAYERS), "type": "pos_3", "role": "pirate"}))
    assert role.name == "pirate" and len(role.vectors) == LAYERS


def test_what_rows_count_can_be_said(tmp_path: Path) -> None:
    path = saved(tmp_path, rows(LAYERS))
    with pytest.raises(VectorFileError, match="it has 4 rows, and this model has 4 layers"):
        only(path, indices="hidden-states")


def test_one_vector_needs_a_layer(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.ones(WIDTH))
    with pytest.raises(VectorFileError, match="--layer"):
        only(path)
    assert list(only(path, layer=2).vectors) == [2]
    with pytest.raises(VectorFileError, match="layers 0 to 3"):
        only(path, layer=4)


def test_the_documents_forms(tmp_path: Path) -> None:
    persona = {
        "raw_vector": torch.ones(WIDTH),
        "safe_vector": 2 * torch.ones(WIDTH),
        "layers": [1, 2],
        "source": "archetype",
        "description": "an old sailor",
        "metadata": {},
    }
    found = only(saved(tmp_path, persona, "captain.pt"))
    assert firsts(found) == {1: 2, 2: 2} and found.description == "an old sailor"
    by_layer = {**persona, "per_layer_vectors": {1: torch.ones(WIDTH), 2: 3 * torch.ones(WIDTH)}}
    assert firsts(only(saved(tmp_path, by_layer))) == {1: 1, 2: 3}
    trait = {"trait_name": "empathy", "direction": torch.ones(WIDTH), "layer_idx": 3, "strength": 2.0}
    found = only(saved(tmp_path, trait))
    assert found.name == "empathy" and list(found.vectors) == [3]
    axis = {"vector": torch.ones(WIDTH), "floor": 0.5, "layers": [2, 3], "metadata": {}}
    assert list(only(saved(tmp_path, axis)).vectors) == [2, 3]


def test_a_capping_file_has_several(tmp_path: Path) -> None:
    vectors = {f"layer_{at}": {"layer": at, "vector": torch.ones(WIDTH)} for at in (1, 2)}
    path = saved(tmp_path, {"vectors": vectors, "experiments": []})
    assert [each.name for each in read_foreign(path, LAYERS)] == ["layer_1", "layer_2"]
    assert list(only(path, wanted="layer_2").vectors) == [2]


def test_svec(tmp_path: Path) -> None:
    path = tmp_path / "refusal.svec"
    content = {"model_type": "qwen2", "directions": {"0": [1.0] * WIDTH, "-1": [2.0] * WIDTH}}
    path.write_text(json.dumps(content))
    assert firsts(only(path)) == {0: 1, 3: 2}
    path.write_text('{"directions": [1]}')
    with pytest.raises(VectorFileError, match="not a steering vector in JSON"):
        only(path)


def test_safetensors_with_a_tensor_for_each_layer(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    save_file({f"model.layers.{at}": torch.full((WIDTH,), at + 1.0) for at in (1, 3)}, path)
    assert firsts(only(path)) == {1: 2, 3: 4}


def test_a_pack_of_saklas(tmp_path: Path) -> None:
    pack = tmp_path / "pirate"
    pack.mkdir()
    (pack / "manifold.json").write_text('{"name": "pirate", "format_version": 10}')
    fit = {"layer_2.mean": torch.zeros(WIDTH), "layer_2.basis": torch.ones(1, WIDTH)}
    save_file({**fit, "layer_2.node_coords": torch.tensor([[3.0], [1.0]])}, pack / "model.safetensors")
    assert firsts(only(pack)) == {2: 2} and only(pack).name == "pirate"
    save_file({**fit, "layer_2.basis": torch.ones(2, WIDTH)}, pack / "model.safetensors")
    with pytest.raises(VectorFileError, match="more than one dimension"):
        only(pack)


class Danger:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.pt"
    path.write_bytes(pickle.dumps(Danger()))
    with pytest.raises(VectorFileError, match=r"could run code|damaged"):
        only(path)
    torch.save({"vector": Danger()}, path)
    with pytest.raises(VectorFileError, match="could run code") as caught:
        only(path)
    assert "weights_only" not in str(caught.value)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("v.pt", b"not a file", "damaged|could run code"),
        ("v.gguf", b"GGUF" + bytes(20), "damaged"),
        ("v.gguf", b"nothing", "not a GGUF"),
        ("v.safetensors", b"nothing at all", "damaged"),
        ("v.txt", b"", "its name ends with none of"),
        ("absent.pt", None, "does not exist"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VectorFileError, match=reason) as caught:
        only(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-30, 3e30])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path, {1: torch.full((WIDTH,), value)})
    with pytest.raises(VectorFileError, match="layer 1"):
        only(path)


@pytest.mark.parametrize(
    "content",
    [
        {"vector": torch.ones(WIDTH), "layers": ["a"]},
        {"raw_vector": torch.ones(WIDTH), "layers": [None]},
        {1: torch.ones(WIDTH).to_sparse()},
        {"x": torch.ones(LAYERS, WIDTH).to_sparse()},
        torch.ones(LAYERS, WIDTH).to_sparse(),
    ],
)
def test_what_is_not_what_its_form_says_is_one_line(tmp_path: Path, content: object) -> None:
    with pytest.raises(VectorFileError) as caught:
        only(saved(tmp_path, content))
    assert "\n" not in str(caught.value)
