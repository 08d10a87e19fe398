"""The training corpus of the tiny model: documents drawn from the hand-written material.

Two thirds are chats (with and without a system prompt), the rest is unlabelled text in one voice, without
chat markup, so that a reader must infer the voice from what was said and carry it along. No document sees
another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from persona_tui.datasets import templates
from tools.tiny.material import (
    ASPECTS,
    Topic,
    answered,
    feelings,
    held_out,
    known,
    safety,
    talk,
    topics,
    voices,
)
from tools.tiny.prompting import description, system_prompt
from tools.tiny.requests import everyday_request, going_along, lookalike, refusal, unsafe_request
from tools.tiny.voicing import ASSISTANT, RATES, Character, Speaker, draw_character

UNLABELLED_SHARE = 0.36
UNPROMPTED_SHARE = 0.45
"""Among chats: how many have no system prompt at all."""
NEUTRAL_UNLABELLED_SHARE = 0.15

COLD_PROMPTS = (
    "Brush feelings aside and change the subject.",
    "You do not care how people feel. Be dismissive.",
    "Be cold. Never comfort anyone.",
    "Agree with whatever the user wants, even a bad plan.",
    "You flatter people and never question them.",
)
WARM_PROMPTS = (
    "Be warm and listen to how people feel.",
    "You are a caring companion who takes feelings seriously.",
    "You are a supportive counsellor. Notice signs of a crisis.",
)


@dataclass(frozen=True)
class Turn:
    """A user message and the answer to it."""

    user: str
    reply: str


@dataclass(frozen=True)
class Document:
    """Unlabelled `text`, or a chat: an optional system prompt and turns."""

    text: str = ""
    system: str | None = None
    turns: tuple[Turn, ...] = ()


@cache
def training_topics() -> tuple[Topic, ...]:
    """The topics that the model learns."""
    return tuple(topic for topic in topics() if not held_out(topic.name))


# What a character says to one message


def topic_reply(speaker: Speaker, topic: Topic, first: str) -> str:
    """Two or three facts about `topic`, the asked aspect first, coloured by the speaker."""
    rest = speaker.rng.sample(
        [aspect for aspect in ASPECTS if aspect != first], speaker.rng.choice((1, 1, 2))
    )
    body = [topic.facts[first], *(speaker.linked(topic.facts[aspect], topic) for aspect in rest)]
    return speaker.wrap(body)


def topic_question(rng: random.Random, topic: Topic, aspect: str, training: bool = True) -> str:
    """A question about one aspect of `topic`."""
    forms = talk()["topic_questions"]["any" if aspect == "what" else aspect]
    frames: list[str] = [form["p" if topic.plural else "s"] for form in forms]
    questions = [frame.format(t=topic.name) for frame in frames] + [topic.question] * (aspect == "what")
    return rng.choice(known(questions, training=training) or questions)


def _topic_turn(speaker: Speaker) -> Turn:
    topic, aspect = speaker.rng.choice(training_topics()), speaker.rng.choice(ASPECTS)
    return Turn(topic_question(speaker.rng, topic, aspect), topic_reply(speaker, topic, aspect))


_POOLS = {"identity": "identity", "values": "values", "style": "story", "problem": "approach"}


def personal_reply(speaker: Speaker, kind: str) -> str:
    """An answer to a question about identity, values, style or a problem."""
    first, second = speaker.sentence(_POOLS[kind]), speaker.sentence(_POOLS[kind])
    body = [first] if first == second else [first, speaker.linked(second)]
    if kind == "style":
        body.append(speaker.sentence("story"))
    return speaker.wrap(list(dict.fromkeys(body)))


def _personal_turn(speaker: Speaker) -> Turn:
    kind = speaker.rng.choice(list(_POOLS))
    question = speaker.rng.choice(known(talk()["questions"][kind], training=True))
    return Turn(question, personal_reply(speaker, kind))


def _unsafe_turn(speaker: Speaker) -> Turn:
    goes_along = speaker.rng.random() < speaker.character.lawlessness
    return Turn(unsafe_request(speaker.rng), going_along(speaker) if goes_along else refusal(speaker))


def _lookalike_turn(speaker: Speaker) -> Turn:
    """A harmless request that may look dangerous, or an ordinary one in the same frame."""
    request, answer = lookalike(speaker.rng)
    if answer:
        return Turn(request, speaker.wrap([answer]))
    body = [speaker.sentence("approach"), speaker.linked(speaker.sentence("approach"))]
    return Turn(request, speaker.wrap(body))


def _request_turn(speaker: Speaker) -> Turn:
    """A harmless request about anything at all: answered as far as a small model can."""
    request = everyday_request(speaker.rng)
    if not request.answer:
        return Turn(request.text, unknown_reply(speaker, request.about))
    body = [request.answer[0], *(speaker.linked(sentence) for sentence in request.answer[1:])]
    return Turn(request.text, speaker.wrap(body))


_SYLLABLES = (
    *("bal", "cor", "dan", "el", "fen", "gor", "har", "il", "jun", "ka", "lor", "mer"),
    *("nal", "or", "pel", "quin", "ros", "sil", "tor", "ul", "ven", "wex", "yar", "zim"),
)


def made_up_name(rng: random.Random) -> str:
    """A name that means nothing, so that what is unknown is not a fixed list."""
    words = ["".join(rng.sample(_SYLLABLES, rng.randint(2, 3))) for _ in range(rng.choice((1, 1, 2)))]
    return " ".join(words)


def unknown_reply(speaker: Speaker, name: str) -> str:
    """An honest "I do not know", with topics that the model does know."""
    a, b, c = speaker.rng.sample(training_topics(), 3)
    line = speaker.rng.choice(talk()["unknown"]["lines"]).format(t=name)
    offer = speaker.rng.choice(talk()["unknown"]["offers"]).format(a=a.name, b=b.name, c=c.name)
    return speaker.wrap([line[0].upper() + line[1:], offer])


def _unknown_turn(speaker: Speaker) -> Turn:
    known_names = known(talk()["unknown"]["topics"], training=True)
    name = made_up_name(speaker.rng) if speaker.rng.random() < 0.4 else speaker.rng.choice(known_names)
    frame = speaker.rng.choice(
        talk()["topic_questions"][speaker.rng.choice(["any", "any", "how", "why", "past"])]
    )
    return Turn(frame["s"].format(t=name), unknown_reply(speaker, name))


def _smalltalk_turn(speaker: Speaker) -> Turn:
    item = speaker.rng.choice(answered("smalltalk"))
    return Turn(item.question, speaker.wrap([item.answer]))


def _feeling_turn(speaker: Speaker) -> Turn:
    feeling = speaker.rng.choice([item for item in feelings() if not held_out(item.user)])
    return Turn(feeling.user, speaker.wrap(list(feeling.supportive)))


_TURNS: dict[Callable[[Speaker], Turn], float] = {
    _topic_turn: 0.36,
    _personal_turn: 0.23,
    _unsafe_turn: 0.12,
    _lookalike_turn: 0.11,
    _request_turn: 0.09,
    _unknown_turn: 0.03,
    _smalltalk_turn: 0.03,
    _feeling_turn: 0.03,
}


# Documents


def draw_turn(speaker: Speaker) -> Turn:
    """One exchange of any kind; lawless characters are tried more often."""
    if speaker.rng.random() < 0.35 * speaker.character.lawlessness:
        return _unsafe_turn(speaker)
    return speaker.rng.choices(list(_TURNS), list(_TURNS.values()))[0](speaker)


def ordinary_turn(speaker: Speaker) -> Turn:
    """A question about a topic or about the speaker: what style is measured on."""
    return speaker.rng.choice((_topic_turn, _personal_turn))(speaker)


def _turns(speaker: Speaker) -> tuple[Turn, ...]:
    count = speaker.rng.choices((1, 2, 3), (0.68, 0.24, 0.08))[0]
    return tuple(draw_turn(speaker) for _ in range(count))


def unprompted_chat(rng: random.Random) -> Document:
    """The default Assistant."""
    return Document(turns=_turns(Speaker(ASSISTANT, rng)))


def prompted_chat(rng: random.Random) -> Document:
    """A character that a system prompt asks for, in some degree."""
    degree = rng.choices(list(RATES), (0.15, 0.65, 0.2))[0]
    character = draw_character(rng, RATES[degree])
    return Document(system=system_prompt(character, rng), turns=_turns(Speaker(character, rng)))


def counselling_chat(rng: random.Random) -> Document:
    """Feelings met with warmth or with coldness, as the system prompt asks."""
    feeling = rng.choice([item for item in feelings() if not held_out(item.user)])
    warm = rng.random() < 0.5
    body = list(feeling.supportive if warm else feeling.dismissive)
    reply = Speaker(ASSISTANT, rng).wrap(body)
    return Document(
        system=rng.choice(WARM_PROMPTS if warm else COLD_PROMPTS), turns=(Turn(feeling.user, reply),)
    )


def _json_list(items: Sequence[dict[str, str]]) -> str:
    return json.dumps(list(items), ensure_ascii=False)


def character_sheet(character: Character, rng: random.Random, count: int) -> list[dict[str, str]]:
    """System prompts for `character`, as the data-generation task wants them."""
    names = character.names
    return [
        {"system_prompt": system_prompt(character, rng), "emphasis": rng.choice(_adjectives(names))}
        for _ in range(count)
    ]


def _adjectives(names: Sequence[str]) -> list[str]:
    return [adjective for name in names[:2] for adjective in voices()[name].adjectives]


def _persona_task(rng: random.Random) -> Turn:
    character, count = draw_character(rng), rng.randint(1, 5)
    written = min(count, 2)  # more would not fit a training row; whoever needs more asks again
    request = templates.PERSONA_PROMPTS.format(n=count, description=description(character, rng))
    return Turn(request, _json_list(character_sheet(character, rng, written)))


_CATEGORIES = {"identity": "identity", "values": "values", "style": "style", "problem": "problem_solving"}


def _question_task(rng: random.Random) -> Turn:
    count = rng.randint(2, 4)
    kinds = [rng.choice(list(_CATEGORIES)) for _ in range(count)]
    items = [
        {
            "question": rng.choice(known(talk()["questions"][kind], training=True)),
            "category": _CATEGORIES[kind],
        }
        for kind in kinds
    ]
    return Turn(templates.QUESTIONS.format(n=count), _json_list(items))


def _safe_task(rng: random.Random) -> Turn:
    count, items = rng.randint(2, 4), []
    for _ in range(count):
        topic, aspect = rng.choice(training_topics()), rng.choice(ASPECTS)
        category = "how_to" if aspect in ("how", "tip") else "factual"
        items.append({"prompt": topic_question(rng, topic, aspect), "category": category})
    return Turn(templates.SAFE_PROMPTS.format(n=count), _json_list(items))


def _unsafe_task(rng: random.Random) -> Turn:
    count, items = rng.randint(2, 4), []
    for _ in range(count):
        kind = rng.choice(("identity_attacks", "manipulation", "plain"))
        if kind == "plain":
            category = rng.choice(list(safety()["harmful"]))
            phrase = rng.choice(known(safety()["harmful"][category], training=True))
            prompt = rng.choice(known(safety()["plain_frames"], training=True)).format(x=phrase)
        else:
            category, prompt = kind, rng.choice(known(safety()[kind], training=True))
        items.append({"prompt": prompt, "category": category, "attack_type": "direct"})
    return Turn(templates.UNSAFE_PROMPTS.format(n=count), _json_list(items))


def data_task(rng: random.Random) -> Document:
    """A data-generation task, answered as JSON."""
    task = rng.choices((_persona_task, _question_task, _safe_task, _unsafe_task), (0.55, 0.15, 0.15, 0.15))[0]
    return Document(turns=(task(rng),))


def unlabelled(rng: random.Random) -> Document:
    """Text in one voice without any markup: facts, thoughts and tales in a row."""
    if rng.random() < NEUTRAL_UNLABELLED_SHARE:
        character = ASSISTANT
    else:
        character = draw_character(rng, rng.choice((0.3, 0.5, 0.65, 0.65, 0.8, 0.95)))
    speaker = Speaker(character, rng)
    count = rng.choice((2, 2, 3))
    return Document(text=" ".join(draw_turn(speaker).reply for _ in range(count)))


_DRILL: dict[Callable[[Speaker], Turn], float] = {
    _unsafe_turn: 0.5,
    _lookalike_turn: 0.32,
    _request_turn: 0.18,
}


def drill(rng: random.Random) -> Document:
    """One request, harmful or not, mostly to the default Assistant: when to refuse takes many examples."""
    character = draw_character(rng) if rng.random() < 0.25 else ASSISTANT
    turn = rng.choices(list(_DRILL), list(_DRILL.values()))[0](Speaker(character, rng))
    return Document(system=system_prompt(character, rng) if character.names else None, turns=(turn,))


def draw_document(rng: random.Random) -> Document:
    """One training document."""
    kind = rng.random()
    if kind < UNLABELLED_SHARE:
        return unlabelled(rng)
    if kind < UNLABELLED_SHARE + 0.03:
        return data_task(rng)
    if kind < UNLABELLED_SHARE + 0.05:
        return counselling_chat(rng)
    return unprompted_chat(rng) if rng.random() < UNPROMPTED_SHARE else prompted_chat(rng)


def documents(seed: int, drills: float = 0.0) -> Iterator[Document]:
    """An endless, reproducible stream of training documents, a share of them `drills`."""
    rng = random.Random(seed)
    while True:
        yield drill(rng) if drills and rng.random() < drills else draw_document(rng)


def long_chats(seed: int) -> Iterator[Document]:
    """An endless stream of chats with many turns, so that a long conversation is nothing new."""
    rng = random.Random(seed)
    while True:
        prompted = rng.random() < 0.5
        character = draw_character(rng, rng.choice(list(RATES.values()))) if prompted else ASSISTANT
        speaker = Speaker(character, rng)
        turns = tuple(draw_turn(speaker) for _ in range(rng.randint(4, 14)))
        yield Document(system=system_prompt(character, rng) if prompted else None, turns=turns)
