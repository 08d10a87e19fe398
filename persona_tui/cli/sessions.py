"""`sessions`: the saved conversations. None of these commands loads the model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import (
    check_free,
    echo,
    echo_said,
    force_option,
    json_option,
    print_json,
    print_table,
    shown,
)

if TYPE_CHECKING:
    from persona_tui.chat import Conversation, Node, SessionInfo, SessionStore


def _store(invocation: Invocation) -> SessionStore:
    from persona_tui.chat.store import SessionStore

    return SessionStore(invocation.project.workspace)


@click.group()
def sessions() -> None:
    """List, search, show, rename, delete and export saved conversations.

    SESSION is an id, the beginning of one, a title, or "last".
    """


@sessions.command("list")
@json_option
@pass_invocation
def list_(invocation: Invocation, /, as_json: bool) -> None:
    """List saved conversations, most recently used first."""
    found = _store(invocation).list()
    if as_json:
        print_json([asdict(info) for info in found])
    elif not found:
        echo("There are no sessions yet: chats are saved automatically.", err=True)
    else:
        print_table([_row(info) for info in found], ["id", "used (UTC)", "messages", "model", "title"])


def _row(info: SessionInfo) -> list[str]:
    used = info.used[:16].replace("T", " ")
    if info.problem:
        return [info.id, used, "", "", info.problem]
    return [info.id, used, str(info.messages), info.model, shown(info.title)]


@sessions.command("search")
@click.argument("text")
@json_option
@pass_invocation
def search(invocation: Invocation, /, text: str, as_json: bool) -> None:
    """Find messages, on any branch, and titles that contain TEXT, ignoring case.

    The exit status is 1 if there are none.
    """
    found = _store(invocation).search(text)
    if as_json:
        print_json(
            [
                {
                    "session": hit.session.id,
                    "title": hit.session.title,
                    "message": hit.node,
                    "role": hit.role,
                    "excerpt": hit.excerpt,
                }
                for hit in found
            ]
        )
    elif found:
        print_table([[hit.session.id, _place(hit.node), hit.role, shown(hit.excerpt)] for hit in found])
    if not found:
        echo(f'No session contains "{text}".', err=True)
        click.get_current_context().exit(1)


def _place(node: int | None) -> str:
    return "" if node is None else f"#{node}"


@sessions.command("show")
@click.argument("session")
@json_option
@pass_invocation
def show(invocation: Invocation, /, session: str, as_json: bool) -> None:
    """Show a conversation: what was said, with whom, and where the mix changed."""
    from persona_tui.chat import export_json

    store = _store(invocation)
    id = store.resolve(session)
    conversation, _ = store.load(id)
    info = store.info(id)
    if as_json:
        print_json(export_json(conversation, info))
        return
    print_table(_about(store, info, conversation))
    for node in conversation.path():
        echo_said(f"\n{_heading(conversation, node)}\n{_with_rulers(node)}")


def _about(store: SessionStore, info: SessionInfo, conversation: Conversation) -> list[list[str]]:
    rows = [
        ["title", shown(info.title)],
        ["model", info.model],
        ["created", f"{info.created[:19].replace('T', ' ')} UTC"],
        ["messages", f"{len(conversation.path())} on this branch, {len(conversation)} in all"],
        ["file", str(store.folder / f"{info.id}.jsonl")],
    ]
    return rows + ([["system", shown(conversation.system)]] if conversation.system else [])


def _heading(conversation: Conversation, node: Node) -> str:
    from persona_tui.chat import how_written, voice_of_record

    index, count = conversation.siblings(node.id)
    mix = node.runs[0].settings.get("mix") if node.runs else None
    who = "you" if node.role == "user" else voice_of_record(mix)
    branches = f"{index + 1} of {count}" if count > 1 else ""
    return "  ".join(part for part in (f"#{node.id} {who}", branches, how_written(node)) if part)


def _with_rulers(node: Node) -> str:
    from persona_tui.chat import voice_of_record

    text, end = "", 0
    for place, mix in node.rulers():
        text += f"{node.text[end:place].rstrip()}\n--- {voice_of_record(mix)} ---\n"
        end = place
    return (text + node.text[end:].lstrip() if text else node.text).strip()


@sessions.command("rename")
@click.argument("session")
@click.argument("title")
@pass_invocation
def rename(invocation: Invocation, /, session: str, title: str) -> None:
    """Give a conversation a title."""
    store = _store(invocation)
    id = store.resolve(session)
    store.rename(id, title)
    echo(f"{id}: {store.info(id).title}")


@sessions.command("delete")
@click.argument("session", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_invocation
def delete(invocation: Invocation, /, session: tuple[str, ...], yes: bool) -> None:
    """Delete conversations."""
    store = _store(invocation)
    ids = list(dict.fromkeys(store.resolve(each) for each in session))
    if not yes:
        _confirm(store, ids)
    for id in ids:
        store.delete(id)
        echo(f"Deleted {id}.")


def _confirm(store: SessionStore, ids: list[str]) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("This cannot ask without a terminal: add --yes.", click.get_current_context())
    titles = ", ".join(shown(store.info(id).title or id) for id in ids)
    if not click.confirm(f"Delete {titles}?", err=True):
        echo("Kept.", err=True)
        click.get_current_context().exit(1)


@sessions.command("export")
@click.argument("session")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "json"]),
    help="Markdown or JSON. [default: by FILE's extension]",
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="FILE; else stdout.")
@force_option
@pass_invocation
def export(
    invocation: Invocation, /, session: str, kind: str | None, output: Path | None, force: bool
) -> None:
    """Write a conversation as Markdown, or as JSON with chat messages and settings."""
    from persona_tui.chat.export import exported, write_export

    store = _store(invocation)
    id = store.resolve(session)
    if output is None:
        echo_said(exported(store, id, as_json=kind == "json"), nl=False)
    else:
        check_free(output, force=force)
        as_json = None if kind is None else kind == "json"
        echo(f"Wrote {write_export(store, id, output, replace=force, as_json=as_json)}.", err=True)
