"""The app's strength sweeps: asked for by a command, run as a job, kept until the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from persona_tui.chat.voice import who
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, JobContext

if TYPE_CHECKING:
    from persona_tui.core.mix import Mix
    from persona_tui.model import Message, Sampling
    from persona_tui.pictures.sweep import SweepRow
    from persona_tui.project.project import Project
    from persona_tui.tui.screens.sweep import SweepScreen
    from persona_tui.tui.stage import AppStage


@dataclass
class Sweep:
    """One sweep, under way or done.

    Attributes:
        project: on whose model.
        prompt: what is answered.
        voice: who answers, in words.
        messages: the prompt with what stands before it.
        job: the work.
        rows: the replies, once they are there.
        error: why there are none, if it failed.
    """

    project: Project
    prompt: str
    voice: str
    messages: Sequence[Message]
    job: Job[list[SweepRow]] | None = None
    rows: Sequence[SweepRow] = field(default_factory=tuple)
    error: Exception | None = None


class Sweeps:
    """Begins sweeps, and knows the latest one."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self.latest: Sweep | None = None

    def open(self, prompt: str = "") -> None:
        """Sweep a prompt and show that; without one, show the latest sweep, or sweep the last message.

        Raises:
            PersonaTuiError: the model is loading, nobody speaks, or there is nothing to answer.
        """
        self._app.check_model()
        if prompt:
            self._begin(prompt, [{"role": "user", "content": prompt}])
        elif self.latest is None or self.latest.project is not self._app.project:
            self._last_message()
        self._show()

    def again(self) -> None:
        """Sweep the same prompt with the present voice.

        Raises:
            PersonaTuiError: nobody speaks, or one is under way.
        """
        if self.latest is not None:
            self._begin(self.latest.prompt, self.latest.messages)

    def _last_message(self) -> None:
        conversation = self._app.chat.conversation
        said = [node for node in conversation.path() if node.role == "user"]
        if not said:
            raise PersonaTuiError("there is no message to answer yet: /sweep PROMPT")
        before = conversation.messages(until=said[-1].id)
        self._begin(said[-1].text, [*before, {"role": "user", "content": said[-1].text}])

    def _begin(self, prompt: str, messages: Sequence[Message]) -> None:
        app, chat = self._app, self._app.chat
        if not chat.mix.label:
            raise PersonaTuiError(f"nobody speaks, so no strength matters: {app.way_to('personas')}")
        if self.latest is not None and self.latest.job is not None and not self.latest.job.ended:
            raise PersonaTuiError("a sweep is under way: del cancels it")
        asked = [message for message in messages if message["role"] != "system"]
        system = [{"role": "system", "content": chat.system}] if chat.system else []
        sweep = self.latest = Sweep(app.project, prompt, who(chat.mix), [*system, *asked])
        mix, sampling = chat.mix, chat.sampling
        sweep.job = app.jobs.submit(
            "sweep",
            lambda context: _work(sweep, mix, sampling, context),
            lambda job: self._ended(sweep, job),
            quiet=True,
            fleeting=True,
        )

    def _ended(self, sweep: Sweep, job: Job[list[SweepRow]]) -> None:
        sweep.rows, sweep.error = job.result or (), job.error
        if (screen := self._screen()) is not None:
            screen.refresh_sweep()
        elif job.state == "done":
            self._app.notify("The sweep is done: /sweep shows it.")
        elif job.error is not None:
            self._app.show_error(job.error)

    def _show(self) -> None:
        from persona_tui.tui.screens.sweep import SweepScreen

        if (screen := self._screen()) is not None:
            screen.refresh_sweep()
        else:
            self._app.push_screen(SweepScreen(self))

    def _screen(self) -> SweepScreen | None:
        from persona_tui.tui.screens.sweep import SweepScreen

        return next((each for each in self._app.screen_stack if isinstance(each, SweepScreen)), None)


def _work(sweep: Sweep, mix: Mix, sampling: Sampling, context: JobContext) -> list[SweepRow]:
    from persona_tui.pictures.sweep import sweep as answer

    return answer(sweep.project.engine, sweep.messages, mix, sampling=sampling, context=context)
