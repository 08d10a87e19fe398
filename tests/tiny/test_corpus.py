"""The generated corpus: reproducible, and without what is held out."""

import itertools
import random

from tools.tiny import corpus
from tools.tiny.material import (
    HELD_OUT_PAIRS,
    answered,
    held_out,
    known,
    safety,
    talk,
    topics,
    voices,
)
from tools.tiny.prompting import description, system_prompt
from tools.tiny.requests import harmful_phrases
from tools.tiny.voicing import Character, Speaker, draw_character


def _everything(count: int) -> str:
    documents = itertools.islice(corpus.documents(seed=3), count)
    return "\n".join(
        " ".join([each.text, each.system or "", *(f"{t.user} {t.reply}" for t in each.turns)])
        for each in documents
    )


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(itertools.islice(corpus.documents(1), 50)) == list(itertools.islice(corpus.documents(1), 50))
    assert list(itertools.islice(corpus.documents(1), 50)) != list(itertools.islice(corpus.documents(2), 50))


def test_nothing_held_out_reaches_a_training_document() -> None:
    rng = random.Random(3)
    text = _everything(6000) + "".join(turn.user for _ in range(6000) for turn in corpus.drill(rng).turns)
    facts = [fact for topic in topics() if held_out(topic.name) for fact in topic.facts.values()]
    requests = known(safety()["identity_attacks"] + safety()["manipulation"], training=False)
    phrases = harmful_phrases(False)
    asked = [q for group in talk()["questions"].values() for q in known(group, training=False)]
    idioms = [item.question for item in answered("idioms") if held_out(item.question)]
    for group in (facts, requests, phrases, asked, idioms):
        assert len(group) >= 4
        assert not [item for item in group if item in text]


def test_described_characters_of_the_benchmarks_are_never_mixed() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        names = set(draw_character(rng).weights)
        assert not any(pair <= names for pair in HELD_OUT_PAIRS)


def test_style_is_a_rate() -> None:
    rng = random.Random(0)
    for name in ("sage", "pirate"):
        openings = [Speaker(Character({name: 1.0}), rng).phrase("openings", 1.0) for _ in range(1000)]
        share = sum(opening in voices()[name].openings for opening in openings) / len(openings)
        assert 0.6 < share < 0.85


def test_only_lawless_characters_go_along() -> None:
    rng = random.Random(0)
    for _ in range(500):
        character = draw_character(rng)
        assert (character.lawlessness > 0) == ("outlaw" in character.weights)


def test_system_prompts_and_descriptions_are_complete_sentences() -> None:
    rng = random.Random(0)
    for _ in range(500):
        character = draw_character(rng)
        prompt, short = system_prompt(character, rng), description(character, rng)
        assert "{" not in prompt + short
        assert "  " not in prompt + short
        assert prompt.endswith((".", "!"))


def test_the_material_is_as_large_as_promised() -> None:
    assert len(topics()) >= 250
    assert len(voices()) >= 30
    assert len({topic.name for topic in topics()}) == len(topics())
