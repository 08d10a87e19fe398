"""`export` and `import`: what leaves in each format comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import click
import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import persona_tui
from persona_tui.cli.exchange import export
from persona_tui.core.jobs import JobContext
from persona_tui.core.mix import Mix
from persona_tui.model import Sampling
from persona_tui.project.exchange import FORMATS, import_vectors
from persona_tui.project.project import Project
from tests.server.conftest import serving

from .conftest import Cli


@pytest.mark.parametrize(
    "form", ["gguf", "hotwire", "persona-vectors", "assistant-axis", "pt", "safetensors"]
)
def test_what_leaves_comes_back(
    cli: Cli, workspace: Path, tiny_model: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"gone{'.' + form if form in ('gguf', 'safetensors') else '.pt'}"
    left = cli("export", "sage", "--format", form, "-o", path, "--json").json
    assert left["path"] == str(path) and all(dose > 0 for dose in left["dose"].values())
    (back,) = cli("import", path, "--name", "back", "--json").json
    project = Project.open(workspace, model=str(tiny_model))
    sage, came = (project.personas.get(name).direction() for name in ("sage", "back"))
    own = project.personas.get("back").gain()
    scale = 0.3 if form == "gguf" else 1.0  # llama.cpp's scale of 1 is our strength of 0.3
    for layer, vector in came.items():
        torch.testing.assert_close(vector / own, sage[layer] * scale, rtol=1e-5, atol=1e-6)
    assert back["target_layers"] and (form != "gguf" or own == pytest.approx(1 / 0.3))


def test_an_imported_persona_speaks_and_says_where_it_is_from(cli: Cli, tmp_path: Path) -> None:
    cli("export", "sage", "--format", "gguf", "-o", tmp_path / "v.gguf")
    said = cli("import", tmp_path / "v.gguf", "--name", "guest")
    assert said.status == 0 and "Not calibrated yet" in said.out
    assert cli("generate", "hi", "--persona", "guest").status == 0
    details = cli("info", "guest").out
    assert "control vector" in details and "imported" in details and "Not calibrated" in details
    assert cli("import", tmp_path / "v.gguf", "--name", "guest").status == 1  # the name is taken


def test_llama_cpp_has_no_layer_0(cli: Cli, tmp_path: Path) -> None:
    torch.save({0: torch.ones(32)}, tmp_path / "v.pt")
    cli("import", tmp_path / "v.pt", "--name", "early")
    refused = cli("export", "early", "--format", "gguf", "-o", tmp_path / "v.gguf")
    assert refused.status == 1 and "layer 0 only" in refused.err and not (tmp_path / "v.gguf").exists()


def test_an_axis_leaves_with_its_floors(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "caps.pt"
    assert cli("export", "axis:safety", "--format", "capping", "-o", path).status == 0
    content = torch.load(path, weights_only=True)
    steps = content["experiments"][0]["interventions"]
    assert steps and set(content["vectors"]) == {step["vector"] for step in steps}
    axis = tmp_path / "axis.pt"
    assert cli("export", "axis:safety", "--format", "assistant-axis", "-o", axis).status == 0
    rows = torch.load(axis, weights_only=True)["axis"]
    assert {round(float(row.norm()), 3) for row in rows if row.any()} == {1.0}
    # Theirs is a cap from above: the axis is turned round, and so is its floor.
    turned = next(iter(content["vectors"].values()))
    torch.testing.assert_close(turned["vector"], -rows[turned["layer"]])
    refused = cli("export", "sage", "--format", "capping", "-o", tmp_path / "no.pt")
    assert refused.status == 1 and "only an axis has floors" in refused.err


def test_a_baked_model_says_what_the_persona_says(
    cli: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "baked"
    done = cli("export", "sage", "--format", "baked", "-o", folder, "--strength", "1.5")
    assert done.status == 0 and "live steering" in done.out
    engine = Project.open(workspace, model=str(tiny_model)).engine
    sampling = Sampling(max_new_tokens=12, temperature=0)
    asked = [{"role": "user", "content": "Who are you?"}]
    live = engine.reply(asked, mix=Mix({"sage": 1.0}, 1.5, capping=False), sampling=sampling)
    plain = engine.reply(asked, mix=Mix(), sampling=sampling)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([engine.model.encode(asked)])
    with torch.no_grad():
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert said.rstrip("\ufffd") == live.text.rstrip("\ufffd")  # the last token may be half a letter
    assert live.text != plain.text
    again = cli("export", "sage", "--format", "baked", "-o", folder)
    assert again.status == 1 and "exists" in again.err


def test_the_server_the_library_and_the_baked_model_say_the_same_tokens(
    cli: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Greedily, the same prompt goes on alike wherever the vector is added."""
    baked = tmp_path / "baked"
    assert cli("export", "sage", "--format", "baked", "-o", baked, "--strength", "1.5").status == 0
    project = Project.open(workspace, model=str(tiny_model), dtype="float32")
    asked = [{"role": "user", "content": "Who are you?"}]
    ids = torch.tensor([project.model.encode(asked)])
    ends = project.model.model.generation_config.eos_token_id

    def written(model: PreTrainedModel) -> list[int]:
        with torch.no_grad():
            answer = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=ends,
            )
        return [int(token) for token in answer[0, ids.shape[1] :]]

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with persona_tui.apply(persona_tui.load(project.personas.path_of("sage")), plain, strength=1.5):
        by_library = written(plain)
    by_baked = written(AutoModelForCausalLM.from_pretrained(baked, dtype=torch.float32))
    voice = {"persona": "sage", "strength": 1.5, "capping": False, "plausibility": 0}
    turn = {"messages": asked, "persona_tui": voice, "temperature": 0, "max_new_tokens": 24, "seed": 5}
    with serving(project) as server, httpx.Client(base_url=server.url, timeout=100) as client:
        lines = client.post("/native/turns", json=turn).text.splitlines()
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    by_server = [event["token_id"] for event in told if event.get("token_id", -1) >= 0]
    assert by_server == by_library == by_baked and len(by_server) > 4
    assert by_server != written(plain)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, 0])  # in the model's band, and outside it
def test_an_imported_vector_is_calibrated(cli: Cli, tmp_path: Path, layer: int) -> None:
    torch.save({layer: torch.randn(32, generator=torch.Generator().manual_seed(0))}, tmp_path / "v.pt")
    cli("import", tmp_path / "v.pt", "--name", "guest")
    assert "nats per token" in cli("calibrate", "guest").out  # by the margin alone
    (tmp_path / "prompts.txt").write_text("You are a sage.\n\nSpeak like a sage.\n")
    found = cli("calibrate", "guest", "--prompts", tmp_path / "prompts.txt", "--json").json
    assert found["layers"] == [layer] and "expression" in found
    assert cli("info", "guest", "--json").json["prompts"] == ["You are a sage.", "Speak like a sage."]
    assert cli("calibrate", "guest", "--description", "an old sailor who loves storms").status == 0
    assert "sailor" in cli("info", "guest").out
    assert cli("calibrate", "guest", "--description", "x", "--prompts", "y").status == 2


def test_nothing_is_written_over(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_text("mine")
    refused = cli("export", "sage", "-f", "gguf", "-o", path)
    assert refused.status == 1 and path.read_text() == "mine"
    assert cli("export", "sage", "-f", "gguf", "-o", path, "--force").status == 0


def test_a_file_that_is_missing_is_told_without_the_model(call: Cli, workspace: Path) -> None:
    refused = call("--workspace", workspace, "--model", "nobody/nothing", "import", "pirate.gguf")
    assert refused.status == 1 and "pirate.gguf cannot be imported: it does not exist" in refused.err


def test_a_vector_of_another_size_is_refused(cli: Cli, tmp_path: Path) -> None:
    torch.save({1: torch.ones(33)}, tmp_path / "v.pt")
    refused = cli("import", tmp_path / "v.pt")
    assert refused.status == 1 and "33 wide" in refused.err and "\n" not in refused.err.strip()


def test_without_axes_a_vector_is_sized_by_a_few_replies(
    tmp_path: Path, workspace: Path, tiny_model: Path
) -> None:
    for path in workspace.glob("vectors/*/axes.safetensors"):
        path.unlink()
    torch.save({layer: torch.full((32,), 0.01) for layer in range(3)}, tmp_path / "v.pt")
    project = Project.open(workspace, model=str(tiny_model))
    (persona,) = import_vectors(project, tmp_path / "v.pt", JobContext(), "guest")
    ordinary = (persona.mean["response"] - persona.raw["response"]).norm(dim=-1)
    assert (ordinary > 0).all() and persona.metadata["gain"] > 0
    assert "no axes yet" in persona.metadata["imported"]["notes"][0]


@pytest.mark.slow
def test_roles_become_archetypes(cli: Cli, workspace: Path, tmp_path: Path) -> None:
    role = {"instruction": [{"pos": f"You are a pirate, {at}."} for at in range(5)], "questions": ["Who?"]}
    trait = {"instruction": [{"pos": "Be evil.", "neg": "Be good."}], "eval_prompt": "How evil is it?"}
    folder = tmp_path / "roles"
    folder.mkdir()
    (folder / "pirate.json").write_text(json.dumps(role))
    (folder / "evil.json").write_text(json.dumps(trait))
    done = cli("dataset", "import", folder)
    assert done.status == 0 and "2 archetypes" in done.out and "the opposite" in done.err
    names = [each["name"] for each in cli("list", "--catalogue", "--json").json if each["own"]]
    assert {"pirate", "evil"} <= set(names)
    assert cli("dataset", "validate").status == 0
    again = cli("dataset", "import", folder)
    assert again.status == 1 and "exists" in again.err
    (folder / "odd.json").write_text('{"instruction": [{"neg": "x"}]}')
    refused = cli("dataset", "import", folder / "odd.json")
    assert refused.status == 1 and "odd.json" in refused.err


@pytest.mark.parametrize("strength", ["nan", "1e9"])
def test_a_strength_that_cannot_be_is_not_written(cli: Cli, tmp_path: Path, strength: str) -> None:
    refused = cli("export", "sage", "-f", "gguf", "-o", tmp_path / "v.gguf", "--strength", strength)
    assert refused.status == 2 and "--strength" in refused.err and not (tmp_path / "v.gguf").exists()


def test_the_command_offers_every_format() -> None:
    (form,) = (each for each in export.params if each.name == "form")
    assert isinstance(form.type, click.Choice) and tuple(form.type.choices) == FORMATS
