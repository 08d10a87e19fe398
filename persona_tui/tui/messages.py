"""What the model's thread tells the app. It never touches a widget; handlers on the app own all state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from persona_tui.chat.replies import ChatReply
from persona_tui.core.jobs import Job
from persona_tui.tui.estimate import Pace

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.chat import Conversation
    from persona_tui.chat.reread import Reread
    from persona_tui.pictures.choices import TokenChoice
    from persona_tui.pictures.heat import HeatMap
    from persona_tui.project.project import Project
    from persona_tui.steering import SteeringEngine


@dataclass
class ModelReady(Message):
    """The model is loaded."""

    name: str
    context: int | None  # tokens that fit; None = not known


@dataclass
class ModelFailed(Message):
    """The model could not be loaded."""

    error: Exception


@dataclass
class ReplyEnded(Message):
    """A reply, or answers side by side, is finished, was stopped, or failed."""

    reply: ChatReply
    error: Exception | None = None


@dataclass
class MessageReread(Message):
    """A message was read again for its projections, or could not be."""

    conversation: Conversation
    node: int
    result: Reread | None
    error: Exception | None = None


@dataclass
class ChoicesRead(Message):
    """It is known how probable a reply's tokens were, or why that cannot be said."""

    conversation: Conversation
    node: int
    choices: list[TokenChoice]
    error: Exception | None = None


@dataclass
class HeatRead(Message):
    """It is known how strong a direction is in a reply, layer by layer; None = that cannot be said."""

    conversation: Conversation
    key: tuple[int, str]  # the reply and the direction
    found: HeatMap | None
    error: Exception | None = None


@dataclass
class JobChanged(Message):
    """A job's state or progress changed; the job itself says how."""

    job: Job[Any]

    def can_replace(self, message: Message) -> bool:
        """Reports about one job that wait in the queue count as one."""
        return isinstance(message, JobChanged) and message.job is self.job


@dataclass
class PaceMeasured(Message):
    """It is known how fast personas can be made here."""

    pace: Pace


@dataclass
class PreparationPriced(Message):
    """It is known how long preparing a model takes."""

    project: Project
    seconds: float | None  # None = that could not be found out


@dataclass
class OrdinaryMeasured(Message):
    """It is known how certain a model ordinarily is."""

    engine: SteeringEngine
    entropy: float  # nats a token


@dataclass
class ModelNote(Message):
    """Something that is worth knowing about the vectors in use."""

    text: str


@dataclass
class LogLine(Message):
    """Something for the job log."""

    text: str
