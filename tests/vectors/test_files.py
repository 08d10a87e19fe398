"""Vector files: what is written comes back, and everything else is refused in one line."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialize

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors import files
from persona_tui.vectors.files import (
    METADATA_KEY,
    check_kind,
    check_model,
    fault_of,
    load_tensors,
    same_model,
    save_tensors,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.safetensors"


def refused(path: Path) -> str:
    with pytest.raises(VectorFileError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_tensors_and_metadata_come_back(path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).T, "c": torch.randn(2).to(torch.bfloat16)}
    metadata = {"kind": "x", "text": 'Zoë "said"\n', "numbers": [1, 2.5, None]}
    save_tensors(path, tensors, metadata)
    loaded, read = load_tensors(path)
    assert read == metadata
    for name, tensor in tensors.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


def test_views_of_one_tensor_can_be_saved(path: Path) -> None:
    whole = torch.randn(4, 3)
    save_tensors(path, {"top": whole[:2], "all": whole, "again": whole}, {})
    assert torch.equal(load_tensors(path)[0]["top"], whole[:2])


def test_writing_nan_or_odd_metadata_is_refused_and_keeps_the_old_file(path: Path) -> None:
    save_tensors(path, {"a": torch.ones(2)}, {"n": 1})
    for tensors, metadata in (
        ({"a": torch.tensor([1.0, float("nan")])}, {}),
        ({}, {}),
        ({"a": torch.ones(2)}, {"n": float("inf")}),
        ({"a": torch.ones(2)}, {"n": object()}),
    ):
        with pytest.raises(VectorFileError):
            save_tensors(path, tensors, metadata)
    assert load_tensors(path)[1] == {"n": 1}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def good_bytes(**tensors: torch.Tensor) -> bytes:
    return serialize(tensors or {"a": torch.randn(8, 8)}, {METADATA_KEY: '{"kind": "persona"}'})


def with_header(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def torch_pickle() -> bytes:
    out = io.BytesIO()
    torch.save({"vector": torch.ones(3)}, out)
    return out.getvalue()


META = {METADATA_KEY: "{}"}
BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "few bytes": lambda: b"abc",
    "text": lambda: b"this is a letter and not a vector file",
    "body cut off": lambda: good_bytes()[:-5],
    "header cut off": lambda: good_bytes()[:20],
    "bytes appended": lambda: good_bytes() + b"junk",
    "huge header": lambda: (1 << 62).to_bytes(8, "little") + b"{}" + b" " * 100,
    "header longer than the file": lambda: (1000).to_bytes(8, "little") + b"{}",
    "header not JSON": lambda: with_header(b"{nope"),
    "header not an object": lambda: with_header([1, 2]),
    "deep header": lambda: with_header(b"[" * 100_000),
    "no metadata": lambda: serialize({"a": torch.ones(2)}),
    "metadata of another program": lambda: serialize({"a": torch.ones(2)}, {"format": "pt"}),
    "metadata not JSON": lambda: serialize({"a": torch.ones(2)}, {METADATA_KEY: "{"}),
    "metadata a list": lambda: serialize({"a": torch.ones(2)}, {METADATA_KEY: "[]"}),
    "metadata with NaN": lambda: serialize({"a": torch.ones(2)}, {METADATA_KEY: '{"n": NaN}'}),
    "no tensors": lambda: serialize({}, META),
    "NaN": lambda: good_bytes(a=torch.tensor([float("nan")])),
    "infinity": lambda: good_bytes(a=torch.tensor([float("-inf")])),
    "integers": lambda: good_bytes(a=torch.ones(2, dtype=torch.int64)),
    "shape against bytes": lambda: with_header(
        {"__metadata__": META, "a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "offsets past the end": lambda: with_header(
        {"__metadata__": META, "a": {"dtype": "F32", "shape": [2], "data_offsets": [800, 808]}}, b"\0" * 8
    ),
    "unknown dtype": lambda: with_header(
        {"__metadata__": META, "a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "pickle": lambda: pickle.dumps({"vector": [1.0]}),
    "torch pickle": torch_pickle,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(path: Path, kind: str) -> None:
    path.write_bytes(BROKEN[kind]())
    message = refused(path)
    assert len(message) < 400
    if "pickle" in kind:
        assert "pickle" in message


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


def test_a_renamed_pickle_is_never_executed(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Trap()))
    assert "pickle" in refused(path)


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = good_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        refused(path)


def test_missing_files_and_folders_are_refused(path: Path) -> None:
    assert "no such file" in refused(path)
    path.mkdir()
    assert "not a file" in refused(path)


def test_a_file_too_large_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(good_bytes())
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    assert "too large" in refused(path)


def test_kind_and_version_are_checked(path: Path) -> None:
    check_kind(path, {"kind": "axes", "format_version": 1}, "axes")
    with pytest.raises(VectorFileError, match="'persona', not 'axes'"):
        check_kind(path, {"kind": "persona", "format_version": 1}, "axes")
    with pytest.raises(VectorFileError, match="format version is 2"):
        check_kind(path, {"kind": "axes", "format_version": 2}, "axes")


def test_fingerprints_are_compared_by_what_both_have() -> None:
    assert same_model("a.1", "a.1") and same_model("a", "a.1") and same_model("a.1", "a")
    assert not same_model("a.1", "a.2") and not same_model("a.1", "b.1") and not same_model("a", "b")
    assert not same_model(None, "a.1")


def test_another_model_is_refused_naming_both(path: Path) -> None:
    metadata = {"model_name": "org/one", "model_fingerprint": "a" * 64}
    check_model(path, metadata, "a" * 64, "org/two")
    check_model(path, metadata, None, "org/two")
    with pytest.raises(VectorFileError) as caught:
        check_model(path, metadata, "b" * 64, "org/two")
    assert "org/one" in str(caught.value)
    assert "org/two" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"), [({"target_layers": [999]}, "target_layers"), ({"layers": [1, 2, 999]}, "layers")]
)
def test_layers_that_cannot_be_are_named(change: dict[str, list[int]], field: str) -> None:
    shape = {"architecture": "x", "hidden_size": 8, "layers": 6, "vocabulary": 9}
    sound = {"kind": "persona", "name": "x", "layers": [1, 2, 4], "target_layers": [2], "model_shape": shape}
    assert fault_of(sound) is None
    problem = fault_of({**sound, **change})
    assert problem is not None and field in problem and "\n" not in problem
