"""The app as a front end of a chat: replies and jobs run on the model's thread, and are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from persona_tui.chat.front import Front, Work
from persona_tui.chat.replies import ChatReply
from persona_tui.core.jobs import Job
from persona_tui.core.mix import Mix

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat
    from persona_tui.project.models import ModelChoice
    from persona_tui.project.project import Project
    from persona_tui.tui.model_switch import ModelSwitch
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.side_by_side import SideBySide
    from persona_tui.tui.stage import AppStage


class ScreenFront(Front):
    """Hands work on, and has what changes drawn."""

    def __init__(
        self,
        app: AppStage,
        replies: ReplyView,
        beside: SideBySide,
        switch: ModelSwitch,
        on_mix: Callable[[Mix], None],
        on_opened: Callable[[], None],
    ) -> None:
        self._app, self._replies, self._beside, self._switch = app, replies, beside, switch
        self._on_mix, self._on_opened = on_mix, on_opened

    def write(self, chat: Chat, reply: ChatReply) -> str:
        """Have a reply written beside everything else."""
        (self._beside.begin if reply.node is None else self._replies.begin)(reply)
        return ""

    def run(self, name: str, work: Work) -> str:
        """Do long work as a job."""
        self._app.jobs.submit(name, work, self._ended)
        return f"{name}: started; you can keep chatting. Progress: {self._app.key_label('jobs')}."

    def _ended(self, job: Job[str]) -> None:
        if job.state == "done" and job.result:
            self._app.say(job.result)
        self._app.job_ended(job)

    def load(self, chat: Chat, other: Project, choice: ModelChoice) -> str:
        """Load another model as a job, and talk to that."""
        return self._switch.load(other, choice)

    def mixed(self, mix: Mix) -> None:
        """Draw another mix."""
        self._on_mix(mix)

    def kept(self, reply: ChatReply) -> None:
        """Draw the conversation with the answer that was kept."""
        self._beside.kept(reply)

    def opened(self) -> None:
        """Draw another conversation."""
        self._on_opened()
