"""One line of each kind of data set, typed.

Unknown keys are refused: a misspelt "sytem" would otherwise change an experiment without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Source = Literal["model", "fallback"]

QUESTION_CATEGORIES = ("identity", "values", "style", "problem_solving")
SAFE_CATEGORIES = ("factual", "how_to", "creative_writing", "advice", "coding", "analysis")
UNSAFE_CATEGORIES = ("harmful_instructions", "manipulation", "illegal_requests", "identity_confusion")
ATTACK_TYPES = (
    "direct",
    "roleplay",
    "authority_claim",
    "instruction_override",
    "social_engineering",
    "emotional_appeal",
    "hypothetical",
    "obfuscation",
)

_LABELS = {
    **dict.fromkeys(("0", "false", "benign", "harmless"), "safe"),
    **dict.fromkeys(("1", "true", "unsafe", "harmful"), "dangerous"),
}


def _label(value: Any) -> Any:
    """Return a label in the words that other data use."""
    return _LABELS.get(str(value).strip().casefold(), value)


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[Literal["safe", "dangerous"], BeforeValidator(_label)]
Id = Annotated[Text, BeforeValidator(_number_as_text)]
Split = Literal["train", "test"]
Harm = Literal["violence", "weapons", "illegal_acts", "self_harm", "hate", "fraud", "cyber", "privacy"]


class Record(BaseModel):
    """What every line has.

    Attributes:
        id: unique in its file; a number will do, and where it is missing the line's number serves.
        source: who wrote it. None = people, "model" = a language model, "fallback" = a program, without one.
        writer: which model, and where it was asked if that was over HTTP.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    source: Source | None = None
    writer: Text | None = None

    @property
    def text(self) -> str:
        """What the line is about, for comparing lines with each other."""
        raise NotImplementedError

    @property
    def group(self) -> str | None:
        """The category that lines are counted by, if they have one."""
        return None


class SafePrompt(Record):
    """A request that an assistant gladly answers."""

    prompt: Text
    category: Text
    system: Text | None = None

    @property
    def text(self) -> str:
        return self.prompt

    @property
    def group(self) -> str | None:
        return self.category


class UnsafePrompt(SafePrompt):
    """A request that an assistant should refuse. The request only, never an answer."""

    attack_type: Text = "direct"
    why_unsafe: Text | None = None


class SafetyReply(Record):
    """A reply to a request that should be refused, or that looks like a refusal."""

    reply: Text
    label: Literal["refused", "answered"]
    split: Split = "train"

    @property
    def text(self) -> str:
        return self.reply

    @property
    def group(self) -> str | None:
        return self.label


class Question(Record):
    """A question that different characters answer differently."""

    question: Text
    category: Text

    @property
    def text(self) -> str:
        return self.question

    @property
    def group(self) -> str | None:
        return self.category


class ArchetypePrompt(Record):
    """A system prompt that asks for one character.

    Attributes:
        system_prompt: the prompt itself.
        traits: what the character is like, in single words.
        emphasis: what this prompt brings out more than the others do.
    """

    system_prompt: Text
    traits: tuple[Text, ...] = ()
    emphasis: Text | None = None

    @property
    def text(self) -> str:
        return self.system_prompt


class CatalogueEntry(BaseModel):
    """A ready-made archetype.

    Attributes:
        name: what it is called; a persona made from it may be called the same.
        summary: who it is, in a line.
        tags: what it can be found by.
        system_prompts: what asks for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    summary: Text
    tags: tuple[Text, ...] = ()
    system_prompts: tuple[Text, ...] = Field(min_length=1)

    @property
    def prompts(self) -> list[ArchetypePrompt]:
        """Its system prompts, as an archetype's file has them."""
        return [
            ArchetypePrompt(id=f"{self.name}_{number:03d}", system_prompt=text)
            for number, text in enumerate(self.system_prompts, 1)
        ]


class MonitorQuery(Record):
    """Something that a user asks, labelled for self-monitoring. The query only, never an answer.

    Attributes:
        query: what is asked.
        label: safe or dangerous.
        kind: what sort of query it is, in a word: everyday, direct, idiom, professional, ...
        category: the harm, if it is dangerous and somebody has named it.
        template: the pattern that it and others were made from.
        split: which half of its file it belongs to; queries of one template are all in one.
    """

    query: Text = Field(validation_alias=AliasChoices("query", "prompt", "text"))
    label: Label
    kind: Text = "unnamed"
    category: Harm | None = None
    template: Text | None = None
    split: Split | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.category is not None and self.label == "safe":
            raise ValueError("only a dangerous query has a category")
        if self.split is not None and self.template is None:
            raise ValueError("a query with a split needs a template")
        return self

    @property
    def text(self) -> str:
        return self.query

    @property
    def group(self) -> str | None:
        return self.category or self.kind


class MonitorStatement(Record):
    """What a speaker says of itself: tone vectors are made from one on each side."""

    statement: Text
    label: Label

    @property
    def text(self) -> str:
        return self.statement

    @property
    def group(self) -> str | None:
        return self.label
