"""Slash commands in the app: those of every chat, and a few that need a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.chat import commands
from persona_tui.chat.chat import Chat
from persona_tui.chat.command import OFF, Command, is_command
from persona_tui.chat.personas import there
from persona_tui.chat.work_commands import dataset_task
from persona_tui.core.errors import PersonaTuiError
from persona_tui.project.project import FromDescription
from persona_tui.tui.theme import NAMES as THEMES
from persona_tui.tui.theme import choose_theme
from persona_tui.tui.tints import MODES

if TYPE_CHECKING:
    from persona_tui.tui.inspection import Inspection
    from persona_tui.tui.message_menu import MessageMenu
    from persona_tui.tui.mixer import Mixer
    from persona_tui.tui.people import People
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.stage import AppStage


_MOST_PATHS = 50
_CHANGES_MESSAGES = ("regenerate", "continue", "edit", "branch", "resume", "new")


class Slash:
    """Runs slash commands and completes them."""

    def __init__(
        self,
        app: AppStage,
        replies: ReplyView,
        mixer: Mixer,
        people: People,
        inspection: Inspection,
        menu: MessageMenu,
    ) -> None:
        self._app, self._replies, self._mixer, self._people = app, replies, mixer, people
        self._waiting: list[str] = []  # commands that were typed before there was a model
        self._own = {command.name: command for command in self._commands(inspection, menu)}

    def _commands(self, inspection: Inspection, menu: MessageMenu) -> Iterable[Command]:
        """Yield what only a full screen has."""
        yield self._command(
            "copy",
            "[code]",
            "copy the last reply, or its last code block",
            lambda rest: menu.copy_last(rest.casefold() == "code"),
            lambda: ("code",),
        )
        yield self._action("editor", "editor", "write in your editor")
        yield self._action("sampling", "sampling", "temperature, top-p, length and seed")
        yield self._command(
            "inspect",
            "[#N]",
            "a message token by token: projections",
            lambda rest: inspection.open(_message(rest)),
        )
        yield self._command(
            "trace",
            "[A,B|off]",
            "what is drawn under the chat, token by token",
            self._trace,
            lambda: [*self._mixer.traceable()[0], "off"],
        )
        yield self._command(
            "info", "NAME", "details of a persona", self._people.info, lambda: there(self._app.chat)
        )
        yield from self._pictures()
        yield self._action("init", "prepare", "prepare this model: axes and personas")
        yield self._action("monitors", "monitors", "layers, scores, thresholds of the monitors")
        yield self._action("traits", "traits", "what this conversation scores; thresholds, limits")
        yield self._command(
            "theme",
            "[NAME]",
            "dark, light or another theme; it stays",
            self._theme,
            lambda: [*THEMES, *self._app.available_themes],
        )
        yield self._action("cancel", "cancel_job", "cancel the running job")

    def _pictures(self) -> Iterable[Command]:
        yield self._action("map", "map", "where the personas lie, and this conversation among them")
        yield self._action("drift", "drift", "how this conversation moves along an axis or a trait")
        yield self._action("heat", "heat", "the last reply as layers by tokens, along any direction")
        yield self._command(
            "sweep", "[PROMPT]", "one prompt at five strengths; without it, the last message", self._app.sweep
        )
        yield self._command(
            "tint",
            "[WHAT]",
            "replies token by token: surprise, steering (what it changed), direction, off",
            self._app.tint,
            lambda: MODES,
        )

    def _action(self, name: str, action: str, help: str) -> Command:
        """Return a command that does what an action of the app does."""
        return self._command(name, "", help, lambda _: self._app.call_later(self._app.run_action, action))

    def _command(
        self,
        name: str,
        usage: str,
        help: str,
        act: Callable[[str], object],
        words: Callable[[], Iterable[str]] = tuple,
    ) -> Command:
        """Return a command that shows for itself what it does; `act` is given what follows the name."""

        def handler(_: Chat, rest: str) -> str:
            act(rest)
            return ""

        return Command(name, f"/{name} {usage}".rstrip(), help, handler, lambda _: words())

    def _theme(self, rest: str) -> None:
        if rest:
            self._app.theme = choose_theme(rest, self._app.available_themes, {})
        else:
            self._app.call_later(self._app.run_action, "change_theme")

    def _trace(self, rest: str) -> None:
        if not rest:
            self._app.call_later(self._app.run_action, "traces")
            return
        offered, _ = self._mixer.traceable()
        names = [] if rest.casefold() in OFF else [name.strip() for name in rest.split(",")]
        for name in names:
            if name not in offered:
                raise PersonaTuiError(f'"{name}" cannot be traced: {", ".join(offered)} can')
        self._mixer.trace(names)

    # --- running

    def model_ready(self) -> None:
        """Run what was asked for while the model was loading."""
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self.run(line)

    def run(self, line: str) -> None:
        """Do what a line asks for, and show the answer in the chat."""
        name, _, rest = line[1:].partition(" ")
        try:
            if name in self._own:
                self._own[name].handler(self._app.chat, rest.strip())
            elif not self._takes_dialog(name, rest.strip()):
                self._execute(line)
        except PersonaTuiError as error:
            self._app.show_error(error)

    def _takes_dialog(self, name: str, rest: str) -> bool:
        """Ask on a screen of its own, where the line mode asks a question; whether that was the case."""
        if name == "create" and len(rest.split()) < 2:
            self._people.create(rest)
        elif name == "create":
            new, _, description = rest.partition(" ")
            self._people.make(new, FromDescription(description.strip()))
        elif name == "calibrate" and rest:
            self._people.calibrate(rest)
        elif name == "dataset" and rest:
            self._people.write(*dataset_task(self._app.project, rest))
        elif name == "delete" and rest and " " not in rest:
            self._people.delete(rest)
        elif name == "resume" and rest:
            self._app.resume(self._app.chat.store.resolve(rest))
        elif name == "help" and (own := self._own.get(rest.removeprefix("/"))):
            self._app.say(f"{own.usage}  {own.help}")
        elif name in _SCREENS and not rest:
            self._app.call_later(self._app.run_action, _SCREENS[name])
        else:
            return False
        return True

    def _execute(self, line: str) -> None:
        command, _ = commands.parse(line)
        if command.name == "quit":
            self._app.call_later(self._app.action_quit)
        elif not self._app.model_ready and command.name != "model":
            self._app.check_not_missing()
            self._waiting.append(line)
            self._app.say(f"{line}: as soon as the model is loaded.")
        else:
            if command.name in _CHANGES_MESSAGES:
                self._replies.check_idle()
            elif command.name in ("compare", "keep"):
                self._replies.check_free()  # on the screen, too
            answer = commands.execute(self._app.chat, line)
            if not self._app.busy:  # the messages may be others now
                self._replies.show()
            if answer:
                self._app.say(answer)
        self._people.refresh()
        self._app.show_status()

    # --- completing

    def complete(self, line: str) -> Sequence[tuple[str, str]]:
        """Return what a line may become, each with what it does."""
        if not is_command(line):
            return ()
        if " " not in line:
            return [(text, what) for text, what in self._names() if text.startswith(line.casefold())]
        if not self._app.model_ready:
            return ()
        offers = commands.complete(self._app.chat, line, self._known())
        return [(offer, "") for offer in offers or _paths(line)]

    def _names(self) -> list[tuple[str, str]]:
        """Return what may be typed: every name, with a space where something follows."""
        usages = {name: command.usage for name, command in self._known().items()}
        return [(f"{text} " if " " in usages[text[1:]] else text, what) for text, what in self.all()]

    def all(self) -> list[tuple[str, str]]:
        """Return every command and what it does."""
        return [(f"/{name}", command.help) for name, command in self._known().items()]

    def _known(self) -> dict[str, Command]:
        """Return every command by its name; `help` knows all of them."""
        known = commands.COMMANDS | self._own
        return known | {"help": replace(known["help"], words=lambda _: known)}


_SCREENS = {"help": "show_help", "sessions": "sessions", "model": "model", "system": "system"}


def _paths(line: str) -> list[str]:
    """Return what a line becomes if its last word, the beginning of a path, is completed."""
    front, _, word = line.rpartition(" ")
    if "/" not in word and not word.startswith((".", "~")):
        return []
    folder, _, begun = word.rpartition("/")
    try:
        found = sorted(Path(folder or "/").expanduser().iterdir()) if "/" in word else [Path(word)]
        names = [f"{each.name}/" if each.is_dir() else each.name for each in found]
    except OSError:
        return []
    visible = [name for name in names if name.startswith(begun) and (begun or not name.startswith("."))]
    return [
        f"{front} {folder}/{name}" if "/" in word else f"{front} {word}/" for name in visible[:_MOST_PATHS]
    ]


def _message(rest: str) -> int | None:
    number = rest.removeprefix("#")
    if rest and not number.isdecimal():
        raise PersonaTuiError(f'/inspect, or /inspect #2 for message 2, not "{rest}"')
    return int(number) if rest else None
