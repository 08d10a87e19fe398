"""What a stranger's model folder may do: run nothing, ask nothing, and say in one line why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import ModelLoadError
from persona_tui.model import ModelWrapper
from persona_tui.project.models import ModelChoice, with_model
from persona_tui.project.project import Project

from .conftest import make_model, make_tokenizer

REPOSITORY = Path(__file__).parents[2]
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({witness!r}).write_text("ran")
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that the folder's code writes when it runs."""
    return tmp_path / "witness"


@pytest.fixture
def folder(tmp_path: Path, witness: Path) -> Path:
    """A model whose architecture comes as Python code."""
    path = tmp_path / "strange"
    make_model("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "architectures": ["StrangeForCausalLM"],
        "auto_map": {"AutoConfig": "code.StrangeConfig", "AutoModelForCausalLM": "code.StrangeForCausalLM"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(CODE.format(witness=str(witness)))
    return path


def reason(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        ModelWrapper.load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the copies that transformers makes of trusted code out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.slow
def test_answers_on_standard_input_run_nothing(folder: Path, witness: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    options = ["--workspace", str(tmp_path / "w"), "--model", str(folder)]
    command = [sys.executable, "-m", "persona_tui", *options]
    done = subprocess.run(
        [*command, "generate", "hi"],
        input="y\ny\n",
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 1 and not witness.exists()
    assert done.stderr.count("\n") <= 2 and "[y/N]" not in done.stdout + done.stderr
    assert "its own Python code, which was not run" in done.stderr


def test_code_of_a_tokenizer_is_refused_too(folder: Path, witness: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    tokenizer |= {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["code.Odd", None]}}
    path.write_text(json.dumps(tokenizer))
    assert "its own Python code, which was not run" in reason(folder)
    assert not witness.exists()


def test_code_is_left_alone_where_transformers_has_its_own(folder: Path, witness: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(ModelWrapper.load(str(folder), device="cpu").model).__name__ == "LlamaForCausalLM"
    assert not witness.exists()


@pytest.mark.usefixtures("modules")
def test_trust_is_for_one_model_by_name(folder: Path, witness: Path, tmp_path: Path) -> None:
    """Another model that a session or /model names does not inherit it."""
    trusting = Project.open(tmp_path / "w", "builtin", "cpu", trusted_model="builtin")
    other = with_model(trusting, ModelChoice(str(folder), "cpu"))
    with pytest.raises(ModelLoadError, match="was not run"):
        other.model  # noqa: B018
    assert not witness.exists()
    Project.open(tmp_path / "w", str(folder), "cpu", trusted_model=f"{folder}/").model  # noqa: B018
    assert witness.exists()


def test_the_option_needs_a_model(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from persona_tui.cli.root import root

    result = CliRunner().invoke(root, ["--workspace", str(tmp_path), "--trust-remote-code", "list"])
    assert result.exit_code == 2 and "name the model you trust" in result.output


@pytest.mark.usefixtures("modules")
def test_pickled_weights_need_trust(tmp_path: Path) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    said = reason(tmp_path)
    assert "only as pickle (pytorch_model.bin)" in said and "weights_only" not in said
    assert ModelWrapper.load(str(tmp_path), device="cpu", trust_remote_code=True).n_layers == 3


def test_compiled_code_from_elsewhere_is_not_fetched(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "attn_implementation": "someone/some-kernel"})
    )
    assert "compiled code from someone/some-kernel, which was not downloaded" in reason(folder)


# Folders that are no model ----------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An ordinary model."""
    path = tmp_path / "plain"
    make_model("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def test_an_adapter_is_named_with_its_base(plain: Path) -> None:
    (plain / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    assert "has an adapter (adapter_config.json) beside its weights: merge it with some/base" in reason(plain)
    (plain / "config.json").unlink()
    assert "is an adapter (LoRA), not a whole model: merge it with some/base" in reason(plain)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer(plain: Path, name: str) -> None:
    (plain / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1234\n")
    assert f"{name} of {plain} is a Git LFS pointer" in reason(plain)


def test_an_mlx_folder(plain: Path) -> None:
    path = plain / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization": {"group_size": 64, "bits": 4}})
    )
    assert "quantised for MLX" in reason(plain)


def test_another_quantisation_is_named(plain: Path) -> None:
    path = plain / "config.json"
    changed = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(changed))
    assert "quantised with gptq" in reason(plain)


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/some/model", "huggingface.co/some/model/tree/main"]
)
def test_an_address_of_the_hub(address: str) -> None:
    with pytest.raises(ModelLoadError, match=r"is a web address: name the model itself, some/model\."):
        ModelWrapper.load(address)


def test_a_folder_in_another_encoding_or_cut_short(plain: Path) -> None:
    config = (plain / "config.json").read_text()
    (plain / "config.json").write_text(config, encoding="utf-16")
    assert f"config.json of {plain} is UTF-16: save it as UTF-8" in reason(plain)
    (plain / "config.json").write_text(config.replace('"vocab_size": ', '"vocab_size": 1'))
    assert "have other shapes than its config.json says" in reason(plain)
    (plain / "config.json").write_text(config)
    weights = plain / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors is cut short" in reason(plain)
    weights.write_bytes(b"")
    assert "model.safetensors cannot be read" in reason(plain)
