"""One line of each kind of data set, typed.

Unknown keys are refused: a misspelt "sytem" would otherwise change an experiment without a word.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Source = Literal["model", "fallback"]

QUESTION_CATEGORIES = ("identity", "values", "style", "problem_solving")


class Record(BaseModel):
    """What every line has.

    Attributes:
        id: unique in its file.
        source: who wrote it. None = people, "model" = a language model, "fallback" = a program, without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    source: Source | None = None

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
