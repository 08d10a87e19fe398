"""What keys and the command palette do: the app's actions. The parts that do the work are elsewhere.

Dialogs are imported when they open: the first paint does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.app import App

from persona_tui.core.errors import PersonaTuiError
from persona_tui.monitors.guard import GUARD_MODES
from persona_tui.project.models import ModelChoice, RecentModels
from persona_tui.tui.editing import edit_in_own_editor
from persona_tui.tui.help import help_text, key_of, welcome
from persona_tui.tui.keys import ACTIONS
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.page import PageScreen, page_width
from persona_tui.tui.screens.palette import Palette
from persona_tui.tui.theme import other_theme

if TYPE_CHECKING:
    from persona_tui.core.jobs import ModelWorker
    from persona_tui.project.project import Project
    from persona_tui.tui.comparing import Comparing
    from persona_tui.tui.inspecting import Inspecting
    from persona_tui.tui.job_board import JobBoard
    from persona_tui.tui.marked import Marked
    from persona_tui.tui.mixing import Mixing
    from persona_tui.tui.people import People
    from persona_tui.tui.saving import Saving
    from persona_tui.tui.screens.chat import ChatScreen, Panel
    from persona_tui.tui.slash import Slash
    from persona_tui.tui.speaking import Speaker
    from persona_tui.tui.switching import Switching
    from persona_tui.tui.voice import Voice

STRENGTH_STEP = 0.05
_ON_THE_MAIN_SCREEN = ("mark", "toggle_panel")


class Actions(App[None]):
    """The actions. `PersonaApp` has the parts that they are done with."""

    project: Project
    worker: ModelWorker
    voice: Voice
    speaker: Speaker
    comparing: Comparing
    inspecting: Inspecting
    saving: Saving
    switching: Switching
    marked: Marked
    mixing: Mixing
    jobs: JobBoard
    people: People
    slash: Slash
    main: ChatScreen
    model_ready: bool

    def attempt(self, act: Callable[[], object]) -> None:
        """Do something; an error that a user can cause is shown for a moment, and nothing else happens."""
        try:
            act()
        except PersonaTuiError as error:
            text = str(error)
            self.notify(text[:1].upper() + text[1:], severity="error", markup=False)

    # --- keys

    def keys_of(self, action: str | None) -> str:
        """Return the keys that the user has given an action; "" where the default holds."""
        return self.project.settings.interface.keys.get(action or "", "")

    def key_label(self, action: str) -> str:
        """Return the key of an action as it is mapped now, for texts that name it."""
        return key_of(self, next(known.binding() for known in ACTIONS if known.id == action))

    # --- the screen

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the chat's messages and panels alone while a dialog lies over them."""
        if action in _ON_THE_MAIN_SCREEN and self.screen is not self.main:
            return False
        return super().check_action(action, parameters)

    def action_toggle_panel(self, panel: Panel) -> None:
        """Open a panel, go to it, or close it."""
        self.main.toggle_panel(panel)

    def action_leave(self) -> None:
        """Escape: close what is open, else leave what is being edited, else stop the reply. Never quits."""
        prompt = self.main.prompt
        if prompt.dismiss_completions() or self.main.leave_panels() or prompt.end_editing():
            return
        if not self.speaker.stop():
            self.comparing.leave()

    def action_scroll_chat(self, pages: int) -> None:
        """Move the chat by pages."""
        if pages < 0:
            self.main.chat.scroll_page_up(animate=False)
        else:
            self.main.chat.scroll_page_down(animate=False)

    def action_toggle_theme(self) -> None:
        """Change between dark and light."""
        self.theme = other_theme(self.theme, self.current_theme.dark)

    def action_show_help(self) -> None:
        """Show all keys, those of what has the focus first."""
        if not isinstance(self.screen, PageScreen):
            self.push_screen(PageScreen("help", help_text(self, page_width(self.size.width))))

    def action_command_palette(self) -> None:
        """Open the command palette."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    def action_help_quit(self) -> None:
        """Say how to leave: ctrl+c copies."""
        self.notify("ctrl+c copies what is marked; ctrl+q leaves.")

    # --- the conversation

    def action_stop(self) -> None:
        """Stop the reply and keep what was said."""
        if not self.speaker.stop():
            self.notify("There is nothing to stop.")

    def action_regenerate(self) -> None:
        """Write the last reply anew; the old one is kept as another version."""
        self.attempt(self.comparing.again if self.comparing.active else self.speaker.regenerate)

    def action_continue(self) -> None:
        """Go on with the last reply."""
        self.attempt(self.speaker.go_on)

    def action_compare(self) -> None:
        """Split the chat: the next message is answered with two settings. Once more: choose the second."""
        self.attempt(self.comparing.toggle)

    def action_keep(self, row: int) -> None:
        """Keep one of two answers; the other one stays beside it."""
        self.attempt(lambda: self.notify(self.comparing.keep(row)))

    def action_inspector(self) -> None:
        """Show the marked message, or the last reply, token by token; once more closes that."""
        self.attempt(self.inspecting.toggle)

    def action_new_chat(self) -> None:
        """Begin another conversation; the old one stays among the sessions."""
        self.attempt(self.saving.new)
        if not self.speaker.conversation.path():
            self.main.chat.note(welcome(self))

    def action_sessions(self) -> None:
        """Show the saved conversations."""
        self.saving.show()

    def action_mark(self, step: int) -> None:
        """Go to the messages, and mark one."""
        chat = self.main.chat
        if chat.has_focus:
            chat.action_mark(step)
        elif chat.messages and step < 0:
            self.main.set_focus(chat)
        else:
            self.notify("There are no messages yet." if not chat.messages else "alt+↑ goes to the messages.")

    def action_copy_reply(self, code: bool = False) -> None:
        """Copy the last reply, or its last code block."""
        self.attempt(lambda: self.marked.copy_last(code))

    def action_editor(self) -> None:
        """Go on writing in the user's own editor."""
        from persona_tui.tui.screens.write import WriteScreen

        screen = self.screen
        target = screen if isinstance(screen, WriteScreen) else self.main.prompt
        self.attempt(lambda: target.replace_text(edit_in_own_editor(self, target.text)))

    def action_model(self) -> None:
        """Choose another model."""
        from persona_tui.tui.screens.model import ModelScreen

        def answered(choice: ModelChoice | None) -> None:
            if choice is not None:
                self.attempt(lambda: self.main.chat.note(self.switching.use(choice)))

        recent = RecentModels(self.project.workspace).list()
        present = ModelChoice.of(self.project.settings)
        self.push_screen(ModelScreen(present, recent, self.model_ready), answered)

    def action_system(self) -> None:
        """Write the system prompt."""
        from persona_tui.tui.screens.write import WriteScreen

        def answered(text: str | None) -> None:
            if text is not None and text != (conversation.system or ""):
                self.attempt(lambda: conversation.set_system(text or None))
                self.main.chat.note(f"System prompt: {text}" if text else "No system prompt.")

        conversation = self.speaker.conversation
        explanation = "The model reads it before the conversation. It holds from the next reply on."
        self.push_screen(
            WriteScreen("system prompt", explanation, conversation.system or "", clear="No system prompt"),
            answered,
        )

    def action_sampling(self) -> None:
        """Choose temperature, top-p, the longest reply and the seed."""
        from persona_tui.tui.screens.sampling import SamplingScreen, summary

        def answered(changes: dict[str, object] | None) -> None:
            if changes is not None:
                self.speaker.sampling = changes
                self.main.chat.note(f"Sampling: {summary(self.project.settings.generation, changes)}.")

        self.push_screen(SamplingScreen(self.project.settings, self.speaker.sampling), answered)

    # --- the labs, which import torch: not before the first paint

    def action_monitors(self) -> None:
        """Show the monitors of this model."""
        self.attempt(self._show_monitors)

    def _show_monitors(self) -> None:
        self._check_model()
        from persona_tui.tui.screens.monitors import MonitorsScreen

        if not isinstance(self.screen, MonitorsScreen):
            self.push_screen(MonitorsScreen())

    def action_traits(self) -> None:
        """Show the traits of this model, and what this conversation scores."""
        self.attempt(self._show_traits)

    def _show_traits(self) -> None:
        self._check_model()
        from persona_tui.tui.screens.traits_lab import TraitsScreen

        if not isinstance(self.screen, TraitsScreen):
            self.push_screen(TraitsScreen())

    def _check_model(self) -> None:
        if not self.model_ready:
            raise PersonaTuiError("the model is still loading")

    # --- the voice

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

    def action_layers(self) -> None:
        """Choose where personas are added."""
        self.attempt(self.mixing.ask_layers)

    def action_traces(self) -> None:
        """Choose what is traced."""
        from persona_tui.tui.screens.traces import TracesScreen

        def answered(names: list[str] | None) -> None:
            if names is not None:
                self.mixing.trace(names)

        self.attempt(lambda: self.push_screen(TracesScreen(*self.mixing.traceable()), answered))

    def action_guard(self) -> None:
        """Guard in the next of its modes: off, warn, refuse, off."""
        mode = self.project.guard.mode
        self.slash.run(f"/guard {GUARD_MODES[(GUARD_MODES.index(mode) + 1) % len(GUARD_MODES)]}")

    def action_policy(self) -> None:
        """Ask for a policy's file, or rules."""

        def answered(text: str | None) -> None:
            if text:
                self.slash.run(f"/policy {text}")

        question = (
            "What may replies score? A policy's file or name, rules such as harmful_validation>0.5, or off."
        )
        self.push_screen(AskScreen("policy", question, "", example="supportive"), answered)

    # --- personas and jobs

    def action_create_persona(self) -> None:
        """Ask for a new persona and make it."""
        self.attempt(self.people.create)

    def action_prepare(self) -> None:
        """Extract what this model's workspace lacks: axes and the archetypes' personas."""
        self.people.prepare()

    def action_dataset(self) -> None:
        """Ask which prompts the model should write."""

        def answered(text: str | None) -> None:
            if text:
                self.slash.run(f"/dataset {text}")

        question = (
            "What should the model write? safe, unsafe or questions and how many, or archetype NAME "
            "DESCRIPTION. It is added to the workspace's file."
        )
        self.push_screen(AskScreen("data set", question, "", example="questions 20"), answered)

    def action_cancel_job(self) -> None:
        """Cancel the job under way."""
        if not self.jobs.cancel():
            self.notify("No job is running.")

    def action_resume_job(self) -> None:
        """Go on with what an earlier run did not finish."""
        self.attempt(self.jobs.resume_first)
