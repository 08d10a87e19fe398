"""The full-screen app: owns all state, hands model work to one thread, and draws what comes back.

The first paint needs neither torch nor the model: those are loaded by the model's thread while the user may
already type. That thread never touches a widget; it posts the messages in `messages.py`, handled here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

from rich.console import RenderableType
from textual import on
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme

from persona_tui.chat import SessionStore
from persona_tui.chat.chat import Chat
from persona_tui.chat.command import is_command, message_of
from persona_tui.chat.voice import label
from persona_tui.core.config import set_value
from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.core.jobs import Job, ModelWorker
from persona_tui.core.log_file import quiet_libraries
from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.tui import collector, terminal
from persona_tui.tui.actions import Actions
from persona_tui.tui.bindings import known_ids
from persona_tui.tui.blocks import Note
from persona_tui.tui.empty import examples, welcome
from persona_tui.tui.front import ScreenFront
from persona_tui.tui.inspection import Inspection
from persona_tui.tui.job_board import JobBoard
from persona_tui.tui.keys import ACTIONS, key_name, key_of
from persona_tui.tui.message_menu import MessageMenu
from persona_tui.tui.messages import (
    JobChanged,
    LogLine,
    MessageReread,
    ModelFailed,
    ModelNote,
    ModelReady,
    OrdinaryMeasured,
    PaceMeasured,
    PreparationPriced,
    ReplyEnded,
)
from persona_tui.tui.mixer import Mixer
from persona_tui.tui.model_switch import ModelSwitch, short
from persona_tui.tui.people import People
from persona_tui.tui.replies import ReplyView
from persona_tui.tui.screens.chat import WIDE, ChatScreen
from persona_tui.tui.side_by_side import SideBySide
from persona_tui.tui.slash import Slash
from persona_tui.tui.theme import choose_theme
from persona_tui.tui.widgets.chat_log import ChatLog
from persona_tui.tui.widgets.inspector import Inspector
from persona_tui.tui.widgets.jobs_panel import JobList, JobsPanel
from persona_tui.tui.widgets.mixer import MixerPanel
from persona_tui.tui.widgets.personas import PersonaList
from persona_tui.tui.widgets.prompt import Prompt, PromptHistory
from persona_tui.tui.widgets.status import Status
from persona_tui.tui.widgets.too_small import SHORT, cover_screens

HISTORY_FILE = ".prompt-history"  # beside the sessions
CLOSE_TIMEOUT = 0.2  # seconds that quitting waits for the model's thread


class PersonaApp(Actions):
    """Chat with a model whose personas can be turned up and down while it speaks."""

    TITLE = "persona-tui"
    CSS_PATH = "styles/app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012  # as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (SHORT, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in ACTIONS]

    def __init__(
        self, project: Project, mix: Mix | None = None, resume: str | None = None, saves: bool = True
    ) -> None:
        """
        Args:
            project: the workspace and its model, which need not be loaded.
            mix: what is spoken with at first; by default as the settings say.
            resume: a session to go on with, instead.
            saves: whether conversations are saved.

        Raises:
            ConfigError: the settings name a theme that does not exist.
        """
        super().__init__()
        self._first_theme = choose_theme(
            project.settings.interface.theme, self.available_themes, os.environ, self.console.color_system
        )
        self._kept_theme = self._first_theme
        project.on_note = self._tell_note
        project.opens_without = True  # another model can be chosen here
        self.chat = Chat(project, mix, saves=saves)
        self.worker = ModelWorker()
        self.model_ready = self.model_missing = False
        self._model_state = f"loading {short(project.settings.model.name)} …"
        self._resume = resume
        self.jobs = JobBoard(self)
        self.mixer = Mixer(self)
        self.inspection = Inspection(self)
        self.replies = ReplyView(self, self.mixer, self.inspection)
        self.beside = SideBySide(self, self.replies)
        self.inspection.row_of = self.replies.row_of
        self.menu = MessageMenu(self, self.replies)
        self.people = People(self, self.mixer)
        self.models = ModelSwitch(self, self._model_changed)
        self.slash = Slash(self, self.replies, self.mixer, self.people, self.inspection, self.menu)
        self.chat.front = ScreenFront(
            self, self.replies, self.beside, self.models, self._mixed, self._chat_opened
        )
        self.crashed = False
        self._welcome: Note | None = None
        self.main = ChatScreen(self.slash.complete)

    def _tell_note(self, note: str) -> None:
        """Show a note from whichever thread reads the vectors."""
        self.post_message(ModelNote(note))

    @property
    def busy(self) -> bool:
        """Whether a reply is being written, or waits for the model."""
        return self.replies.busy

    def command(self, line: str) -> None:
        """Do what a slash command asks for, and show the answer in the chat."""
        self.slash.run(line)

    def show_personas(self) -> None:
        """Look at the disk, and draw who is there."""
        self.people.refresh()

    def job_ended(self, job: Job[Any]) -> None:
        """Show what a job has changed, or why it failed."""
        self.people.job_ended(job)

    # --- starting and ending

    def get_default_screen(self) -> Screen[Any]:
        """Return the chat."""
        return self.main

    def on_mount(self) -> None:
        """Apply the settings before anything is painted."""
        interface = self.project.settings.interface
        self.theme = self._first_theme
        self.theme_changed_signal.subscribe(self, self._theme_chosen)
        self.screen_change_signal.subscribe(self, lambda _: cover_screens(self))
        self.set_keymap({name: keys for name, keys in interface.keys.items() if name in known_ids()})

    def welcome(self) -> None:
        """Say in an empty chat which model this is, and what to do; or again, now that more is known."""
        content, asked = welcome(self, self.people.next_step()), len(self.chat.conversation) > 0
        if self._welcome is not None and self._welcome in self.main.chat.blocks:
            self._welcome.say(content)
            self.main.chat.rearrange()
        elif not asked:
            self._welcome = self.main.chat.note(content)
        self.main.prompt.examples = () if asked else examples(self.project.settings.model.name)

    async def on_ready(self) -> None:
        """Fill the screen, load the model once the first paint is out, and take what was typed before."""
        try:
            self._fill()
        finally:
            await self.take_early_keys()

    def _fill(self) -> None:
        self.main.prompt.sent = PromptHistory(SessionStore(self.project.workspace).folder / HISTORY_FILE)
        self.welcome()
        for name in self._unknown_keys():
            self.main.chat.note(
                f"interface.keys: {name} is not an action.{nearest(name, known_ids())}", error=True
            )
        self.people.refresh()
        self.show_status()
        self.call_after_refresh(self.models.begin)
        if not self.is_headless:
            terminal.on_ending(self._told_to_end)

    def _theme_chosen(self, theme: Theme) -> None:
        """Keep a theme that was chosen, for the next runs."""
        if theme.name == self._kept_theme:
            return
        self._kept_theme = theme.name
        self.attempt(lambda: set_value(self.project.workspace.config_path, "interface.theme", theme.name))

    def _told_to_end(self, status: int) -> None:
        """Leave as `action_quit` does, with the exit status of a signal."""
        self.chat.stop()
        self.jobs.close()
        self.exit(return_code=status)

    def panic(self, *renderables: RenderableType) -> None:
        """Note that the app ends by a mistake: its exit status must not be 0."""
        self.crashed = True
        super().panic(*renderables)

    def _unknown_keys(self) -> list[str]:
        """Return what `interface.keys` names that is not an action."""
        return [name for name in self.project.settings.interface.keys if name not in known_ids()]

    def get_key_display(self, binding: Binding) -> str:
        """Return a key as people write it."""
        return binding.key_display or key_name(binding.key)

    async def action_quit(self) -> None:
        """Leave at once: the model's thread is told to stop, not waited for."""
        self.replies.stop()
        self.jobs.close()
        self.exit()

    # --- what the model's thread says

    @on(ModelReady)
    def _model_is_ready(self, message: ModelReady) -> None:
        self.model_ready = True
        self._model_state = short(message.name)
        self._collect_again()
        self.replies.context.size = message.context
        self.people.model_ready()
        self.welcome()
        self.jobs.offer_unfinished(self.people.made)
        self._resume_waiting()
        self.slash.model_ready()
        self.show_status()

    def resume(self, id: str) -> None:
        """Go on with a saved conversation; while the model is loading, as soon as that is done.

        Raises:
            PersonaTuiError: it cannot be used; the one that is open goes on.
        """
        self.replies.check_idle()
        if self.model_ready or self.model_missing:
            self.say(self.chat.resume(id))
        else:
            self._resume = id
            self.say("The session is resumed as soon as the model is loaded: its persona is the model's.")

    def _resume_waiting(self) -> None:
        """Go on with the session that was asked for while the model was loading."""
        if self._resume is not None:
            session, self._resume = self._resume, None
            self.attempt(lambda: self.resume(session))

    def _collect_again(self) -> None:
        """Turn on the garbage collector, which was off while the app was starting."""
        if not self.busy:
            collector.resume()

    @on(ModelFailed)
    def _model_failed(self, message: ModelFailed) -> None:
        self._model_state = "no model"
        self._collect_again()
        self.show_error(message.error)
        self.main.chat.note(f"Choose another one: {self.key_label('model')}, or model.name in config.yaml.")
        self._resume_waiting()
        self.show_status()

    @on(ReplyEnded)
    def _reply_ended(self, message: ReplyEnded) -> None:
        self.replies.ended(message.reply, message.error)
        self.models.settle()

    @on(MessageReread)
    def _message_reread(self, message: MessageReread) -> None:
        self.inspection.reread(message)

    @on(JobChanged)
    def _job_changed(self, message: JobChanged) -> None:
        self.jobs.changed(message.job)

    @on(PaceMeasured)
    def _pace_measured(self, message: PaceMeasured) -> None:
        self.people.pace_measured(message.pace)

    @on(OrdinaryMeasured)
    def _ordinary_measured(self, message: OrdinaryMeasured) -> None:
        self.mixer.ordinary_measured(message)

    @on(PreparationPriced)
    def _preparation_priced(self, message: PreparationPriced) -> None:
        self.people.preparation_priced(message)

    @on(ModelNote)
    def _model_note(self, message: ModelNote) -> None:
        self.say(message.text)

    @on(LogLine)
    def _log_line(self, message: LogLine) -> None:
        self.jobs.log(message.text)

    @on(JobsPanel.Printed)
    def _printed(self, message: JobsPanel.Printed) -> None:
        self.jobs.log(message.text)

    # --- what the user does

    @on(Prompt.Sent)
    def _sent(self, message: Prompt.Sent) -> None:
        if message.editing is None and is_command(message.text):
            self.slash.run(message.text)
        elif not self.attempt(lambda: self._say(message.text, message.editing)):
            self.main.prompt.take_back(message)

    def _say(self, text: str, editing: int | None) -> None:
        self.replies.check_idle()
        if self._resume is not None:
            raise PersonaTuiError("a session is being resumed: send this when the model is loaded")
        if editing is not None:
            self.menu.edited(editing, text)
        else:
            self.main.prompt.examples = ()
            (self.beside.send if self.beside.active else self.replies.send)(message_of(text))

    @on(Prompt.EditingChanged)
    def _editing_changed(self, message: Prompt.EditingChanged) -> None:
        self.main.show_editing(message.editing is not None)

    @on(ChatLog.Asked)
    def _message_asked(self, message: ChatLog.Asked) -> None:
        self.attempt(lambda: self.menu.asked(message.what, message.block))

    @on(ChatLog.Marked)
    def _message_marked(self, message: ChatLog.Marked) -> None:
        self.inspection.marked(message.block)

    @on(Inspector.Turned)
    def _inspector_turned(self, message: Inspector.Turned) -> None:
        self.attempt(lambda: self.inspection.turned(message.what, message.step))

    @on(ChatLog.LeftBelow)
    def _chat_left(self, _: ChatLog.LeftBelow) -> None:
        self.main.set_focus(self.main.prompt)

    @on(MixerPanel.Chosen)
    def _fader_chosen(self, message: MixerPanel.Chosen) -> None:
        self.attempt(lambda: self.chat.change_mix(**{message.what: message.value}))

    @on(MixerPanel.LayersAsked)
    def _layers_asked(self, _: MixerPanel.LayersAsked) -> None:
        self.action_layers()

    @on(MixerPanel.WeightChosen)
    def _weight_chosen(self, message: MixerPanel.WeightChosen) -> None:
        weights = {**self.chat.mix.weights, message.name: message.value}
        self.attempt(lambda: self.chat.change_mix(weights=weights))

    @on(MixerPanel.SoloChosen)
    def _solo_chosen(self, message: MixerPanel.SoloChosen) -> None:
        self.attempt(lambda: self.people.speak_as(message.name))

    @on(PersonaList.Asked)
    def _persona_asked(self, message: PersonaList.Asked) -> None:
        self.attempt(lambda: self.people.asked(message.what, message.name))
        if message.what == "speak":
            self.main.go_to_prompt()

    @on(JobList.Asked)
    def _job_asked(self, message: JobList.Asked) -> None:
        self.attempt(lambda: self.jobs.asked(message.what, message.key))

    def on_resize(self) -> None:
        """What is traced, and whether anything can be shown, depends on how much room there is."""
        self.call_after_refresh(cover_screens, self)
        self.call_after_refresh(self.mixer.show_traces)
        self.call_after_refresh(self.inspection.fit)

    # --- the palette

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer every action in the command palette, with Textual's own."""
        for action in ACTIONS:
            if action.palette:
                key = key_of(self, action.binding())
                help = f"{key} · {action.help}" if key else action.help
                yield SystemCommand(action.title, help, self._runner(action.action))
        yield from self.people.palette()
        yield SystemCommand("Change theme", "Choose from all colour themes", self.action_change_theme)
        yield SystemCommand(
            "Save a screenshot", "As an SVG file", lambda: self.set_timer(0.1, self.deliver_screenshot)
        )

    def _runner(self, action: str) -> Any:
        return lambda: self.call_later(self.run_action, action)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy by way of the terminal, and to the system's clipboard where there is a program for that."""
        super().copy_to_clipboard(text)
        self.menu.to_system(text)

    # --- showing

    def _mixed(self, mix: Mix) -> None:
        self.mixer.moved(mix)
        if self.is_running:
            self._show_mix()

    def _show_mix(self) -> None:
        if not self.busy:
            self.replies.show()
        self.people.show()
        self.beside.show()
        self.mixer.show_fluency()
        self.show_status()

    def _chat_opened(self) -> None:
        self.mixer.opened()
        self.replies.opened()
        self.people.refresh()
        self.welcome()
        self._show_mix()

    def _model_changed(self) -> None:
        self.mixer.forget()
        self.inspection.forget()

    def show_status(self) -> None:
        """Draw the status line."""
        mix, context = self.chat.mix, self.replies.context
        fluency = self.mixer.fluency()
        self.main.status.status = Status(
            model=self._model_state,
            voice=label(mix),
            capping=mix.capping,
            capped=self.mixer.capped if self.model_ready else None,
            system=" ".join((self.chat.system or "").split()),
            speed=self.replies.speed,
            used=context.used,
            context=context.size,
            nearly_full=context.nearly_full,
            job=self.jobs.summary(),
            broken=fluency.reason if fluency.broken and self.busy else "",
            watched=self._watched(),
        )

    def _watched(self) -> str:
        """Say what judges what is said: a guard, a policy."""
        mode = self.chat.guard.mode if self.model_ready else "off"
        parts = [f"guard {mode}" if mode != "off" else "", "policy" if self.chat.policy is not None else ""]
        return " · ".join(part for part in parts if part)


def run_app(
    project: Project,
    strength: float | None = None,
    blend: Mapping[str, float] | None = None,
    resume: str | None = None,
    saves: bool = True,
) -> NoReturn:
    """Run the app until the user quits, and end the process: status 0, or 1 after a mistake of ours.

    Args:
        project: the workspace and its model; cheap to open, the app loads the model itself.
        strength: how loud; by default as the settings say.
        blend: who speaks at first, with weights.
        resume: the id of a session to go on with.
        saves: whether conversations are saved.

    Raises:
        ConfigError: the settings name a theme that does not exist.
    """
    quiet_libraries()
    terminal.forgive_input()
    terminal.clean_output()
    mix = project.default_mix()
    mix = replace(
        mix,
        weights=dict(blend or {}),
        strength=mix.strength if strength is None else strength,
    )
    app = PersonaApp(project, mix, resume, saves)
    with terminal.written_lines(lambda line: app.is_running and app.post_message(LogLine(line))):
        app.run()
    _leave(app)


def _leave(app: PersonaApp) -> NoReturn:
    """End the process: tidying up after torch takes longer than leaving may."""
    app.worker.close(CLOSE_TIMEOUT)
    with contextlib.suppress(PersonaTuiError):  # a full disk: there is nobody left to tell
        app.chat.close()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(app.return_code or int(app.crashed))
