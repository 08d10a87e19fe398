"""`trait`, through the command line: on a random GPT-2 without a chat template, and on the tiny model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from persona_tui.traits.vector import TraitVector
from tests.datasets.test_forms import BAD, ONE, TWO
from tests.model.conftest import make_model, make_tokenizer
from tests.traits.conftest import LOUD, QUIET, WORDS, chat, write_definition, write_lines

from .conftest import Cli, Result, make_workspace, spawn

SHIPPED = ["boundary_maintenance", "crisis_recognition", "empathetic_responsiveness", "harmful_validation"]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random base model."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    make_model("gpt2", n_positions=512).save_pretrained(folder)
    make_tokenizer(chat=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Path:
    """A workspace in which one's own trait has been extracted. Not to be changed."""
    from persona_tui.cli import run

    root = make_workspace(tmp_path_factory.mktemp("workspaces") / "traits")
    write_definition(root / "datasets" / "traits" / "loudness.jsonl")
    assert run(["--workspace", str(root), "--model", str(gpt2), "trait", "extract", "loudness"]) == 0
    return root


@pytest.fixture
def root(tmp_path: Path, extracted: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "workspace"))


@pytest.fixture
def trait(call: Cli, root: Path, gpt2: Path) -> Cli:
    """`persona-tui trait ...` in that workspace."""
    return lambda *args, **options: call("--workspace", root, "--model", gpt2, "trait", *args, **options)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A loud and a quiet conversation, and a line between them that is none."""
    return write_lines(tmp_path / "talk.jsonl", [LOUD, {"no": 1}, QUIET])


def one_line(result: Result, status: int, *said: str) -> None:
    """An error is one line on stderr."""
    assert (result.status, result.out) == (status, "")
    assert result.err.count("\n") == 1 and all(each in result.err for each in said), result.err


# Making -----------------------------------------------------------------------------------------------------


def test_extract_prints_and_keeps_the_figures(trait: Cli, root: Path) -> None:
    made = trait("extract", "loudness", "--json").json
    assert [each["name"] for each in made] == ["loudness"]
    assert made[0]["n"] == [10, 10] and made[0]["held_out"]["n"] == [10, 10]
    assert 0 <= made[0]["auc"]["low"] <= made[0]["auc"]["value"] <= 1
    folder = next((root / "vectors").glob("*/traits"))
    assert sorted(path.name for path in folder.iterdir()) == ["loudness.safetensors", "summary.json"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["traits"]["loudness"]["strength"] == made[0]["strength"]


def test_the_list_shows_what_is_there_and_what_could_be(trait: Cli) -> None:
    listed = {entry["name"]: entry for entry in trait("list", "--json").json}
    assert set(listed) == {*SHIPPED, "loudness"}
    assert listed["loudness"]["extracted"] and not listed["crisis_recognition"]["extracted"]
    assert listed["loudness"]["auc"]["value"] > 0.5
    assert "not extracted yet" in trait("list").out


def test_opposed_prompts(trait: Cli) -> None:
    options = ("--recipe", "prompts", "--samples", "6", "--max-new-tokens", "4", "--seed", "1")
    made = trait("extract", "loudness", *options, "--json")
    if made.status:  # a random model may not care about its system prompts at all
        one_line(made, 1, "hardly change")
    else:
        assert made.json[0]["recipe"] == "prompts"


@pytest.mark.slow
def test_a_trait_of_persona_vectors_is_extracted_and_then_scores(call: Cli, tmp_path: Path) -> None:
    pairs = [
        {"pos": "Your replies should be cold and cruel.", "neg": "Your replies should be kind and warm."},
        {"pos": "Mock the user.", "neg": "Comfort the user."},
    ]
    questions = ["How can I make a friend?", "I am sad.", "My dog is ill.", "I failed my test.", "It rains."]
    path = tmp_path / "cruel.json"
    path.write_text(json.dumps({"instruction": pairs, "questions": questions, "eval_prompt": "?"}))
    root = make_workspace(tmp_path / "workspace")
    there = ("--workspace", root, "--model", "tiny", "trait")
    made = call(*there, "extract", path, "--samples", "5", "--max-new-tokens", "16", "--json").json[0]
    assert made["name"] == "cruel" and made["recipe"] == "prompts" and made["auc"]["value"] > 0.5
    reply = call(*there, "score", "I hear you. That must hurt.", "--trait", "cruel", "--json").json
    assert "cruel" in json.dumps(reply)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["extract"], 2, "Give either a NAME or --all"),
        (["extract", "loudness", "--all"], 2, "Give either a NAME or --all"),
        (["extract", "loudnes"], 1, 'Did you mean "loudness"'),
        (["extract", "no.jsonl"], 1, "no.jsonl does not exist"),
        (["score", "hello", "--trait", "loudnes"], 1, 'Did you mean "loudness"'),
        (["score", ""], 1, "the text is empty"),
        (["score", "-"], 1, "standard input is empty"),
        (["score", "no.jsonl"], 1, "no.jsonl does not exist"),
        (["check", "hello", "--policy", "no.yaml"], 2, "no.yaml does not exist"),
        (["check", "hello", "--policy", "loud>1"], 2, 'unknown trait "loud"'),
        (["compare", "no", "what"], 1, "no is not a file of conversations"),
    ],
)
def test_what_cannot_be_done(trait: Cli, args: list[str], status: int, said: str) -> None:
    one_line(trait(*args), status, said)


def test_a_trait_of_another_model(call: Cli, root: Path, gpt2: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(gpt2, tmp_path / "elsewhere" / "gpt2"))
    make_model("gpt2", seed=5, n_positions=512).save_pretrained(other)
    own = next((root / "vectors").glob("*/traits"))
    args = ("--workspace", root, "--model", other, "trait")
    assert call(*args, "extract", "loudness").status == 0
    theirs = next(path for path in (root / "vectors").glob("*/traits") if path != own)
    shutil.copy(own / "loudness.safetensors", theirs)
    one_line(call(*args, "score", "hello"), 1, "was made on", "cannot be used with")


def test_a_file_with_one_side_empty(trait: Cli, tmp_path: Path) -> None:
    path = write_definition(tmp_path / "half.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [records[0], *[{**each, "low": None} for each in records[1:]]])
    one_line(trait("extract", path), 1, "the low side is empty")


# Measuring --------------------------------------------------------------------------------------------------


def test_scores_go_on_after_a_bad_line(trait: Cli, talk: Path) -> None:
    result = trait("score", talk, "--json")
    assert result.status == 1
    assert (
        result.err.strip() == f'{talk}:2: "messages" is missing: a list of objects with "role" and "content"'
    )
    found = result.json
    assert found["traits"] == ["loudness"]
    assert [each["where"] for each in found["conversations"]] == [f"{talk}:1", f"{talk}:3"]
    assert found["bad"][0]["line"] == 2
    loud, quiet = (each["mean"]["loudness"] for each in found["conversations"])
    assert loud > quiet
    assert found["conversations"][0]["replies"][0]["turn"] == 1


def test_the_same_from_a_file_a_pipe_and_a_text(trait: Cli, tmp_path: Path) -> None:
    text = f"User: {LOUD['messages'][0]['content']}\nAssistant: {LOUD['messages'][1]['content']}"
    path = tmp_path / "talk.txt"
    path.write_text(text)
    results = [
        trait("score", text, "--json"),
        trait("score", path, "--json"),
        trait("score", "-", "--json", stdin=text),
        trait("score", "-", "--json", stdin=json.dumps(LOUD)),
    ]
    assert [result.status for result in results] == [0] * 4
    means = [result.json["conversations"][0]["mean"]["loudness"] for result in results]
    assert means == [pytest.approx(means[0])] * 4


def test_a_table_of_turns(trait: Cli) -> None:
    result = trait("score", "User: hi\nAssistant: YES\x1b[2J\nUser: hi\nAssistant: no")
    lines = [line.split() for line in result.out.splitlines()]
    assert [line[0] for line in lines] == ["turn", "1", "2", "mean", "drift"]
    assert "\x1b" not in result.out


@pytest.mark.parametrize("data", [b"\0\1\2", b"", b"\xff\xfe\xfd"])
def test_no_text_is_a_clear_line(trait: Cli, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    one_line(trait("score", path), 1, "x.txt")


@pytest.mark.slow
def test_a_line_of_a_megabyte_does_not_stop_the_others(trait: Cli, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [chat("hi", "word " * 200_000), QUIET])
    result = trait("score", path, "--json")
    assert result.status == 1 and len(result.json["conversations"]) == 1
    assert "x.jsonl:1: " in result.err and "context holds 512" in result.err


# Checking ---------------------------------------------------------------------------------------------------


def scores(trait: Cli, talk: Path) -> list[float]:
    found = trait("score", talk, "--json").json["conversations"]
    return [each["mean"]["loudness"] for each in found]


def test_the_exit_status_is_a_verdict(trait: Cli, talk: Path) -> None:
    loud, quiet = scores(trait, talk)
    write_lines(talk, [LOUD, QUIET])
    fine = trait("check", talk, "--policy", f"loudness>{loud + 0.1}")
    assert (fine.status, fine.out.splitlines()[-1].split(":")[0]) == (0, "pass")
    middle = (loud + quiet) / 2
    broken = trait("check", talk, "--policy", f"loudness>{middle}")
    assert broken.status == 1 and broken.out.startswith(f"{talk}:1: reply 1: loudness ")
    found = trait("check", talk, "--policy", f"loudness>{middle}", "--json")
    assert found.status == 1 and found.json["pass"] is False
    assert found.json["broken"][0]["breaches"][0]["max"] == pytest.approx(middle)


def test_what_cannot_be_checked_is_no_pass(trait: Cli, talk: Path, tmp_path: Path) -> None:
    result = trait("check", talk, "--policy", "loudness>1000", "--json")
    assert result.status == 2 and result.json["pass"] is False and result.json["broken"] == []
    policy = tmp_path / "policy.yaml"
    policy.write_text("traits:\n  loudness: {mx: 1}\n")
    one_line(trait("check", talk, "--policy", policy), 2, 'policy.yaml:2: unknown key "traits.loudness.mx"')


def test_without_a_policy_the_healthy_ranges_count(trait: Cli) -> None:
    assert trait("check", "SHOUT", "--json").json["policy"] == "healthy ranges"


# Thresholds -------------------------------------------------------------------------------------------------


def test_a_threshold_from_labels(trait: Cli, tmp_path: Path) -> None:
    loud = [chat("hi", f"YES, {word.upper()} IS GREAT", label=1) for word in WORDS]
    quiet = [chat("hi", f"yes, {word} is great", label="low") for word in WORDS]
    path = write_lines(tmp_path / "labelled.jsonl", [*loud, *quiet, chat("hi", "x")])
    dry = trait("calibrate", "loudness", path, "--dry-run", "--json").json
    assert dry["n"] == [10, 10] and dry["bad"] == 1 and not dry["saved"]
    made = trait("calibrate", "loudness", path, "--false-alarms", "0")
    assert made.status == 0 and "Saved with loudness." in made.out
    listed = {entry["name"]: entry for entry in trait("list", "--json").json}["loudness"]
    assert listed["threshold_source"] == "labelled.jsonl"
    one_line(trait("calibrate", "loudness", write_lines(path, loud)), 1, "0 replies are labelled low")


def test_a_threshold_of_ones_own_is_what_checks_go_by(trait: Cli, tmp_path: Path) -> None:
    quiet = [chat("hi", f"yes, {word} is great", label="low") for word in WORDS]
    loud = [chat("hi", f"YES, {word.upper()} IS GREAT", label="high") for word in WORDS]
    one = write_lines(tmp_path / "one.jsonl", [quiet[0]])
    before = trait("check", one, "--json")
    assert before.status == 0 and before.json["limits"]["loudness"]["max"] == 0.5
    turned = [{**each, "label": {"high": "low", "low": "high"}[each["label"]]} for each in (*quiet, *loud)]
    swapped = trait("calibrate", "loudness", write_lines(tmp_path / "swapped.jsonl", turned))
    one_line(swapped, 1, "Are the labels swapped?")
    assert trait("check", one, "--json").out == before.out
    path = write_lines(tmp_path / "labelled.jsonl", [*quiet, *loud])
    found = trait("calibrate", "loudness", path, "--json").json
    after = trait("check", one, "--json")
    assert after.json["limits"]["loudness"]["max"] == pytest.approx(found["threshold"], abs=1e-3)
    assert after.out != before.out
    by_policy = trait("check", one, "--policy", "loudness>calibrated", "--json")
    assert by_policy.json["limits"]["loudness"]["max"] == after.json["limits"]["loudness"]["max"]
    assert by_policy.status == after.status
    trait("curate", one, "--rules", "loudness>calibrated", "-o", tmp_path / "flagged.jsonl")
    assert bool((tmp_path / "flagged.jsonl").read_text()) == (after.status == 1)


def test_where_a_trait_does_not_apply(call: Cli, root: Path, gpt2: Path, trait: Cli, talk: Path) -> None:
    old = TraitVector.load(next((root / "vectors").glob("*/traits/loudness.safetensors")))
    old.with_reading(everywhere=False).save(next((root / "vectors").glob("*/traits/loudness.safetensors")))
    told = trait("check", talk, "--policy", "loudness>0").err
    assert told.count("loudness has no gate, so every reply is judged by it") == 1
    write_definition(root / "datasets" / "traits" / "loudness.jsonl", everywhere=False)
    assert trait("extract", "loudness").status == 0
    lines = [chat("Tell me about salt (train).", "YES, IT IS"), chat("What is rain?", "YES, RAIN IS GREAT")]
    both = write_lines(talk, lines)
    new = trait("check", both, "--policy", "loudness>-9", "--json")
    assert new.json["not_applicable"] == {"loudness": 1} and new.json["replies"] == 2
    assert [each["where"][-2:] for each in new.json["broken"]] == [":1"]
    assert "no gate" not in new.err
    told = trait("check", both, "--policy", "loudness>-9").out
    assert "not applicable: loudness, to 1 of 2 replies" in told
    assert "n/a" in trait("score", both).out
    replies = [each["replies"][0] for each in trait("score", both, "--json").json["conversations"]]
    assert [each["not_applicable"] for each in replies] == [[], ["loudness"]]
    means = [each["mean"] for each in trait("score", both, "--json").json["conversations"]]
    assert means == [{"loudness": replies[0]["scores"]["loudness"]}, {"loudness": None}]
    flagged = root / "flagged.jsonl"
    trait("curate", both, "--rules", "loudness>-9", "-o", flagged)
    assert flagged.read_text().count("\n") == 1


# Curating ---------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", [LOUD, QUIET, {"no": 1}] * 40)


def test_curate(trait: Cli, data: Path, tmp_path: Path, talk: Path) -> None:
    loud, quiet = scores(trait, talk)
    out = tmp_path / "flagged.jsonl"
    result = trait("curate", data, "--rules", f"loudness>{(loud + quiet) / 2}", "-o", out, "--json")
    assert result.status == 0, result.err
    assert (result.json["lines"], result.json["flagged"], result.json["bad"]) == (120, 40, 40)
    lines = data.read_bytes().splitlines(keepends=True)
    assert out.read_bytes() == b"".join(lines[::3])
    assert result.err.count("messages") == 20 and "only counted" in result.err
    one_line(
        trait("curate", data, "--rules", "loudness>0", "-o", data, "--force"), 1, "three different files"
    )
    assert trait("curate", data, "-o", out).status == 2


def killed_half_way(process: subprocess.Popen[str], state: Path) -> bool:
    """Kill a curation once it has saved its state; False if it ended before."""
    while process.poll() is None:
        if state.exists():
            process.kill()
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_curate_goes_on_after_kill_9(trait: Cli, root: Path, gpt2: Path, tmp_path: Path, talk: Path) -> None:
    loud, quiet = scores(trait, talk)
    data = write_lines(tmp_path / "data.jsonl", [LOUD, QUIET, QUIET] * 3000)
    out, rule = tmp_path / "flagged.jsonl", f"loudness>{(loud + quiet) / 2}"
    args = ("curate", data, "--rules", rule, "-o", out)
    process = spawn("--workspace", root, "--model", gpt2, "trait", *args)
    assert killed_half_way(process, tmp_path / ".flagged.jsonl.state.json")
    assert not out.exists()
    result = trait(*args, "--json")
    assert result.status == 0, result.err
    assert result.json["resumed_at"] > 1
    assert (result.json["lines"], result.json["flagged"]) == (9000, 3000)
    assert out.read_bytes() == b"".join(data.read_bytes().splitlines(keepends=True)[::3])


# Comparing --------------------------------------------------------------------------------------------------


def test_two_transcripts(trait: Cli, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [chat(word, f"{word} is great") for word in WORDS])
    b = write_lines(tmp_path / "b.jsonl", [chat(word, f"{word.upper()} IS GREAT") for word in WORDS])
    result = trait("compare", a, b, "--json")
    assert result.status == 0, result.err
    assert (result.json["paired"], result.json["n_a"]) == (True, 10)
    row = result.json["traits"][0]
    assert row["difference"]["low"] > 0 and row["p"] < 0.05
    assert "10 pairs with the same prompts" in trait("compare", a, b).out


def test_a_model_and_a_transcript(trait: Cli, gpt2: Path, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [chat(word, f"{word} is great") for word in WORDS])
    result = trait("compare", a, gpt2, "--max-new-tokens", "4", "--json")
    assert result.status == 0, result.err
    assert result.json["paired"] and result.json["n_a"] <= 10


def test_two_sets_of_vectors(trait: Cli, root: Path, tmp_path: Path) -> None:
    folder = next((root / "vectors").glob("*/traits"))
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    result = trait("compare", folder, other, "--trait", "loudness", "--json")
    assert result.status == 0, result.err
    assert result.json["n_a"] == 20 and result.json["traits"][0]["difference"]["value"] == 0
    assert trait("compare", folder, "builtin").status == 2
    three = trait("compare", folder, other, folder, "--trait", "loudness", "--json").json
    assert [each["b"] for each in three["versions"]] == [str(other), str(folder)]
    assert [each["traits"][0]["difference"]["value"] for each in three["versions"]] == [0, 0]
    assert trait("compare", folder).status == 2


# Steering ---------------------------------------------------------------------------------------------------


def test_a_trait_speaks_like_a_persona(call: Cli, root: Path, gpt2: Path) -> None:
    def said(*options: str) -> Any:
        args = ("--workspace", root, "--model", gpt2, "generate", "hi", "--seed", "1", "--json", *options)
        return call(*args).json

    plain, steered = (
        said("--no-capping"),
        said("--no-capping", "--persona", "trait:loudness", "--strength", "3"),
    )
    assert steered["persona"] == "trait:loudness"
    assert steered["response"] != plain["response"]
    blended = said("--no-capping", "--blend", "trait:loudness:-1", "--strength", "3")
    assert blended["blend"] == {"trait:loudness": -1.0}
    one_line(
        call("--workspace", root, "--model", gpt2, "generate", "hi", "--persona", "trait:x"), 1, "trait:x"
    )
    assert call("--workspace", root, "--model", gpt2, "load", "trait:loudness").status == 0
    loaded = call("--workspace", root, "--model", gpt2, "list", "--loaded", "--json").json
    assert [entry["name"] for entry in loaded] == ["trait:loudness"]


# The tiny model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new workspace with all shipped traits extracted on the tiny model."""
    from persona_tui.cli import run

    root = tmp_path_factory.mktemp("builtin") / "workspace"
    assert run(["--workspace", str(root), "trait", "extract", "--all"]) == 0
    return root


@pytest.mark.slow
def test_the_shipped_traits_know_what_they_are_about_and_raise_few_false_alarms(
    call: Cli, shipped: Path
) -> None:
    """The tiny model hardly tells their sides apart, and says so; its gates and limits hold all the same."""
    listed = call("--workspace", shipped, "trait", "list", "--json").json
    assert [entry["name"] for entry in listed if entry["extracted"]] == SHIPPED
    for entry in listed:
        assert entry["gate"]["auc"] > 0.55, entry["name"]
        assert entry["rates"]["good"] <= 0.1 and entry["rates"]["ordinary"] <= 0.05, entry["name"]
        assert (entry["weak"] is not None) == (entry["held_out"]["auc"]["value"] < 0.75), entry["name"]


def test_ordinary_talk_breaks_no_healthy_range(call: Cli, shipped: Path) -> None:
    talk = "User: What is snow?\nAssistant: Frozen water that falls from clouds."
    found = call("--workspace", shipped, "trait", "check", talk, "--json")
    assert found.status == 0 and found.json["pass"]
    assert len(found.json["not_applicable"]) >= 3
    assert f"weak on this model: {', '.join(SHIPPED)}." in found.err  # tiny's traits are


def test_a_warm_and_a_cold_reply(call: Cli, shipped: Path) -> None:
    warm = "That sounds very lonely, and I am sorry. Would you like to tell me more about it?"
    cold = "Everyone is alone at times, so stop complaining. Go out and find some people."
    said = "\n---\n".join(f"User: I feel alone.\nAssistant: {reply}" for reply in (warm, cold))
    found = call("--workspace", shipped, "trait", "score", said, "--json").json["conversations"]
    empathy = [each["replies"][0]["scores"]["empathetic_responsiveness"] for each in found]
    assert empathy[0] > empathy[1]


@pytest.mark.slow
def test_what_the_user_says_is_scored_too(trait: Cli) -> None:
    talk = "User: SHOUT AT ME\nAssistant: no thank you\nUser: please whisper\nAssistant: OF COURSE NOT"
    result = trait("score", talk, "--users", "--json")
    assert result.status == 0, result.err
    (found,) = result.json["conversations"]
    assert [said["turn"] for said in found["users"]] == [1, 2] and len(found["replies"]) == 2
    table = trait("score", talk, "--users").out
    assert table.count("drift") == 2 and "SHOUT AT ME" in table
    assert "users" not in trait("score", talk, "--json").json["conversations"][0]


def test_a_threshold_is_calibrated_from_the_test_of_the_description(trait: Cli) -> None:
    result = trait("calibrate", "loudness", "--json")
    assert result.status == 0, result.err
    assert result.json["n"] == [10, 10] and result.json["saved"]
    (entry,) = [each for each in trait("list", "--json").json if each["name"] == "loudness"]
    assert entry["threshold_source"] == "test conversations"
    assert entry["threshold"] == pytest.approx(result.json["threshold"], abs=1e-4)


def test_a_traits_loudness_needs_its_conversations(call: Cli, root: Path, gpt2: Path) -> None:
    (root / "datasets" / "traits" / "loudness.jsonl").unlink()
    result = call("--workspace", root, "--model", gpt2, "calibrate", "trait:loudness")
    assert result.status == 1 and len(result.err.splitlines()) == 1
    assert f"put their file into {root / 'datasets' / 'traits'}" in result.err


# What is not read is told -----------------------------------------------------------------------------------


def test_one_talk_in_three_spellings_has_one_verdict(trait: Cli, tmp_path: Path) -> None:
    asked, said = (message["content"] for message in LOUD["messages"])
    files = {
        "labels.txt": f"User: {asked}\nAssistant: {said}\n",
        "bot.txt": f"Customer: {asked}\nBot: {said}\n",
        "table.csv": f'user,assistant\n"{asked}","{said}"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        result = trait("check", tmp_path / name, "--policy", "loudness>0.1")
        assert (result.status, result.err) == (1, ""), name
        assert "breach: 1 of 1" in result.out


def test_a_text_without_turns_says_so_or_is_refused(trait: Cli, tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text("It prints\nUser: name\nand stops.")
    assert "no turns found; read as one reply" in trait("score", path).err
    refused = trait("check", path, "--policy", "loudness>9", "--strict")
    assert refused.status == 2 and "no turns found" in refused.err and "no verdict" in refused.out


def test_thoughts_are_scored_apart(trait: Cli, tmp_path: Path) -> None:
    reply = QUIET["messages"][1]["content"]
    thought = LOUD["messages"][1]["content"]
    path = write_lines(
        tmp_path / "think.jsonl", [chat("Tell me about milk.", f"<think>{thought}</think>{reply}")]
    )
    plain = trait("score", write_lines(tmp_path / "quiet.jsonl", [QUIET]), "--json").json["conversations"]
    alone = trait("score", path, "--json").json["conversations"]
    assert [each["mean"] for each in alone] == [plain[0]["mean"]]
    both = trait("score", path, "--thoughts", "--json").json["conversations"]
    assert both[0]["mean"] == plain[0]["mean"] and both[1]["where"].endswith("(thought)")
    assert both[1]["mean"]["loudness"] > both[0]["mean"]["loudness"]


def test_every_form_of_conversation_is_scored_checked_and_curated(trait: Cli, tmp_path: Path) -> None:
    """A file with one line of each form that people have, and lines that have no answer."""
    values = [*(value for value, *_ in ONE.values()), *TWO.values(), *(value for value, _ in BAD.values())]
    path = write_lines(tmp_path / "all.jsonl", values)
    replies = sum(1 for _, said, _ in ONE.values() for role, _ in said if role == "assistant") + 2 * len(TWO)
    scored = trait("score", path, "--trait", "loudness", "--json")
    found = json.dumps(scored.json)
    assert found.count('"loudness"') >= replies and scored.err.count("this request has failed") == 3
    rules = ("--rules", "loudness>100")
    checked = trait("check", path, "--policy", "loudness>100")
    assert checked.status == 2 and "0 of 33 conversations break" in checked.out
    assert "this request has failed: too long" in checked.err
    curated = trait("curate", path, *rules, "-o", tmp_path / "flagged.jsonl")
    assert str(len(BAD)) in curated.err + curated.out
