"""What keys and the command palette do: the app's actions. The parts that do the work are elsewhere.

Dialogs are imported when they open: the first paint does not wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_tui.monitors.guard import GUARD_MODES
from persona_tui.project.models import ModelChoice, RecentModels
from persona_tui.tui.editor import edit_in_own_editor
from persona_tui.tui.help import help_here, help_text, legend
from persona_tui.tui.picture_actions import PictureActions
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.screens.palette import Palette
from persona_tui.tui.theme import other_theme

if TYPE_CHECKING:
    from persona_tui.tui.inspection import Inspection
    from persona_tui.tui.message_menu import MessageMenu
    from persona_tui.tui.mixer import Mixer
    from persona_tui.tui.people import People
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.screens.chat import Panel
    from persona_tui.tui.side_by_side import SideBySide
    from persona_tui.tui.slash import Slash

STRENGTH_STEP = 0.05
_ON_THE_MAIN_SCREEN = ("mark", "toggle_panel")


class Actions(PictureActions):
    """The actions. `PersonaApp` has the parts that they are done with."""

    replies: ReplyView
    beside: SideBySide
    inspection: Inspection
    menu: MessageMenu
    mixer: Mixer
    people: People
    slash: Slash

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
        if not self.replies.stop():
            self.beside.leave()

    def action_scroll_chat(self, pages: int) -> None:
        """Move the chat by pages."""
        if pages < 0:
            self.main.chat.scroll_page_up(animate=False)
        else:
            self.main.chat.scroll_page_down(animate=False)

    def action_chat_end(self) -> None:
        """Go to the last line of the chat."""
        self.main.chat.follow()

    def action_redraw(self) -> None:
        """Draw everything again, whatever has written over it."""
        self.refresh(layout=True)

    def action_toggle_theme(self) -> None:
        """Change between dark and light."""
        self.theme = other_theme(self.theme, self.current_theme.dark)

    def action_show_help(self) -> None:
        """Show all keys, those of what has the focus first."""
        if not isinstance(self.screen, PageScreen):
            keys_here = help_here(self)  # those of what has the focus now, not of the page
            self.push_screen(
                PageScreen(
                    "help",
                    lambda width: help_text(self, width, keys_here, self.slash.all()),
                    lambda: PageScreen("what the words mean", legend),
                )
            )

    def action_command_palette(self) -> None:
        """Open the command palette."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    def action_help_quit(self) -> None:
        """ctrl+c where nothing is selected: clear the prompt, else stop the reply, else say how to leave."""
        if self.screen is self.main and (self.main.prompt.clear_text() or self.replies.stop()):
            return
        self.notify(f"{self.key_label('quit')} quits.")

    # --- the conversation

    def action_stop(self) -> None:
        """Stop the reply and keep what was said."""
        if not self.replies.stop():
            self.notify("There is nothing to stop.")

    def action_regenerate(self) -> None:
        """Write the last reply again; the old one is kept as another version."""
        self.attempt(self.beside.again if self.beside.active else self.replies.regenerate)

    def action_continue(self) -> None:
        """Go on with the last reply."""
        self.attempt(self.replies.go_on)

    def action_compare(self) -> None:
        """Split the chat: the next message is answered with two settings. Once more: choose the second."""
        self.attempt(self.beside.toggle)

    def action_keep(self, row: int) -> None:
        """Keep one of two answers; the other one stays beside it."""
        self.attempt(lambda: self.notify(self.beside.keep(row)))

    def action_inspector(self) -> None:
        """Show the marked message, or the last reply, token by token; once more closes that."""
        self.attempt(self.inspection.toggle)

    def action_new_chat(self) -> None:
        """Begin another conversation; the old one stays among the sessions."""
        self.attempt(self._begin_another)

    def _begin_another(self) -> None:
        self.replies.check_idle()
        self.chat.new()
        self.welcome()

    def action_sessions(self) -> None:
        """Show the saved conversations."""
        from persona_tui.tui.screens.sessions import SessionsScreen

        def chosen(id: str | None) -> None:
            if id is not None:
                self.attempt(lambda: self.resume(id))

        self.push_screen(SessionsScreen(self.chat), chosen)

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
        self.attempt(lambda: self.menu.copy_last(code))

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
                self.attempt(lambda: self.say(self.chat.use_model(choice)))

        recent = RecentModels(self.project.workspace).list()
        present = ModelChoice.of(self.project.settings)
        self.push_screen(ModelScreen(present, recent, self.model_ready), answered)

    def action_system(self) -> None:
        """Write the system prompt."""
        from persona_tui.tui.screens.write import WriteScreen

        def answered(text: str | None) -> None:
            if text is not None and text != (conversation.system or ""):
                self.attempt(lambda: conversation.set_system(text or None))
                self.say(f"System prompt: {text}" if text else "No system prompt.")
                self.show_status()

        conversation = self.chat.conversation
        explanation = "The model reads it before the conversation. It applies from the next reply on."
        self.push_screen(
            WriteScreen("system prompt", explanation, conversation.system or "", clear="No system prompt"),
            answered,
        )

    def action_sampling(self) -> None:
        """Choose temperature, top-p, the longest reply and the seed."""
        from persona_tui.tui.screens.sampling import SamplingScreen, summary

        def answered(changes: dict[str, Any] | None) -> None:
            if changes is not None:
                self.chat.sampling_changes = changes
                self.say(f"Sampling: {summary(self.project.settings.generation, changes)}.")

        self.push_screen(SamplingScreen(self.project.settings, self.chat.sampling_changes), answered)

    # --- monitors and traits, whose screens import torch: not before the first paint

    def action_monitors(self) -> None:
        """Show the monitors of this model."""
        self.attempt(self._show_monitors)

    def _show_monitors(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.monitors import MonitorsScreen

        if not isinstance(self.screen, MonitorsScreen):
            self.push_screen(MonitorsScreen())

    def action_traits(self) -> None:
        """Show the traits of this model, and what this conversation scores."""
        self.attempt(self._show_traits)

    def _show_traits(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.traits import TraitsScreen

        if not isinstance(self.screen, TraitsScreen):
            self.push_screen(TraitsScreen())

    # --- the voice

    def action_strength(self, amount: float) -> None:
        """Turn the master by an amount."""
        value = round((self.chat.mix.strength + amount) / STRENGTH_STEP) * STRENGTH_STEP
        strength = round(max(-1.0, min(1.0, value)), 4) + 0.0
        self.attempt(lambda: self.chat.change_mix(strength=strength))

    def action_toggle_capping(self) -> None:
        """Switch the floor on or off, and go back to the prompt."""
        self.attempt(lambda: self.chat.change_mix(capping=not self.chat.mix.capping))
        self.main.set_focus(self.main.prompt)

    def action_nobody(self) -> None:
        """Let the model speak as itself."""
        self.attempt(lambda: self.chat.change_mix(weights={}))

    def action_layers(self) -> None:
        """Choose where personas are added."""
        self.attempt(self.mixer.ask_layers)

    def action_traces(self) -> None:
        """Choose what is traced."""
        from persona_tui.tui.screens.traces import TracesScreen

        def answered(names: list[str] | None) -> None:
            if names is not None:
                self.mixer.trace(names)

        self.attempt(lambda: self.push_screen(TracesScreen(*self.mixer.traceable()), answered))

    def action_guard(self) -> None:
        """Guard in the next of its modes: off, warn, refuse, off."""
        mode = self.chat.guard.mode
        self.command(f"/guard {GUARD_MODES[(GUARD_MODES.index(mode) + 1) % len(GUARD_MODES)]}")

    def action_policy(self) -> None:
        """Ask for a policy's file, or rules."""

        def answered(text: str | None) -> None:
            if text:
                self.command(f"/policy {text}")

        question = "Limits for replies: a policy's file or name, rules like harmful_validation>0.5, or off."
        self.push_screen(AskScreen("policy", question, "", example="supportive"), answered)

    # --- personas and jobs

    def action_create_persona(self) -> None:
        """Ask for a new persona and make it."""
        self.attempt(self.people.create)

    def action_prepare(self) -> None:
        """Extract what this model's workspace lacks: axes and the archetypes' personas."""
        self.attempt(self.people.prepare)

    def action_dataset(self) -> None:
        """Ask which prompts the model should write."""

        def answered(text: str | None) -> None:
            if text:
                self.command(f"/dataset {text}")

        question = (
            "What should the model write? safe, unsafe or questions, and how many; or archetype NAME "
            "DESCRIPTION. It is added to the workspace's file."
        )
        self.push_screen(AskScreen("data set", question, "", example="questions 20"), answered)

    def action_undelete(self) -> None:
        """Bring back what was deleted last."""
        self.attempt(self.undelete)

    def action_cancel_job(self) -> None:
        """Cancel the job under way."""
        if not self.jobs.cancel():
            self.notify("No job is running.")

    def action_resume_job(self) -> None:
        """Go on with what an earlier run did not finish."""
        self.attempt(self.jobs.resume_first)
