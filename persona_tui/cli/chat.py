"""`chat`: the app on a terminal, lines everywhere else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from persona_tui.cli.options import (
    Invocation,
    chosen_weights,
    no_think_option,
    pass_invocation,
    persona_options,
)
from persona_tui.monitors.second_opinion import NAMED_BY, Validator

if TYPE_CHECKING:
    from persona_tui.project.project import Project


@click.command()
@persona_options
@click.option("--plain", is_flag=True, help="Lines instead of the full-screen app.")
@click.option("--resume", metavar="ID", help='Resume a saved session; "last" is the latest.')
@click.option(
    "--connect",
    metavar="URL",
    help="Talk to the model of a `persona-tui serve` on another machine, as to one that is loaded here.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="PERSONA_TUI_API_KEY",
    help="The server's API key; better set PERSONA_TUI_API_KEY, which other users cannot see.",
)
@click.option("--no-save", is_flag=True, help="Do not save this conversation.")
@no_think_option
@click.option(
    "--validator",
    envvar=NAMED_BY,
    metavar="COMMAND|URL",
    help=f"Has the last word on replies while a guard is on. [env: {NAMED_BY}]",
)
@pass_invocation
def chat(
    invocation: Invocation,
    /,
    persona: str | None,
    strength: float | None,
    plausibility: float | None,
    blend: str | None,
    plain: bool,
    resume: str | None,
    connect: str | None,
    api_key: str | None,
    no_save: bool,
    no_think: bool,
    validator: str | None,
) -> None:
    """Talk to the model.

    Opens the app. With --plain, or when input or output is not a terminal: one line in, one reply out. Either
    way the conversation is saved as it happens: `persona-tui sessions list`.
    """
    if validator:
        Validator(validator).check()
        os.environ[NAMED_BY] = validator  # every chat of this process has it
    if connect is not None and invocation.model is not None:
        raise click.UsageError("Use either --connect or --model: the server has its model loaded.")
    session = _session_with_its_model(invocation, resume) if resume is not None else None
    project = _connected(invocation, connect, api_key) if connect is not None else invocation.project
    if plausibility is not None:
        project.override({"steering.plausibility": plausibility})
    if no_think:
        project.override({"generation.think": False})
    weights = chosen_weights(project, persona, blend)
    if plain or not has_screen():
        _line_chat(project, weights, strength, plausibility, session, not no_save)
        return
    from persona_tui.tui import collector

    collector.pause()  # a tenth of the time until the first paint; the app goes on with it
    from persona_tui.tui.app import run_app

    run_app(project, strength=strength, blend=weights, resume=session, saves=not no_save)


def _connected(invocation: Invocation, url: str, api_key: str | None) -> Project:
    """Ask a server for its model and its vectors."""
    from persona_tui.cli.progress import note
    from persona_tui.remote.project import RemoteProject

    project = RemoteProject.connect(url, api_key, invocation.folder)
    project.on_note = note
    if missing := project.missing_vectors():
        note(f"Fetching {len(missing)} files of vectors from {project.at}.")
    project.copy_vectors()  # names are looked up in them
    return project


def _session_with_its_model(invocation: Invocation, named: str) -> str:
    """Find a session, and use the model that it was begun with unless the command line names one."""
    from persona_tui.chat import SessionStore
    from persona_tui.core.workspace import Workspace

    store = SessionStore(Workspace.find(invocation.folder))
    id = store.resolve(named)
    invocation.model = invocation.model or store.info(id).model or None
    return id


def _line_chat(
    project: Project,
    weights: dict[str, float],
    strength: float | None,
    plausibility: float | None,
    resume: str | None,
    saves: bool,
) -> None:
    from persona_tui.chat.chat import Chat
    from persona_tui.cli.line_chat import Lines, line_chat
    from persona_tui.cli.progress import note

    chat = Chat.start(project, {} if resume else weights, strength, saves, Lines())
    if resume is not None:
        note(chat.resume(resume))
        if weights:
            for name in weights:
                project.personas.load(name)
            chat.change_mix(weights=weights)
        if strength is not None:
            chat.change_mix(strength=strength)
        if plausibility is not None:
            chat.change_mix(plausibility=plausibility)
    line_chat(chat)


def has_screen() -> bool:
    """Return whether there is a terminal that a full-screen app can use."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
