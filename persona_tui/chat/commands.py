"""The slash commands of a chat, the same in every front end.

1. `parse` finds the command that a line asks for; a line that is none is something to say to the model.
2. Its handler changes the chat, or does what was asked for, and returns what to show.
3. `complete` offers whole lines that begin like the one being typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from persona_tui.chat.command import Command, CommandError, is_command
from persona_tui.chat.conversation_commands import CONVERSATION
from persona_tui.chat.voice_commands import SAMPLING, VOICE
from persona_tui.chat.work_commands import MODEL, WORK
from persona_tui.core.errors import nearest

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat


def parse(line: str) -> tuple[Command, str]:
    """Return the command that a line asks for, and what follows its name.

    Raises:
        CommandError: there is no such command; offers the nearest.
    """
    name, _, rest = line.strip().removeprefix("/").partition(" ")
    if name.casefold() not in COMMANDS:
        hint = nearest(f"/{name}", [f"/{each}" for each in COMMANDS]) or " /help lists them."
        raise CommandError(f"there is no command /{name}.{hint}")
    return COMMANDS[name.casefold()], rest.strip()


def execute(chat: Chat, line: str) -> str:
    """Do what a line asks for; what to show.

    Raises:
        PersonaTuiError: one line that says why not.
    """
    command, rest = parse(line)
    return command.handler(chat, rest)


def complete(chat: Chat, line: str, commands: Mapping[str, Command] | None = None) -> list[str]:
    """Whole lines that a line may become."""
    if not is_command(line):
        return []
    known = COMMANDS if commands is None else commands
    name, space, rest = line[1:].partition(" ")
    if not space:
        return [f"/{each}" for each in known if each.startswith(name.casefold())]
    command = known.get(name.casefold())
    words = command.words(chat) if command is not None else ()
    # Of several names, the last one is being typed.
    before, comma, last = rest.rpartition(",")
    return [f"/{name} {before}{comma}{word}" for word in words if word.startswith(last) and word != last]


def _help(chat: Chat, rest: str) -> str:
    if rest:
        command, _ = parse(rest)
        return f"{command.usage}  {command.help}"
    width = max(len(command.usage) for command in COMMANDS.values())
    return "\n".join(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values())


def _quit(chat: Chat, rest: str) -> str:
    chat.ended = True
    return ""


HELP: tuple[Command, ...] = (
    Command("help", "/help [COMMAND]", "this list", _help, lambda _: COMMANDS),
    Command("quit", "/quit", "leave", _quit),
)

COMMANDS: dict[str, Command] = {
    command.name: command for command in (*VOICE, *WORK, *SAMPLING, *CONVERSATION, *MODEL, *HELP)
}
