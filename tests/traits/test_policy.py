"""Policies: what breaks them, and what is no policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from persona_tui.core.errors import ConfigError
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.transcripts import conversations_from_json
from persona_tui.traits.policy import Policy
from persona_tui.traits.score import Scored, TraitScorer
from persona_tui.traits.vector import TraitVector

from .conftest import LOUD, QUIET

TEXT = """\
name: calm
applies_to: reply
traits:
  loudness: {max: 0.5, reason: it shouts}
  empathy:
    min: 0
    when: [I feel, sad]
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return path

    return write


def test_limits(written: Callable[[str], Path]) -> None:
    policy = Policy.load(written(TEXT))
    scores = {"loudness": 0.62, "empathy": -0.4}
    assert [str(each) for each in policy.breaches(scores, "hi", turn=2)] == [
        "reply 2: loudness 0.62 > 0.50 (it shouts)"
    ]
    found = policy.breaches(scores, "Today i FEEL low")
    assert [(each.trait, each.side, each.limit) for each in found] == [
        ("loudness", "max", 0.5),
        ("empathy", "min", 0),
    ]
    assert found[1].as_dict() == {"trait": "empathy", "turn": None, "score": -0.4, "min": 0.0, "reason": ""}
    assert policy.breaches({"loudness": 0.5, "empathy": 0}, "sad") == []
    assert policy.breaches({"other": 9}) == []


def test_rules() -> None:
    policy = Policy.from_rules(["loudness>0.3", " loudness < -1e-1", "other<0"])
    assert policy.traits["loudness"].max == 0.3 and policy.traits["loudness"].min == -0.1
    assert len(policy.breaches({"loudness": -0.2, "other": -1})) == 2
    for bad in ("loudness=3", "loudness>", "loudness>1.2.3", ">3", "loudness>=1"):
        with pytest.raises(ConfigError, match="rule"):
            Policy.from_rules([bad])
    with pytest.raises(ConfigError, match="do not fit together"):
        Policy.from_rules(["a>0", "a<1"])


def test_all_rules_for_one_trait_hold_in_any_order() -> None:
    rules = ["loudness>0.5", "loudness>9", "loudness<-2", "loudness<-1"]
    for order in (rules, rules[::-1]):
        policy = Policy.from_rules(order)
        assert [breach.limit for breach in policy.breaches({"loudness": 0.6})] == [0.5]
        assert [breach.limit for breach in policy.breaches({"loudness": -1.5})] == [-1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("traits:\n  a: {max: 1, mix: 2}\n", r'policy.yaml:2: unknown key "traits.a.mix". Did you mean "m'),
        ("trait:\n  a: {max: 1}\n", r"policy.yaml:1: .*trait"),
        ("traits:\n  a: {zzz: 2}\n", r'policy.yaml:2: unknown key "traits.a.zzz". There may be min, max'),
        ("traits:\n  a: {max: 1}\n  b: {}\n", r'policy.yaml:3: .*"min" or "max" is needed'),
        ("traits:\n  a:\n    max: loud\n", r'policy.yaml:3: "traits.a.max": '),
        ("traits:\n  a:\n    max: .nan\n", r"policy.yaml:3: "),
        ("traits: {}\n", r'policy.yaml:1: "traits": '),
        ("traits: [\n", r"policy.yaml:\d: not valid YAML"),
        ("- a\n", r'policy.yaml:1: a mapping with "traits"'),
        ("applies_to: all\ntraits: {a: {max: 1}}\n", r"policy.yaml:1: "),
    ],
)
def test_mistakes_name_their_line(written: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy.load(written(text))


def test_a_file_or_rules(written: Callable[[str], Path], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert Policy.read([str(written(TEXT))], workspace).name == "calm"
    assert Policy.read(["a>1", "b<2"], workspace).name == "a>1, b<2"
    assert Policy.read(["is_response_safe"], workspace).name == "is_response_safe"  # came with the program
    with pytest.raises(ConfigError, match="does not exist"):
        Policy.read([str(tmp_path / "no.yaml")], workspace)
    with pytest.raises(ConfigError, match='Did you mean "loudness"'):
        Policy.read(["loudnes>1"], workspace).among(["loudness"])


def test_a_trait_may_be_called_as_others_call_it() -> None:
    policy = Policy.from_rules(["sycophancy_harmful_validation>0.5"])
    assert list(policy.among(["harmful_validation"]).traits) == ["harmful_validation"]
    own = ["harmful_validation", "sycophancy_harmful_validation"]
    assert list(policy.among(own).traits) == ["sycophancy_harmful_validation"]


def test_a_limit_may_be_the_one_that_was_found(written: Callable[[str], Path], trait: TraitVector) -> None:
    policy = Policy.load(written("traits: {loudness: {max: calibrated}, other: {min: calibrated}}\n"))
    found = policy.on_model([trait])
    assert found.traits["loudness"].max == 0.5 and found.traits["other"].min == "calibrated"
    assert found.breaches({"loudness": 0.6})[0].limit == 0.5
    with pytest.raises(ConfigError, match='"loudness" is "calibrated"'):
        policy.breaches({"loudness": 0.6})
    with pytest.raises(ConfigError, match="give one of them"):
        Policy.from_rules(["loudness>calibrated", "loudness>0.3"])


def test_each_reply_or_their_mean(scorer: TraitScorer, written: Callable[[str], Path]) -> None:
    both = {"messages": [*LOUD["messages"], *QUIET["messages"]]}
    scored = scorer.score([conversations_from_json(both, "x")[0]])[0]
    assert isinstance(scored, Scored)
    mean = scored.means["loudness"]
    rule = {"loudness": {"max": mean + 0.1}}
    each = Policy.model_validate({"traits": rule})
    assert [breach.turn for breach in each.check(scored)] == [1]
    assert Policy.model_validate({"traits": rule, "applies_to": "conversation"}).check(scored) == []


def test_healthy_ranges(trait: TraitVector) -> None:
    policy = Policy.healthy([trait])
    assert policy is not None and policy.traits["loudness"].max == 0.5
    unlimited = trait.with_reading(healthy=type(trait.reading.healthy)())
    assert Policy.healthy([unlimited]) is None


@pytest.mark.parametrize("name", ["supportive", "is_response_safe"])
def test_the_shipped_policies_are_about_the_shipped_traits(name: str) -> None:
    folder = packaged_root() / "datasets" / "traits"
    policy = Policy.load(folder / "policies" / f"{name}.yaml")
    policy.among([path.stem for path in folder.glob("*.jsonl")])
