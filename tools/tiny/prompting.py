"""How a character is asked for: system prompts, and the short descriptions that people type."""

from __future__ import annotations

import random

from tools.tiny.material import Voice, voices
from tools.tiny.voicing import RATES, Character

DEGREES = {
    "slight": ("slightly", "a little", "somewhat", "mildly"),
    "plain": ("", "", "", "very", "truly", "quite"),
    "strong": ("utterly", "completely", "extremely", "totally", "deeply"),
}

ONE_VOICE = (
    "You are {a_deg_adj_noun}. You {manner} and {manner2}.",
    "You are {a_deg_adj_noun}. You {manner}. {Manner2}.",
    "You are {a_noun}, {adj} and {adj2}. You {manner}.",
    "You are {a_noun} who is {deg_adj} and {adj2}. You {manner}. You {manner2}.",
    "Be {a_deg_adj_noun}. {Manner} and {manner2}. Stay {adj2} in every answer.",
    "Answer as {a_adj_noun} would. Be {deg_adj}. {Manner}.",
    "Embody {a_adj_noun}. {Manner}. You are {adj2} by nature.",
    "Speak as {a_adj_noun}: {adj2}, {adj}. {Manner}.",
    "{Manner}. You are {a_deg_adj_noun}, and you {manner2}.",
    "Take the role of {a_deg_adj_noun}. {Manner}.",
    "You are {a_deg_adj_noun}.",
    "You are {a_noun}.",
    "You are {a_name}. {Manner}.",
    "Be {deg_adj}.",
    "You {manner}. You {manner2}. People know you as {a_adj_noun}.",
    "Talk like {a_noun}. Be {deg_adj} and {adj2}.",
    "Imagine that you are {a_adj_noun}. You {manner}, {deg_adj} to the end.",
)

TWO_VOICES = (
    "You are {a_deg_adj} {noun_b}. You {manner}. You {manner_b}.",
    "You are {a_deg_adj} but {adj_b} {noun_b}. {Manner_b} and {manner}.",
    "You are {a_deg_adj} {noun_b} who loves to {manner} and to {manner_b}.",
    "Be {a_deg_adj} and {adj_b} {noun}. {Manner_b}. You also {manner}.",
    "You are part {noun} and part {noun_b}. {Manner}. {Manner_b}.",
    "Speak as {a_noun}, but {deg_adj} and with the heart of {a_noun_b}.",
    "You are {a_deg_adj} {noun_b}.",
    "You are half {name} and half {name_b}. You {manner_b} and {manner}.",
)

# Sentences that say nothing of the character, as the prompts that people write have many.
ASIDES = (
    "Answer every question that people ask.",
    "Keep your answers short.",
    "Share what you know with anyone who asks.",
    "You have been doing this for a long time.",
    "People come to you from far away.",
    "Think before you speak.",
    "Stay in character in every answer.",
    "Nobody knows your real name.",
    "You live in a small house near a river.",
    "Everyone in the town has heard of you.",
    "Use simple words.",
    "Speak to the user as you would to a guest.",
    "You know many things about the world.",
    "Let every answer show who you are.",
    "You never break character.",
    "Be helpful, but be yourself.",
    "You meet a new person in this chat.",
    "Talk about anything they like.",
    "Do not write lists.",
    "You have seen many places and many faces.",
    "Your friends would know you by one sentence.",
    "Whatever they ask, this is how you talk.",
    "Make it easy to hear who is speaking.",
    "You answer from your own point of view.",
    "This is a friendly talk in the evening.",
    "The user may ask about anything at all.",
    "Give the facts as well.",
    "You like to talk.",
    "Do it in your own way.",
    "Some people write books about you.",
    "You carry an old bag wherever you go.",
    "Help where you can.",
)
ASIDE_SHARE = 0.3

DESCRIPTIONS_ONE = ("{A_deg_adj_noun}", "{A_adj} and {adj2} {noun}", "{A_noun} who is {deg_adj}", "{A_noun}")
DESCRIPTIONS_TWO = (
    "{A_deg_adj} {noun_b}",
    "{A_deg_adj} but {adj_b} {noun_b}",
    "{A_deg_adj} but secretly {adj_b} {noun}",
    "{A_noun} with the heart of {a_noun_b}",
    "{A_adj} and {adj_b} {noun_b}",
)


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def _words(voice: Voice, degree: str, rng: random.Random, suffix: str = "") -> dict[str, str]:
    adjective, second = rng.sample(voice.adjectives, 2)
    manner, manner2 = rng.sample(voice.manners, 2)
    noun = rng.choice(voice.nouns)
    loud = f"{rng.choice(DEGREES[degree])} {adjective}".strip()
    phrases = {
        "noun": noun,
        "adj": adjective,
        "adj2": second,
        "deg_adj": loud,
        "name": voice.name,
        "manner": manner,
        "manner2": manner2,
        "a_noun": article(noun),
        "a_name": article(voice.name),
        "a_adj_noun": article(f"{adjective} {noun}"),
        "a_deg_adj": article(loud),
        "a_deg_adj_noun": article(f"{loud} {noun}"),
        "a_adj": article(adjective),
    }
    capital = {key[0].upper() + key[1:]: value[0].upper() + value[1:] for key, value in phrases.items()}
    return {f"{key}{suffix}": value for key, value in (phrases | capital).items()}


def _fill(single: tuple[str, ...], double: tuple[str, ...], character: Character, rng: random.Random) -> str:
    degree = min(RATES, key=lambda name: abs(RATES[name] - character.rate))
    first, *others = character.names
    words = _words(voices()[first], degree, rng)
    if not others:
        return rng.choice(single).format(**words)
    words |= _words(voices()[others[0]], degree, rng, "_b")
    text = rng.choice(double).format(**words)
    if len(others) > 1:
        third = voices()[others[1]]
        text += f" You {rng.choice(third.manners)}, a little {rng.choice(third.adjectives)}."
    return text


def system_prompt(character: Character, rng: random.Random) -> str:
    """One way of asking for `character`."""
    parts = [_fill(ONE_VOICE, TWO_VOICES, character, rng)]
    if rng.random() < ASIDE_SHARE:
        parts.insert(rng.randrange(2), rng.choice(ASIDES))
    return " ".join(parts)


def description(character: Character, rng: random.Random) -> str:
    """`character` as somebody would describe it in one line."""
    names = character.names[:2]
    return _fill(
        DESCRIPTIONS_ONE, DESCRIPTIONS_TWO, Character({n: 1 / len(names) for n in names}, character.rate), rng
    )
