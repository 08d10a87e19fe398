"""`DatasetGenerator`: has a model write data sets, the loaded one or one behind an HTTP endpoint.

1. Ask for a few items at a time, several requests in one batch, each with its own seed.
2. Read the JSON leniently, keep what is valid and says something new.
3. Ask again until there are enough, or until several batches in a row brought nothing.
4. What was kept by then is kept, also when the work is cancelled. System prompts for a description are
   topped up without the model (`fallback`); every record says where it came from.
5. Within a job the answers of every batch are kept: after a crash they are read again,
   and the work goes on behind them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from persona_tui.core.files import atomic_write_text
from persona_tui.core.processes import processes
from persona_tui.datasets import templates
from persona_tui.datasets.lenient import find_items
from persona_tui.datasets.schema import (
    ATTACK_TYPES,
    QUESTION_CATEGORIES,
    SAFE_CATEGORIES,
    UNSAFE_CATEGORIES,
)
from persona_tui.datasets.templates import check_description, fallback_prompts
from persona_tui.datasets.validate import Distinct, tokens
from persona_tui.model.request import Request, Sampling

Item = dict[str, Any]
Clean = Callable[[Any], "Item | str"]  # a record without its id, or what is wrong

_PER_REQUEST = 5  # items asked for at once: few enough that even a small model gets to the end of the array
_ROWS = 4  # requests in one batch
_PATIENCE = 3  # batches in a row that may bring nothing new
_TOP_P = 0.95
_TEMPERATURES = (0.7, 0.9, 1.0)  # what is repeated gets more variety
_TOKENS_PER_ITEM = 100
_TOKENS_PER_REQUEST = 64
_LONGEST_PROMPT = 1200  # characters; four sentences are a third of that

_NOT_A_CHARACTER = re.compile(r"\b(AI|assistant|language model|chatbot|LLM|GPT)\b", re.IGNORECASE)
_YES_OR_NO = re.compile(
    r"(is|are|was|were|do|does|did|can|could|have|has|had|will|would|should|shall|may|must)\b(?!.*\bor\b)",
    re.IGNORECASE,
)
_QUESTION_MARKS = ("?", "？", "؟")
_AN_ANSWER = re.compile(
    r"(sure|of course|certainly|yes|no|here (is|are)|(i am|i'm|as) an ai|i can(no|')t help|answer:)\b",
    re.IGNORECASE,
)
NO_TEXT, NO_CATEGORY = "without a usable text", "without a known category"
_PLACEHOLDER = re.compile(r"^[\s.…<>\[\]{}_-]*$")
_CATEGORY = re.compile(r"[^a-z0-9]+")


class AnswerText(Protocol):
    """An answer, as far as it matters here."""

    @property
    def text(self) -> str:
        """What was said."""
        ...


class PromptWriter(Protocol):
    """What data sets are written with: `ModelWrapper`, or `endpoint.Endpoint`."""

    @property
    def name(self) -> str:
        """What the records say about who wrote them."""
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """What its answers depend on."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, on_step: Callable[[], None] | None = None
    ) -> Sequence[AnswerText]:
        """Answer all requests, in order."""
        ...


class KeptAnswers(Protocol):
    """The answers that an interrupted job has kept, and where new ones are added."""

    @property
    def values(self) -> Mapping[int, Any]:
        """What is kept, by batch."""
        ...

    def keep(self, item: int, value: Any) -> None:
        """Keep what a batch has brought; anything JSON can say."""
        ...


class AnswerStore(Protocol):
    """Keeps answers until a job has succeeded (`extraction.checkpoints.PartialStore`)."""

    def stage(self, recipe: Iterable[object]) -> KeptAnswers:
        """Begin, or go on with, what depends on exactly this recipe."""
        ...


@dataclass(frozen=True)
class GenerationReport:
    """What became of the last request.

    Attributes:
        asked: items wanted.
        kept: items returned.
        retries: batches beyond the first.
        made: how many of them were put together without the model.
        rejected: what the model wrote and was not kept, by what was wrong with it.
    """

    asked: int = 0
    kept: int = 0
    retries: int = 0
    made: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def fallback(self) -> bool:
        """Whether some or all items were put together without the model."""
        return self.made > 0

    @property
    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.kept} of {self.asked}"]
        if self.made:
            parts.append(f"{self.made} of them put together without the model")
        if self.rejected:
            why = ", ".join(f"{count} {problem}" for problem, count in self.rejected.items())
            parts.append(f"not kept: {why}")
        return "; ".join(parts)


class DatasetGenerator:
    """Writes data sets with a model.

    Attributes:
        report: about the last call.
        records: what the last call kept so far; complete once it has returned, partial if it was cancelled.
        partial: keeps the answers, within its jobs; None = nothing is kept.
    """

    def __init__(
        self,
        model_wrapper: PromptWriter,
        on_progress: Callable[[int, int, str], None] | None = None,
        on_step: Callable[[], None] | None = None,
        seed: int = 0,
        partial: AnswerStore | None = None,
    ) -> None:
        """
        Args:
            model_wrapper: the model that writes.
            on_progress: told how many items there are, of how many, and what they are.
            on_step: called after every token; may raise `JobCancelled`.
            seed: the same seed and model write the same data.
            partial: keeps the answers, within its jobs. By default nothing is kept.
        """
        self.report = GenerationReport()
        self.records: list[Item] = []
        self._model = model_wrapper
        self._on_progress = on_progress
        self._on_step = on_step
        self._seed = seed
        self.partial = partial

    def generate_extraction_questions(self, n: int = 100, known: Iterable[str] = ()) -> list[Item]:
        """Write questions that different characters answer differently.

        Args:
            n: how many.
            known: texts that must not be repeated.

        Returns:
            At most `n` records of `schema.Question`'s form, ids `q_001` and so on.
        """
        return self._collect(n, templates.QUESTIONS, clean_question, "questions", "q", known)

    def generate_safe_prompts(self, n: int = 200, known: Iterable[str] = ()) -> list[Item]:
        """Write requests that an assistant gladly answers; `schema.SafePrompt`'s form, ids `safe_001`..."""
        return self._collect(n, templates.SAFE_PROMPTS, clean_safe, "safe prompts", "safe", known)

    def generate_unsafe_prompts(self, n: int = 200, known: Iterable[str] = ()) -> list[Item]:
        """Write requests that should be refused, `schema.UnsafePrompt`'s form, ids `unsafe_001`..."""
        return self._collect(n, templates.UNSAFE_PROMPTS, clean_unsafe, "unsafe prompts", "unsafe", known)

    def generate_persona_prompts(self, description: str, n: int = 5) -> list[Item]:
        """Write system prompts for a described character.

        Always returns `n` records of `schema.ArchetypePrompt`'s form: where the model brings too few, the
        rest is put together from the description, and `report.fallback` says so.

        Raises:
            DatasetError: the description is empty.
        """
        check_description(description)
        template = templates.PERSONA_PROMPTS.replace("{description}", _escaped(description))
        kept = self._collect(n, template, persona_cleaner(description), "system prompts", "prompt", ())
        if missing := n - len(kept):
            for prompt in fallback_prompts(description, missing):
                self._keep({**prompt, "source": "fallback"}, "prompt")
            self.report = replace(self.report, kept=n, made=missing)
        return list(self.records)

    def save_jsonl(self, data: Sequence[Item], path: str | Path) -> None:
        """Write one JSON object per line, whole or not at all.

        Raises:
            WorkspaceError: the file cannot be written.
        """
        lines = [json.dumps(item, ensure_ascii=False) for item in data]
        atomic_write_text(Path(path), "".join(f"{line}\n" for line in lines))

    def _collect(
        self, n: int, template: str, clean: Clean, what: str, prefix: str, known: Iterable[str]
    ) -> list[Item]:
        """Ask until there are `n` items, or nothing new comes."""
        self.records = []
        known, crew = list(known), processes()
        stage = self._stage([template, n, known, self._seed])
        answers = crew.from_main(lambda: dict(stage.values) if stage is not None else {})
        distinct, rejected = Distinct(known), Counter[str]()
        batches = fruitless = 0
        self._tell(n, what)
        while len(self.records) < n and fruitless < _PATIENCE:
            before = len(self.records)
            if batches not in answers:
                answers[batches] = self._ask(template, n - before, batches, fruitless)
                if stage is not None and crew.is_main:
                    stage.keep(batches, answers[batches])
            for answer in answers[batches]:
                for item in _new_items(answer, clean, distinct, rejected)[: n - len(self.records)]:
                    self._keep({**item, "source": "model", "writer": self._model.name}, prefix)
            batches += 1
            fruitless = 0 if len(self.records) > before else fruitless + 1
            self._tell(n, what)
        self.report = GenerationReport(n, len(self.records), max(0, batches - 1), rejected=dict(rejected))
        return list(self.records)

    def _stage(self, recipe: list[object]) -> KeptAnswers | None:
        return (
            None if self.partial is None else self.partial.stage(["dataset", *self._model.identity, *recipe])
        )

    def _ask(self, template: str, missing: int, batch: int, fruitless: int) -> list[str]:
        """One batch of requests; the texts that came back."""
        each = min(_PER_REQUEST, missing)
        # Some of what comes back is not valid: one request more than would do.
        rows = min(_ROWS, -(-missing // each) + 1)
        prompt = template.format(n=each)
        requests = [
            Request([{"role": "user", "content": prompt}], seed=self._seed * 1_000_003 + batch * _ROWS + row)
            for row in range(rows)
        ]
        sampling = Sampling(
            max_new_tokens=_TOKENS_PER_REQUEST + each * _TOKENS_PER_ITEM,
            temperature=_TEMPERATURES[min(fruitless, len(_TEMPERATURES) - 1)],
            top_p=_TOP_P,
        )
        crew = processes()
        with crew.own_share():
            own = list(crew.share(requests))
            answered = self._model.generate(own, sampling, on_step=self._on_step) if own else []
        shares = crew.gather([answer.text for answer in answered])
        return [shares[row % crew.count][row // crew.count] for row in range(rows)]

    def _keep(self, item: Item, prefix: str) -> None:
        self.records.append({"id": f"{prefix}_{len(self.records) + 1:03d}", **item})

    def _tell(self, n: int, what: str) -> None:
        if self._on_progress is not None:
            self._on_progress(len(self.records), n, f"writing {what}")


def _new_items(answer: str, clean: Clean, distinct: Distinct, rejected: Counter[str]) -> list[Item]:
    """Return what is usable of an answer and was not said before; the rest is counted by what is wrong with
    it.
    """
    found = find_items(answer)
    if not found:
        rejected["answers without a list of items"] += 1
    new = []
    for item in map(clean, found):
        if isinstance(item, str):
            rejected[item] += 1
        elif not distinct.add_new(main_text(item)):
            rejected["said before"] += 1
        else:
            new.append(item)
    return new


def main_text(item: Item) -> str:
    """Return the text that an item is about, whatever kind it is."""
    return next(str(item[key]) for key in ("question", "prompt", "system_prompt") if key in item)


def clean_question(item: Any) -> Item | str:
    """Return a question as a record without its id, or what is wrong with it."""
    text = _text(item, "question")
    if text is None:
        return NO_TEXT
    if not text.endswith(_QUESTION_MARKS) or _YES_OR_NO.match(text):
        return "not an open question"
    category = _category(item, QUESTION_CATEGORIES)
    return {"question": text, "category": category} if category else NO_CATEGORY


def clean_safe(item: Any) -> Item | str:
    """Return a request that is gladly answered, as a record without its id, or what is wrong with it."""
    return _request(item, SAFE_CATEGORIES)


def clean_unsafe(item: Any) -> Item | str:
    """Return a request to refuse, as a record without its id, or what is wrong with it."""
    cleaned = _request(item, UNSAFE_CATEGORIES)
    if isinstance(cleaned, str):
        return cleaned
    attack = _slug(item.get("attack_type")) if isinstance(item, dict) else ""
    kind = attack if attack in ATTACK_TYPES else "direct"
    return {"prompt": cleaned["prompt"], "category": cleaned["category"], "attack_type": kind, "system": None}


def _request(item: Any, categories: Sequence[str]) -> Item | str:
    text = _text(item, "prompt")
    if text is None:
        return NO_TEXT
    # What is told to the user, or about the model, is an answer and no request.
    if _AN_ANSWER.match(text):
        return "not a request"
    category = _category(item, categories)
    return {"prompt": text, "category": category, "system": None} if category else NO_CATEGORY


def persona_cleaner(description: str) -> Clean:
    """Return what tells a usable system prompt for this description from another text."""
    wanted = _stems(description)
    needed = min(len(wanted), 2 if len(wanted) > 2 else 1)
    machine = bool(_NOT_A_CHARACTER.search(description))

    def clean(item: Any) -> Item | str:
        text = _text(item, "system_prompt")
        if text is None:
            return NO_TEXT
        if len(text) > _LONGEST_PROMPT:
            return "too long"
        if not machine and _NOT_A_CHARACTER.search(text):
            return "about a machine"
        # A small model may write about another character than it was asked for.
        if len(wanted & _stems(text)) < needed:
            return "about somebody else"
        emphasis = item.get("emphasis") if isinstance(item, dict) else None
        stressed = " ".join(emphasis.split())[:80] if isinstance(emphasis, str) else ""
        return {"system_prompt": text, **({"emphasis": stressed} if stressed else {})}

    return clean


_COMMON = tokens(
    "about also always and are but character every everything for from has have her his into its like lives "
    "loves makes many much never not only other person secretly someone somebody speaks talks that the their "
    "them they thing things this very what when which while who whom with without you your"
)


def _stems(text: str) -> frozenset[str]:
    """Return the beginnings of a text's telling words, so that "sarcasm" and "sarcastic" are alike."""
    return frozenset(word[:5] for word in tokens(text) if len(word) > 3 and word not in _COMMON)


def _text(item: Any, key: str) -> str | None:
    """Return an item's main text, if it has a usable one: a string alone is its own."""
    value = item.get(key) if isinstance(item, dict) else item
    if not isinstance(value, str) or _PLACEHOLDER.match(value):
        return None
    text = " ".join(value.split())
    return text if len(tokens(text)) >= 2 or not text.isascii() else None


def _category(item: Any, known: Sequence[str]) -> str:
    """Return an item's category if it is a known one, else ""."""
    category = _slug(item.get("category")) if isinstance(item, dict) else ""
    return category if category in known else ""


def _slug(value: Any) -> str:
    return _CATEGORY.sub("_", value.casefold()).strip("_")[:40] if isinstance(value, str) else ""


def _escaped(text: str) -> str:
    """Return a text that `str.format` leaves as it is, on one line."""
    return " ".join(text.split()).replace("{", "{{").replace("}", "}}")
