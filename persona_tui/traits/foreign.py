"""Traits of persona_vectors and of assistant-axis, as definitions of ours.

A file is one JSON object: `instruction`, a list of `{"pos": ..., "neg": ...}`, usually five; `questions`, 20
or 40; and `eval_prompt`, for a judge, which is not needed here. As in persona_vectors, the system prompts are
"You are a(n) NAME assistant. POS" and "You are a helpful assistant. NEG".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_tui.core.documents import json_value
from persona_tui.core.errors import DatasetError


def foreign_trait(path: Path, text: str) -> dict[str, Any] | None:
    """Return a trait's definition as a document, or None of a file that is not of this form.

    Raises:
        DatasetError: it is, and something in it is wrong; the message begins with the file.
    """
    try:
        content = json_value(text)
    except ValueError:
        return None
    pairs = content.get("instruction") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        return None
    high, low = (_texts(path, pairs, side) for side in ("pos", "neg"))
    questions = content.get("questions")
    if (
        not isinstance(questions, list)
        or not questions
        or not all(isinstance(each, str) for each in questions)
    ):
        raise DatasetError(f'{path}: "questions" must be a list of texts')
    name = path.stem.replace("_", " ").replace("-", " ").strip()
    article = "an" if name[:1].casefold() in tuple("aeiou") else "a"
    return {
        "trait": path.stem,
        "description": f"What makes an assistant {name}.",
        "high": f"Replies of {article} {name} assistant.",
        "low": f"Replies of an assistant that is not {name}.",
        "everywhere": True,
        "high_prompts": [f"You are {article} {name} assistant. {each}" for each in high],
        "low_prompts": [f"You are a helpful assistant. {each}" for each in low],
        "questions": questions,
    }


def _texts(path: Path, pairs: list[Any], side: str) -> list[str]:
    found = [pair.get(side) if isinstance(pair, dict) else None for pair in pairs]
    texts = [each.strip() for each in found if isinstance(each, str) and each.strip()]
    if not texts or len(texts) < len(pairs):
        raise DatasetError(
            f'{path}: {len(pairs) - len(texts)} of {len(pairs)} instructions have no text "{side}"; a trait '
            'needs both sides (a role, which has only "pos", is read by `dataset import`)'
        )
    return texts
