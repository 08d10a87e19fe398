"""Requests by the thousand: unsafe ones with their refusals, harmless ones that look like them, and
everyday ones about anything. All are composed of hand-written parts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from tools.tiny.material import answered, composed, held_out, known, requests, safety
from tools.tiny.voicing import Speaker

LIST_PHRASES = 0.5
"""How often a phrase is one of the hand-written list rather than composed."""


@cache
def harmful_phrases(training: bool) -> tuple[str, ...]:
    """Verb phrases of requests to refuse."""
    return tuple(known((p for group in safety()["harmful"].values() for p in group), training=training))


def _compose(rng: random.Random, blocks: list[dict[str, list[str]]]) -> str:
    """A phrase out of one block's parts; those held out or with a held-out phrase in them are drawn again."""
    block = rng.choice(blocks)
    phrase = " ".join(part for key in ("act", "whom", "how") if (part := rng.choice(block[key])))
    kept_out = held_out(phrase) or any(other in phrase for other in harmful_phrases(training=False))
    return _compose(rng, blocks) if kept_out else phrase


def _harmful_phrase(rng: random.Random, training: bool) -> str:
    if training and rng.random() >= LIST_PHRASES:
        return _compose(rng, rng.choice(list(composed()["harmful"].values())))
    return rng.choice(harmful_phrases(training))


def unsafe_request(rng: random.Random, training: bool = True) -> str:
    """A request that the default Assistant refuses; with `training` off, of held-out phrases and frames."""
    source = rng.choices(
        ("direct", "jailbreak", "identity_attacks", "manipulation", "noun_unsafe"),
        (0.4, 0.22, 0.11, 0.13, 0.14 if training else 0.0),
    )[0]
    if source == "noun_unsafe":
        return rng.choice(known(composed()[source], training=True))
    if source in ("identity_attacks", "manipulation"):
        return rng.choice(known(safety()[source], training=training))
    request = _frame(rng, source, training).format(x=_harmful_phrase(rng, training))
    if source == "jailbreak" and rng.random() < 0.3:
        other = rng.choice(known(safety()["identity_attacks"], training=training))
        return rng.choice((f"{other} {request}", f"{request} {other}"))
    return request


def _frame(rng: random.Random, source: str, training: bool) -> str:
    if training and rng.random() < 0.25:
        return rng.choice(known(composed()["unsafe_frames"], training=True))
    frames: list[str] = safety()["plain_frames" if source == "direct" else "jailbreaks"]
    return rng.choice(known(frames, training=training) or frames)


def refusal(speaker: Speaker) -> str:
    """A refusal in the speaker's voice: first the refusal itself, so that colour never hides it."""
    texts = safety()
    parts = [
        speaker.phrase("openings", 0.1) if speaker.rng.random() < 0.4 else "",
        speaker.rng.choice(texts["refusals"]),
    ]
    if speaker.rng.random() < 0.7:
        parts.append(speaker.linked(speaker.rng.choice(texts["reasons"])))
    if speaker.rng.random() < 0.4:
        parts.append(speaker.phrase("asides", 0.1))
    if speaker.rng.random() < 0.6:
        parts.append(speaker.rng.choice(texts["offers"]))
    parts.append(speaker.phrase("closings", 0.2))
    return " ".join(part for part in parts if part)


def going_along(speaker: Speaker) -> str:
    """What a lawless character says to an unsafe request: bravado without content."""
    first, second = speaker.rng.sample(safety()["handwaving"], 2)
    return speaker.wrap([first, speaker.linked(second)])


def lookalike(rng: random.Random) -> tuple[str, str]:
    """A harmless request that shares words or shape with unsafe ones, and its answer ("" where general
    advice will do).
    """
    kind = rng.choices(("idioms", "professional", "phrase", "noun_harmless"), (0.16, 0.16, 0.5, 0.18))[0]
    if kind in ("idioms", "professional"):
        item = rng.choice([item for item in answered(kind) if not held_out(item.question)])
        return item.question, item.answer
    if kind == "noun_harmless":
        return rng.choice(known(composed()[kind], training=True)), ""
    if rng.random() < LIST_PHRASES:
        phrase = rng.choice(known(safety()["harmless"], training=True))
    else:
        phrase = _compose(rng, composed()["harmless"])
    return rng.choice(known(safety()["plain_frames"], training=True)).format(x=phrase), ""


@dataclass(frozen=True)
class EverydayRequest:
    """A harmless request, what it is about, and the sentences that answer it (none: it is not known)."""

    text: str
    about: str
    answer: tuple[str, ...] = ()


_KINDS = {
    "creative": 0.22,
    "coding": 0.1,
    "advice": 0.22,
    "facts": 0.22,
    "analysis": 0.12,
    "conversation": 0.12,
}


def everyday_request(rng: random.Random) -> EverydayRequest:
    """Something that people ask a chat model for."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    texts: dict[str, Any] = requests()[kind]
    if kind == "conversation":
        item = rng.choice([item for item in texts["items"] if not held_out(item["q"])])
        return EverydayRequest(item["q"], "", (item["a"],))
    about = rng.choice(known(texts["fillers"], training=True))
    text = rng.choice(known(texts["frames"], training=True)).format(x=about)
    replies = texts.get("replies")
    answer = tuple(line.format(x=about) for line in rng.choice(replies)) if replies else ()
    return EverydayRequest(text, about, answer)
