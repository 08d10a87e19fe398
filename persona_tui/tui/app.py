"""The full-screen app: owns all state, hands model work to one thread, and draws what comes back.

The first paint needs neither torch nor the model: those are loaded by the model's thread while the user may
already type. That thread never touches a widget; it posts the messages in `messages.py`, handled here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NoReturn

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from persona_tui.commands import is_command, message_of
from persona_tui.errors import PersonaTuiError, nearest
from persona_tui.jobs import ModelWorker
from persona_tui.runtime import Runtime
from persona_tui.tui import collector, terminal
from persona_tui.tui.help import help_text, key_of, welcome
from persona_tui.tui.job_board import JobBoard
from persona_tui.tui.keys import ACTIONS, key_name, known_ids
from persona_tui.tui.messages import JobChanged, LogLine, ModelFailed, ModelReady, TurnEnded
from persona_tui.tui.people import People
from persona_tui.tui.screens.chat import WIDE, ChatScreen, Panel
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.screens.palette import Palette
from persona_tui.tui.slash import Slash
from persona_tui.tui.speaking import Speaker
from persona_tui.tui.theme import choose_theme
from persona_tui.tui.voice import Faders, Voice
from persona_tui.tui.widgets.jobs_panel import JobList, JobsPanel
from persona_tui.tui.widgets.mixer import MixerPanel
from persona_tui.tui.widgets.personas import PersonaList
from persona_tui.tui.widgets.prompt import Prompt
from persona_tui.tui.widgets.status import Status

STRENGTH_STEP = 0.05
CLOSE_TIMEOUT = 0.2  # seconds that quitting waits for the model's thread


class PersonaApp(App[None]):
    """Chat with a model whose personas can be turned up and down while it speaks."""

    TITLE = "persona-tui"
    CSS_PATH = "styles/app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012  # as Textual declares it
    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in ACTIONS]

    def __init__(self, runtime: Runtime, faders: Faders) -> None:
        """
        Args:
            runtime: the workspace and its model, which need not be loaded.
            faders: who speaks at first, and how loud.

        Raises:
            ConfigError: the settings name a theme that does not exist.
        """
        super().__init__()
        self._first_theme = choose_theme(runtime.settings.interface.theme, self.available_themes, os.environ)
        self.runtime = runtime
        self.worker = ModelWorker()
        self.model_ready = False
        self._model_state = f"loading {runtime.settings.model.name} …"
        self._context_size: int | None = None
        self.voice = Voice(faders, self._faders_moved)
        self.speaker = Speaker(self)
        self.jobs = JobBoard(self)
        self.people = People(self)
        self.slash = Slash(self)
        self.main = ChatScreen(self.slash.complete)

    # --- starting and ending

    def get_default_screen(self) -> Screen[Any]:
        """Return the chat."""
        return self.main

    def on_mount(self) -> None:
        """Apply the settings before anything is painted."""
        interface = self.runtime.settings.interface
        self.theme = self._first_theme
        self.set_keymap({name: keys for name, keys in interface.keys.items() if name in known_ids()})

    def on_ready(self) -> None:
        """Fill the screen, and load the model once the first paint is out."""
        self.main.chat.note(welcome(self))
        for name in self._unknown_keys():
            self.main.chat.note(
                f"interface.keys: {name} is no action.{nearest(name, known_ids())}", error=True
            )
        self.people.refresh()
        self.show_status()
        self.call_after_refresh(self._load_model)

    def _unknown_keys(self) -> list[str]:
        """Return what `interface.keys` names that is no action."""
        return [name for name in self.runtime.settings.interface.keys if name not in known_ids()]

    def keys_of(self, action: str | None) -> str:
        """Return the keys that the user has given an action; "" where the default holds."""
        return self.runtime.settings.interface.keys.get(action or "", "")

    def key_label(self, action: str) -> str:
        """Return the key of an action as it is mapped now, for texts that name it."""
        return key_of(self, next(known.binding() for known in ACTIONS if known.id == action))

    def get_key_display(self, binding: Binding) -> str:
        """Return a key as people write it."""
        return binding.key_display or key_name(binding.key)

    def _load_model(self) -> None:
        runtime, post = self.runtime, self.post_message

        def work() -> None:
            try:
                engine = runtime.engine
                collector.freeze()
                post(ModelReady(engine.model.name, engine.model.context_length))
            except Exception as error:
                post(ModelFailed(error))

        self.worker.submit_turn(work)

    async def action_quit(self) -> None:
        """Leave at once: the model's thread is told to stop, not waited for."""
        self.speaker.stop()
        self.jobs.close()
        self.exit()

    # --- what the model's thread says

    @on(ModelReady)
    def _model_is_ready(self, message: ModelReady) -> None:
        self.model_ready = True
        self._model_state, self._context_size = message.name, message.context
        self.people.model_ready()
        self.jobs.offer_unfinished(self.people.made)
        self.show_status()

    @on(ModelFailed)
    def _model_failed(self, message: ModelFailed) -> None:
        self._model_state = "no model"
        self.show_error(message.error)
        self.main.chat.note("Choose another one: persona-tui --model NAME, or model.name in config.yaml.")
        self.show_status()

    @on(TurnEnded)
    def _turn_ended(self, message: TurnEnded) -> None:
        self.speaker.ended(message.turn, message.error)

    @on(JobChanged)
    def _job_changed(self, message: JobChanged) -> None:
        self.jobs.changed(message.job)

    @on(LogLine)
    def _log_line(self, message: LogLine) -> None:
        self.jobs.log(message.text)

    @on(JobsPanel.Printed)
    def _printed(self, message: JobsPanel.Printed) -> None:
        self.jobs.log(message.text)

    # --- what the user does

    @on(Prompt.Sent)
    def _sent(self, message: Prompt.Sent) -> None:
        if is_command(message.text):
            self.slash.run(message.text)
        elif self.speaker.busy:
            self.main.prompt.text = message.text
            self.notify("A reply is being written. Stop it with esc, or wait.")
        else:
            self.speaker.send(message_of(message.text))

    @on(MixerPanel.StrengthChosen)
    def _strength_chosen(self, message: MixerPanel.StrengthChosen) -> None:
        self.attempt(lambda: self.voice.set_strength(message.value))

    @on(MixerPanel.WeightChosen)
    def _weight_chosen(self, message: MixerPanel.WeightChosen) -> None:
        self.attempt(lambda: self.voice.set_weight(message.name, message.value))

    @on(MixerPanel.SoloChosen)
    def _solo_chosen(self, message: MixerPanel.SoloChosen) -> None:
        self.attempt(lambda: self.people.speak_as(message.name))

    @on(PersonaList.Asked)
    def _persona_asked(self, message: PersonaList.Asked) -> None:
        self.attempt(lambda: self.people.asked(message.what, message.name))

    @on(JobList.Asked)
    def _job_asked(self, message: JobList.Asked) -> None:
        self.attempt(lambda: self.jobs.asked(message.what, message.key))

    # --- actions

    def action_toggle_panel(self, panel: Panel) -> None:
        """Open a panel, go to it, or close it."""
        self.main.toggle_panel(panel)

    def action_leave(self) -> None:
        """Escape: close what is open, else stop the reply. Never quits."""
        if self.main.prompt.dismiss_completions() or self.main.leave_panels():
            return
        self.speaker.stop()

    def action_stop(self) -> None:
        """Stop the reply and keep what was said."""
        if not self.speaker.stop():
            self.notify("There is nothing to stop.")

    def action_regenerate(self) -> None:
        """Write the last reply anew."""
        self.speaker.regenerate()

    def action_new_chat(self) -> None:
        """Begin another conversation."""
        self.attempt(self.speaker.clear)
        if not self.speaker.conversation.messages:
            self.main.chat.note(welcome(self))

    def action_strength(self, amount: float) -> None:
        """Turn the master by an amount."""
        value = round((self.voice.faders.strength + amount) / STRENGTH_STEP) * STRENGTH_STEP
        self.attempt(lambda: self.voice.set_strength(round(max(-1.0, min(1.0, value)), 4) + 0.0))

    def action_toggle_capping(self) -> None:
        """Switch the floor on or off."""
        self.attempt(lambda: self.voice.set_capping(not self.voice.faders.capping))

    def action_nobody(self) -> None:
        """Let the model speak as itself."""
        self.attempt(lambda: self.voice.solo({}))

    def action_create_persona(self) -> None:
        """Ask for a new persona and make it."""
        self.people.create()

    def action_prepare(self) -> None:
        """Extract what this model's workspace lacks: axes and the archetypes' personas."""
        self.people.prepare()

    def action_cancel_job(self) -> None:
        """Cancel the job under way."""
        if not self.jobs.cancel():
            self.notify("No job is running.")

    def action_resume_job(self) -> None:
        """Go on with what an earlier run did not finish."""
        self.attempt(self.jobs.resume_first)

    def action_scroll_chat(self, pages: int) -> None:
        """Move the chat by pages."""
        if pages < 0:
            self.main.chat.scroll_page_up(animate=False)
        else:
            self.main.chat.scroll_page_down(animate=False)

    def action_toggle_theme(self) -> None:
        """Change between dark and light."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_show_help(self) -> None:
        """Show all keys."""
        self.push_screen(PageScreen("help", help_text(self)))

    def action_command_palette(self) -> None:
        """Open the command palette."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer every action in the command palette, with Textual's own."""
        for action in ACTIONS:
            if action.palette:
                yield SystemCommand(action.title, action.help, self._runner(action.action))
        yield SystemCommand("Change theme", "Choose among all colour themes", self.action_change_theme)
        yield SystemCommand(
            "Save a screenshot", "As an SVG file", lambda: self.set_timer(0.1, self.deliver_screenshot)
        )

    def _runner(self, action: str) -> Any:
        return lambda: self.call_later(self.run_action, action)

    def attempt(self, act: Callable[[], None]) -> None:
        """Do something; an error that a user can cause is shown for a moment, and nothing else happens."""
        try:
            act()
        except PersonaTuiError as error:
            self.notify(str(error), severity="error")

    # --- showing

    def _faders_moved(self, faders: Faders) -> None:
        engine = self.runtime.loaded_engine if self.model_ready else None
        if engine is not None:
            engine.set_mix(faders.mix())
        self.people.show()
        self.show_status()

    def show_status(self) -> None:
        """Draw the status line."""
        faders, turn = self.voice.faders, self.speaker.last
        self.main.status.status = Status(
            model=self._model_state,
            voice=faders.label(),
            capping=faders.capping,
            speed=turn.speed if turn else None,
            used=turn.prompt_tokens + turn.count if turn else None,
            context=self._context_size,
            job=self.jobs.summary(),
        )

    def show_error(self, error: Exception) -> None:
        """Say in the chat what went wrong, in one line."""
        known = isinstance(error, PersonaTuiError)
        self.main.chat.note(
            f"Error: {error}" if known else f"Error: {type(error).__name__}: {error}", error=True
        )
        self.jobs.log(f"error: {error}")


def run_app(
    runtime: Runtime,
    persona: str | None = None,
    strength: float | None = None,
    blend: Mapping[str, float] | None = None,
    capping: bool | None = None,
) -> NoReturn:
    """Run the app until the user quits, and end the process: status 0, or 1 after a mistake of ours.

    Args:
        runtime: the workspace and its model; cheap to open, the app loads the model itself.
        persona: who speaks at first.
        strength: how loud; by default as the settings say.
        blend: who speaks at first, with weights, instead of one persona.
        capping: whether the floor is enforced; by default as the settings say.

    Raises:
        ConfigError: the settings name a theme that does not exist.
    """
    terminal.quiet_libraries()
    steering = runtime.settings.steering
    weights = dict(blend) if blend else {persona: 1.0} if persona else {}
    app = PersonaApp(
        runtime,
        Faders(
            weights,
            steering.default_strength if strength is None else strength,
            steering.capping if capping is None else capping,
        ),
    )
    with terminal.stderr_lines(lambda line: app.is_running and app.post_message(LogLine(line))):
        app.run()
    _leave(app)


def _leave(app: PersonaApp) -> NoReturn:
    """End the process: tidying up after torch takes longer than leaving may."""
    app.worker.close(CLOSE_TIMEOUT)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(app.return_code or 0)
