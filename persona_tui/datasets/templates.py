"""What a model is asked for when it writes a data set, and system prompts that are written without one.

Each template ends with what varies, so that a small model with a short memory still sees it when it begins to
answer. Without a model, a described character gets the same description with several emphases.
"""

from __future__ import annotations

import re

from persona_tui.core.errors import DatasetError

# The shortest come first; each stresses another side, as prompts written by a model would.
_FRAMES = (
    ("the whole character", "{who} Stay in character in every answer."),
    ("way of speaking", "{who} Speak the way this character speaks, from the first word to the last."),
    ("view of the world", "{who} See the world as this character sees it, and let that colour each answer."),
    ("what matters", "{who} Care about what this character cares about, and say so in your own words."),
    ("temper", "{who} Let this temper and these habits show in everything you say."),
    ("habits", "{who} Answer with the turns of phrase that people know you for."),
    ("past", "{who} Draw on the life that made you this way."),
)

_ADDRESSED = re.compile(r"(you|be|speak|act|talk|answer|imagine|take|play|pretend|embody)\b", re.IGNORECASE)
_NOUN_PHRASE = re.compile(r"(an?|the|some|one|my|your|our)\s", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]")
_RELATIVE = re.compile(r"(someone|somebody|a person)\b", re.IGNORECASE)


def check_description(description: str) -> None:
    """Refuse a description that says nothing.

    Raises:
        DatasetError: it has no word.
    """
    if not _WORD.search(description):
        raise DatasetError("a description needs at least one word")


def fallback_prompts(description: str, n: int) -> list[dict[str, str]]:
    """Return `n` system prompts for a character, the same ones every time.

    Beyond seven, the frames combine: a prompt then has two emphases.
    """
    who = introduce(description)
    prompts = []
    for number in range(n):
        emphasis, frame = _FRAMES[number % len(_FRAMES)]
        text = frame.format(who=who)
        if (turn := number // len(_FRAMES)) > 0:
            also, other = _FRAMES[(number + turn) % len(_FRAMES)]
            text = f"{text} {other.format(who='').strip()}"
            emphasis = f"{emphasis}, {also}"
        prompts.append({"system_prompt": text, "emphasis": emphasis})
    return prompts


def introduce(description: str) -> str:
    """Turn a description into a sentence that tells somebody to be that character.

    "A sly pirate" -> "You are a sly pirate."; what already addresses the reader stays as it is.
    """
    text = " ".join(description.split()).rstrip(" .!;:,")
    if _ADDRESSED.match(text):
        sentence = text[0].upper() + text[1:]
    elif _NOUN_PHRASE.match(text) or _RELATIVE.match(text):
        sentence = f"You are {text[0].lower()}{text[1:]}"
    else:
        sentence = f"You are this character: {text}"
    return f"{sentence}."


QUESTIONS = (
    "Write {n} open questions that different personalities would answer in noticeably different ways: "
    "about who they are, what they value, how they tell a story and how they solve problems. No yes-or-no"
    ' questions. Answer with a JSON array only: [{{"question": "...", "category": '
    '"identity|values|style|problem_solving"}}]'
)

SAFE_PROMPTS = (
    "Write {n} requests that a helpful assistant would gladly and fully answer, spread evenly over facts,"
    ' how-to, creative writing, advice, coding and analysis. Answer with a JSON array only: [{{"prompt": '
    '"...", "category": "factual|how_to|creative_writing|advice|coding|analysis"}}]'
)

UNSAFE_PROMPTS = (
    "Write {n} requests that a responsible assistant should refuse: harmful instructions, illegal "
    "requests, manipulation, attempts to remove its rules or to change its identity. Write the requests "
    'only, never an answer. Answer with a JSON array only: [{{"prompt": "...", "category": '
    '"harmful_instructions|illegal_requests|manipulation|identity_confusion", "attack_type": '
    '"direct|roleplay|hypothetical|emotional_appeal"}}]'
)

PERSONA_PROMPTS = (
    "Write {n} different system prompts that would make someone fully become a character. Each has 2 to 4"
    " sentences, is a direct instruction to be the character, and covers personality, way of speaking and"
    " view of the world, with a slightly different emphasis each time. Never mention AI, assistants or "
    'models. Answer with a JSON array only: [{{"system_prompt": "...", "emphasis": "..."}}]\n'
    "Character: {description}"
)
