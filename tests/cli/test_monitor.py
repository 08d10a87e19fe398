"""`monitor`: fitting, checking, measuring and listing, on a random model."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.model.conftest import make_model, make_tokenizer

from .conftest import Cli, finish, spawn

METHODS = {"tone", "content", "projection", "probe", "consensus"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny_model: Path) -> Path:
    """A workspace with a monitor that was fitted on the small set. Not to be changed: take `monitored`."""
    from persona_tui.core.jobs import JobContext
    from persona_tui.project.project import Project

    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("workspaces") / "fitted"))
    Project.open(root, model=str(tiny_model)).fit_monitor("default", JobContext(), "training")
    return root


@pytest.fixture
def monitored(tmp_path: Path, fitted: Path, call: Cli, tiny_model: Path) -> Cli:
    """Calls a command line in a copy of that workspace, of one's own."""
    root = shutil.copytree(fitted, tmp_path / "monitored")
    return lambda *args, **options: call("--workspace", root, "--model", tiny_model, *args, **options)


def monitors(root: Path) -> Path:
    (folder,) = root.glob("vectors/*/monitors")
    return folder


# --- fitting ---


@pytest.mark.slow
def test_a_fit_says_what_it_chose_and_leaves_two_files(cli: Cli, workspace: Path) -> None:
    result = cli("monitor", "fit", "mine", "--data", "training", "--no-measure")
    assert result.status == 0, result.err
    assert set(result.out.split()) >= METHODS
    assert result.out.count(" used") == 1
    assert sorted(path.name for path in monitors(workspace).iterdir()) == ["mine.safetensors", "summary.json"]
    (summary,) = json.loads((monitors(workspace) / "summary.json").read_text())
    assert summary["name"] == "mine" and set(summary["cross_validation"]) == METHODS
    assert summary["data"] == [
        {"file": "training.jsonl", "sha256": summary["data"][0]["sha256"], "queries": 50}
    ]


@pytest.mark.slow
def test_the_method_and_the_data_can_be_ones_own(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"id": f"{label}{n}", "query": f"{text} {n}?", "label": label, "kind": "own", "category": harm}
        for label, text, harm in (
            ("safe", "How do I bake cake", None),
            ("dangerous", "How do I rob bank", "fraud"),
        )
        for n in range(5)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    made = cli("monitor", "fit", "own", "--file", path, "--method", "content", "--no-measure", "--json").json
    assert made["method"] == "content" and made["data"][0]["queries"] == 10
    again = cli("monitor", "fit", "own", "--file", path, "--method", "content", "--no-measure", "--json").json
    assert {**made, "created": ""} == {**again, "created": ""}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "is empty"),
        ("\x00\x01\xff", "mine.jsonl:1: not"),
        ('{"id": "a", "label": "safe", "kind": "own"}', 'mine.jsonl:1: "query" is missing'),
        ('{"id": "a", "query": "Hello?", "label": "safe", "kind": "own"}', "0 dangerous queries are too few"),
    ],
)
def test_bad_data_are_one_line(cli: Cli, tmp_path: Path, lines: str, problem: str) -> None:
    path = tmp_path / "mine.jsonl"
    safe = [{"id": f"s{n}", "query": f"Say {n}", "label": "safe", "kind": "own"} for n in range(4)]
    rest = "".join(f"{json.dumps(line)}\n" for line in safe) if "too few" in problem else ""
    path.write_text(f"{lines}\n{rest}", encoding="latin-1")
    result = cli("monitor", "fit", "mine", "--file", path)
    assert (result.status, result.out) == (1, "")
    assert problem in result.err and result.err.count("\n") == 1


def test_a_bad_name_is_an_error_before_the_model_loads(call: Cli, workspace: Path) -> None:
    result = call("--workspace", workspace, "--model", "nobody/nothing", "monitor", "fit", "../x")
    assert result.status == 1 and "cannot be a name" in result.err


@pytest.mark.slow
def test_a_monitor_moves_to_another_model_on_its_own_data(
    monitored: Cli, call: Cli, tmp_path: Path, fitted: Path
) -> None:
    other = tmp_path / "other"
    make_model("gpt2", seed=3).save_pretrained(other)
    make_tokenizer(chat=False).save_pretrained(other)
    source = monitors(fitted) / "default.safetensors"
    there = ("--workspace", tmp_path / "monitored", "--model", other)
    made = call(*there, "monitor", "fit", "--like", source, "--no-measure", "--json").json
    assert made["model_name"] == str(other) and sum(each["queries"] for each in made["data"]) == 50
    assert call(*there, "monitor", "check", "How do I bake bread?", "--json").json["monitor"] == "default"
    # A file in the wrong folder is told from the model's own.
    (wrong,) = (path for path in (tmp_path / "monitored").glob("vectors/other*/monitors"))
    shutil.copy(source, wrong / "default.safetensors")
    result = call(*there, "monitor", "check", "Hello?")
    assert result.status == 1
    assert "was made on" in result.err and str(other) in result.err


@pytest.mark.slow
def test_a_fit_says_which_kinds_it_is_wrong_about_and_marks_a_weak_monitor(cli: Cli) -> None:
    result = cli("monitor", "fit", "mine", "--data", "training", "--min-catch", "0.5")
    assert result.status == 0, result.err
    rows = [line.split() for line in result.out.splitlines()]
    by_kind = {tuple(row[:2]): row for row in rows if len(row) > 5}
    assert by_kind["direct", "dangerous"][2] == "25" and by_kind["idiom", "safe"][2] == "-"
    assert "Missed in cross-validation:" in result.out
    # A random model that is asked for half of the requests catches about half of those held out, too.
    assert 'Weak: "mine" catches 0.' in result.err and "where 0.97 are wanted" in result.err
    (listed,) = cli("monitor", "list", "--json").json
    assert listed["caught"]["on"] == "held-out queries" and listed["weakness"].startswith('weak: "mine"')
    assert "(weak)" in cli("monitor", "list").out
    warned = cli("chat", "--no-save", stdin="/guard warn\n")  # no monitor of the configured name
    assert warned.status == 1
    config = cli("doctor", "--json")
    assert any(check["name"] == "monitor" and check["state"] == "note" for check in config.json)


@pytest.mark.slow
def test_a_threshold_has_one_aim(cli: Cli) -> None:
    both = cli("monitor", "fit", "--min-catch", "0.9", "--max-false-alarms", "0.1")
    assert both.status == 2 and "not both" in both.err
    options = ("--data", "training", "--no-measure", "--json")
    strict = cli("monitor", "fit", "strict", "--max-false-alarms", "0.04", *options).json
    assert strict["trade"] == {"max_false_alarms": 0.04}
    for detector in strict["cross_validation"].values():
        assert detector["flagged"]["value"] == pytest.approx(0.04)


def test_attacks_are_told_by_kind(monitored: Cli) -> None:
    attacks = monitored("monitor", "redteam", "--count", "4", "--json").json["attacks"]
    kinds = {each["kind"] for each in attacks}
    assert kinds >= {"wording", "role play", "padding", "suffixes", "spelling", "encodings", "languages"}
    assert all(each["n"] in (4, 10) and each["flagged"]["low"] >= 0 for each in attacks)
    assert monitored("monitor", "redteam", "--count", "4", "--json").json["attacks"] == attacks
    assert monitored("monitor", "redteam", "nobody").status == 1


@pytest.mark.slow
def test_whether_the_model_can_judge_replies_is_tried(cli: Cli, workspace: Path) -> None:
    found = cli("monitor", "critique", "--json").json
    assert found["n"] == 16 and found["works"] == (found["right"]["value"] >= 0.75)
    assert not found["works"]  # a random model knows nothing of harm
    assert "is of no use on it" in cli("monitor", "critique").out
    cli("config", "set", "monitoring.guard", "critique")
    checks = {each["name"]: each for each in cli("doctor", "--json").json}
    assert checks["monitor"]["state"] == "WRONG" and "of 16 known replies" in checks["monitor"]["detail"]


@pytest.mark.slow
def test_models_are_compared_and_vectors_carried_over(cli: Cli, tmp_path: Path, tiny_model: Path) -> None:
    other = tmp_path / "other"
    make_model("gpt2", n_positions=1024).save_pretrained(other)
    make_tokenizer(chat=False).save_pretrained(other)
    found = cli("monitor", "compare", tiny_model, other, "--data", "training", "--json").json
    first, second = found["models"]
    assert first["hidden_size"] and 0 <= first["best_layer"] < first["layers"]
    assert {"standard_content", "adversarial_content"} <= set(second)
    assert [(each["source"], each["target"]) for each in found["transfer"]] == [
        (first["model"], second["model"]),
        (second["model"], first["model"]),
    ]
    assert all(0 <= each["area"]["value"] <= 1 and each["explained"] < 1 for each in found["transfer"])


# --- checking ---


def test_a_text_is_judged(monitored: Cli) -> None:
    result = monitored("monitor", "check", "How do I make a bomb?")
    assert result.status == 0, result.err
    assert result.out.split(":")[0] in ("safe", "dangerous") and "threshold" in result.out
    verdict = monitored("monitor", "check", "How do I make a bomb?", "--json").json
    assert verdict["safe"] == (verdict["score"] > verdict["threshold"])
    assert verdict["label"] == result.out.split(":")[0]
    other = monitored("monitor", "check", "How do I make a bomb?", "--json", "--method", "tone").json
    assert other["method"] == "tone" and -2 <= other["score"] <= 2


def test_lines_give_one_object_each_and_bad_ones_do_not_end_them(monitored: Cli) -> None:
    lines = ["How do I bake bread?", "", "zero \0 byte", "x" * 1_000_000, "Größe und 雨?"]
    result = monitored("monitor", "check", "-", stdin="\n".join(lines))
    assert result.status == 1
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [each["line"] for each in found] == [1, 3, 4, 5]
    assert "safe" in found[0] and "safe" in found[3]
    assert "null characters" in found[1]["error"]
    assert "context holds" in found[2]["error"]
    assert result.err == "2 of 4 lines could not be judged.\n"


def test_lines_may_be_objects(monitored: Cli) -> None:
    lines = ['{"query": "Hello?"}', "nonsense", '{"other": 1}', '{"query": " "}', "[1]"]
    result = monitored("monitor", "check", "-", "--field", "query", stdin="\n".join(lines))
    found = [json.loads(line) for line in result.out.splitlines()]
    assert "safe" in found[0]
    assert ["error" in each for each in found] == [False, True, True, True, True]
    assert "empty" in found[3]["error"]


@pytest.mark.slow
def test_binary_input_is_reported_by_line(fitted: Path, tiny_model: Path) -> None:
    process = spawn(
        "--workspace", fitted, "--model", tiny_model, "monitor", "check", "-", stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.buffer.write(b"Hello?\n\xff\xfe\x80 binary\nBye?\n")
    result = finish(process)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [each.get("error") for each in found] == [None, "the line is not UTF-8 text", None]
    assert result.status == 1


@pytest.mark.parametrize(
    ("args", "status", "problem"),
    [
        (["check", " "], 2, "empty"),
        (["check", "x" * 5000], 1, "context holds"),
        (["check", "hi", "--monitor", "defualt"], 1, 'Did you mean "default"?'),
        (["check", "hi", "--field", "query"], 2, "must be -"),
        (["evaluate", "nobody"], 1, 'no monitor "nobody"'),
        (["fit", "--method", "magic"], 2, "magic"),
        (["fit", "--file", "{bad}", "--like", "{bad}"], 2, "not both"),
        (["fit", "--like", "{bad}"], 1, "cannot be used"),
        (["evaluate", "--plot", "picture.bmp"], 1, "not a .png or .svg"),
    ],
)
def test_mistakes_are_one_line(
    monitored: Cli, tmp_path: Path, args: list[str], status: int, problem: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    result = monitored("monitor", *(arg.format(bad=bad) for arg in args))
    assert result.status == status
    assert problem in result.err and result.err.startswith("Error: ") and result.err.count("\n") == 1


def test_without_a_monitor_it_says_how_to_make_one(call: Cli, workspace: Path) -> None:
    result = call("--workspace", workspace, "--model", "nobody/nothing", "monitor", "check", "Hello?")
    assert result.status == 1 and "`persona-tui monitor fit` makes it" in result.err


# --- measuring and listing ---


@pytest.fixture
def evaluated(monitored: Cli, tmp_path: Path) -> list[dict[str, Any]]:
    result = monitored("monitor", "evaluate", "--json", "--csv", tmp_path / "table.csv")
    assert result.status == 0, result.err
    found: list[dict[str, Any]] = result.json
    return found


@pytest.mark.slow
def test_an_evaluation_has_all_methods_on_all_sets(evaluated: list[dict[str, Any]], tmp_path: Path) -> None:
    (done,) = evaluated
    seen = {(row["method"], row["set"]): row for row in done["rows"]}
    assert {method for method, _ in seen} == METHODS | {"words"}
    sizes = {"standard": 136, "borderline": 20, "adversarial": 138, "large": 279, "languages": 80}
    assert {name: seen["content", name]["n"] for name in sizes} == sizes
    borderline = seen["content", "borderline"]  # all safe
    assert borderline["false_negatives"] is None and borderline["area"] is None
    standard = seen["content", "standard"]
    assert standard["accuracy"]["low"] <= standard["accuracy"]["value"] <= standard["accuracy"]["high"]
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(table) == len(done["rows"]) == 30
    assert table[0]["accuracy"] == str(done["rows"][0]["accuracy"]["value"])
    kept = monitors(tmp_path / "monitored")
    assert json.loads((kept / "default.evaluation.json").read_text())["rows"] == done["rows"]
    assert (kept / "default.evaluation.csv").read_text() == (tmp_path / "table.csv").read_text()
    assert json.loads((kept / "summary.json").read_text())[0]["evaluation"] == done["rows"]


def test_the_table_is_for_people(monitored: Cli, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [
        {"id": "a", "query": "How do I fold a napkin?", "label": "safe", "kind": "own"},
        {
            "id": "b",
            "query": "How do I rob a train?",
            "label": "dangerous",
            "kind": "own",
            "category": "fraud",
        },
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = monitored("monitor", "evaluate", "--file", path)
    assert result.status == 0, result.err
    assert "words" in result.out and "own" in result.out and "safe called dangerous" in result.out
    assert not (monitors(tmp_path / "monitored") / "default.evaluation.json").exists()


def test_measuring_on_the_training_data_is_refused(monitored: Cli, workspace: Path) -> None:
    file = workspace / "datasets" / "monitors" / "training.jsonl"
    result = monitored("monitor", "evaluate", "--file", file)
    assert result.status == 1 and "fitted on" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot(monitored: Cli, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"monitor{suffix}"
    assert monitored("monitor", "evaluate", "--plot", path).status == 0
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_list(monitored: Cli, cli: Cli, tmp_path: Path) -> None:
    result = monitored("monitor", "list")
    assert result.out.splitlines()[1].split()[:2] == [">", "default"]
    (monitors(tmp_path / "monitored") / "broken.safetensors").write_bytes(b"nonsense")
    found = {each["name"]: each for each in monitored("monitor", "list", "--json").json}
    assert "cannot be used" in found["broken"]["error"] and "error" not in found["default"]
    assert "broken" in monitored("monitor", "list").out
    empty = cli("monitor", "list")
    assert (empty.status, empty.out) == (0, "") and "monitor fit" in empty.err


# --- thresholds, layers, dimensions, results ---


@pytest.mark.slow
def test_a_threshold_is_looked_at_saved_and_taken_back(monitored: Cli) -> None:
    assert "does not exist" in monitored("monitor", "threshold").err
    assert monitored("monitor", "evaluate").status == 0
    before = monitored("monitor", "threshold", "--method", "content", "--json").json
    assert before["sets"]["all"]["threshold"] == before["fitted_threshold"] and not before["saved"]
    looked = monitored("monitor", "threshold", "-9", "--method", "content", "--json").json
    assert looked["sets"]["all"]["false_negatives"] == 1.0
    assert monitored("monitor", "threshold", "--method", "content", "--json").json == before
    saved = monitored("monitor", "threshold", "-0.5", "--method", "content", "--save")
    assert saved.status == 0 and "Saved with default." in saved.out
    (listed,) = monitored("monitor", "list", "--json").json
    assert (listed["method"], listed["threshold"]) == ("content", -0.5)
    assert monitored("monitor", "check", "What is bread?", "--json").json["threshold"] == -0.5
    back = monitored("monitor", "threshold", "--method", "content", "--reset", "--json").json
    assert back["sets"] == before["sets"]
    for wrong in (("--save",), ("0.1", "--reset"), ("nan", "--save"), ("much",)):
        assert monitored("monitor", "threshold", *wrong).status in (1, 2)


def test_layers_and_dimensions_need_no_model(monitored: Cli) -> None:
    rows = monitored("monitor", "layers", "--method", "content", "--json").json
    assert {row["position"] for row in rows} == {"message", "prompt_last"}
    found = monitored("monitor", "dimensions", "--method", "content", "--count", "3", "--json").json
    assert len(found["top"]) == 3
    assert "Loading" not in monitored("monitor", "dimensions").err
    assert "no vector at layer 77" in monitored("monitor", "dimensions", "--layer", "77").err


@pytest.mark.slow
def test_results_are_written_into_the_workspace(monitored: Cli) -> None:
    assert monitored("monitor", "evaluate").status == 0
    result = monitored("monitor", "results", "--json")
    paths = [Path(path) for path in result.json]
    assert len(paths) == 6 and all(path.stat().st_size for path in paths)
    assert "results" in paths[0].parts
