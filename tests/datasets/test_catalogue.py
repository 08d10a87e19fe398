"""The catalogue of archetypes keeps what it promises; read this before adding an entry.

An entry is one character in five system prompts: a manner to speak in, not a subject to speak about. The five
differ in wording and emphasis, and share a name and a few images, so that they mean one character.
"""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

PERSONAS = Path(__file__).parents[2] / "datasets" / "personas"
LINES = (PERSONAS / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
CATALOGUE = [json.loads(line) for line in LINES]
PROMPTS = [(entry["name"], prompt) for entry in CATALOGUE for prompt in entry["system_prompts"]]

TAGS = {
    "artist",
    "cold",
    "elder",
    "faith",
    "flaw",
    "humour",
    "leader",
    "mood",
    "myth",
    "nature",
    "past",
    "scholar",
    "speech",
    "warm",
    "work",
    "youth",
}
# A character who knows that it is software answers as software.
MACHINE = re.compile(
    r"\b(AIs?|assistants?|models?|program(s|med|mers?)?|chatbots?|bots?|robots?|algorithms?|computers?|software)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?]+[\"']?(?=\s|$)")


def words(text: str) -> frozenset[str]:
    """The different words of a text."""
    return frozenset(re.findall(r"[a-z']+", text.lower()))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard's measure: shared words over all words."""
    return len(one & other) / len(one | other)


def names_elsewhere() -> set[str]:
    """The archetypes that have a file, the roles, and the character that capping is measured against."""
    roles = (PERSONAS / "roles.jsonl").read_text(encoding="utf-8").splitlines()
    archetypes = {path.stem for path in (PERSONAS / "archetypes").glob("*.jsonl")}
    return archetypes | {json.loads(role)["id"] for role in roles} | {"lawless"}


def test_there_are_at_least_a_hundred_sorted_by_name() -> None:
    names = [entry["name"] for entry in CATALOGUE]
    assert len(names) >= 100
    assert names == sorted(set(names))
    assert not set(names) & names_elsewhere()


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry["name"])
def test_an_entry_is_complete(entry: dict[str, object]) -> None:
    assert list(entry) == ["name", "summary", "tags", "system_prompts"]
    name, summary, tags, prompts = entry.values()
    assert isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]{2,31}", name)
    assert isinstance(summary, str) and re.fullmatch(r"\S.{18,78}[.\"]", summary)
    assert isinstance(tags, list) and 2 <= len(tags) <= 4 and tags == sorted(set(tags)) and set(tags) <= TAGS
    assert isinstance(prompts, list) and len(prompts) == 5


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry["name"])
def test_prompts_are_short_instructions_to_a_character(entry: dict[str, list[str]]) -> None:
    for prompt in entry["system_prompts"]:
        assert prompt == " ".join(prompt.split()) and prompt.isascii(), prompt
        assert 30 <= len(prompt.split()) <= 60, prompt
        assert 2 <= len(SENTENCE_END.findall(prompt)) <= 4, prompt
        assert not MACHINE.search(prompt), prompt


def test_every_tag_is_used() -> None:
    counts = Counter(tag for entry in CATALOGUE for tag in entry["tags"])
    assert set(counts) == TAGS
    assert min(counts.values()) >= 5, counts


def test_no_prompt_repeats_another() -> None:
    told = [(name, words(prompt), prompt) for name, prompt in PROMPTS]
    for (one, some, first), (other, more, second) in itertools.combinations(told, 2):
        limit = 0.6 if one == other else 0.5
        assert overlap(some, more) < limit, f"{one}: {first}\n{other}: {second}"


def test_five_prompts_mean_one_character() -> None:
    """A bag of words finds the character of each prompt among the means of all others' prompts."""
    names = [entry["name"] for entry in CATALOGUE]
    own = np.array([names.index(name) for name, _ in PROMPTS])
    texts = [prompt for _, prompt in PROMPTS]
    features = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(texts).toarray()
    sums = np.zeros((len(names), features.shape[1]))
    np.add.at(sums, own, features)
    scores = features @ normalize(sums).T
    # A prompt's own character is the mean of its four siblings.
    siblings = normalize(sums[own] - features)
    scores[np.arange(len(own)), own] = (features * siblings).sum(axis=1)
    missed = [
        (name, f"{name} is taken for {names[best]}: {prompt}")
        for (name, prompt), best in zip(PROMPTS, scores.argmax(axis=1), strict=True)
        if names[best] != name
    ]
    report = "\n".join(line for _, line in missed)
    assert len(missed) <= 0.1 * len(PROMPTS), report
    assert max(Counter(name for name, _ in missed).values(), default=0) <= 2, report
