"""Slash commands about personas as files, and about long work: making, calibrating, loading another model."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from persona_tui.chat import personas
from persona_tui.chat.command import Command, CommandError, needed, whole
from persona_tui.core.errors import nearest
from persona_tui.core.jobs import JobContext
from persona_tui.project import about
from persona_tui.project.models import RecentModels, known_choice
from persona_tui.project.project import FromDescription, Project

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat
    from persona_tui.project.dataset_task import DatasetTask


def _list(chat: Chat, rest: str) -> str:
    available, loaded = _available(chat), set(_loaded(chat))
    if not available:
        return "There are no personas yet. /create NAME DESCRIPTION makes one."
    return "\n".join(
        f"{'>' if name in chat.mix.weights else ' '} {name}{' (loaded)' if name in loaded else ''}"
        for name in available
    )


def _info(chat: Chat, name: str) -> str:
    return about.in_words(about.about(chat.project, needed(name, "/info NAME")))


def _init(chat: Chat, rest: str) -> str:
    project = chat.project
    return chat.front.run("init", lambda context: about.prepared_in_words(project, project.init(context)))


def _load(chat: Chat, name: str) -> str:
    personas.load(chat, needed(name, "/load NAME"))
    return f"Loaded {name}."


def _unload(chat: Chat, name: str) -> str:
    if not personas.unload(chat, needed(name, "/unload NAME")):
        raise CommandError(f'"{name}" is not loaded.{nearest(name, _loaded(chat))}')
    return f"Unloaded {name}."


def _create(chat: Chat, rest: str) -> str:
    name, _, description = rest.partition(" ")
    needed(name, "/create NAME DESCRIPTION")
    if not description.strip():
        description = chat.front.ask(f"Who is {name}? ") or ""
    source = FromDescription(needed(description.strip(), "/create NAME DESCRIPTION"))
    chat.project.check_new_name(name, source)
    return chat.front.run(
        f"create {name}",
        lambda context: about.created_in_words(chat.project.create_persona(name, source, context)),
    )


def _calibrate(chat: Chat, rest: str) -> str:
    name = needed(rest, "/calibrate NAME")
    chat.project.personas.get(name)  # not found is an error now
    return chat.front.run(
        f"calibrate {name}", lambda context: about.calibrated_in_words(chat.project.calibrate(name, context))
    )


def _dataset(chat: Chat, rest: str) -> str:
    from persona_tui.project.dataset_task import write

    task, seed = dataset_task(chat.project, rest)
    saved: list[str] = []

    def work(context: JobContext) -> str:
        written = write(task, chat.project, seed, lambda run: run(context), log=context.log)
        saved.extend([written.summary, *written.notes])
        return "\n".join(saved)

    return chat.front.run(f"write {task.kind}", work)


def dataset_task(project: Project, rest: str) -> tuple[DatasetTask, int]:
    """Return what `/dataset` is asked to write, and with which seed: as chats are seeded, else a new one.

    Raises:
        PersonaTuiError: it cannot be used like that.
    """
    from persona_tui.project.dataset_task import ARCHETYPE, DatasetTask

    kind, _, more = needed(rest, _DATASET_USAGE).partition(" ")
    seed = project.settings.generation.seed
    seed = secrets.randbelow(2**31) if seed is None else seed
    if kind.casefold() == ARCHETYPE:
        name, _, description = more.strip().partition(" ")
        return DatasetTask(ARCHETYPE, name, description.strip()), seed
    count = whole(more.strip(), "how many") if more.strip() else None
    return DatasetTask(kind.casefold(), wanted=count), seed


_DATASET_USAGE = "/dataset safe|unsafe|questions [HOW MANY], or /dataset archetype NAME DESCRIPTION"


def _delete(chat: Chat, rest: str) -> str:
    name, _, confirmed = needed(rest, "/delete NAME").partition(" ")
    chat.project.personas.get(name)
    question = f"Delete {name}? [y/N] "
    if confirmed.strip() != "--yes":
        answer = chat.front.ask(question)
        if answer is None:
            raise CommandError(f"this deletes a file: /delete {name} --yes")
        if answer.strip().casefold() not in ("y", "yes"):
            return f"Kept {name}."
    kept = personas.delete(chat, name).persona.file.kept
    return f"Deleted {name}. Its file is in the trash: {kept}"


def _model(chat: Chat, rest: str) -> str:
    if not rest:
        if chat.project.at is not None:
            return f"{chat.project.settings.model.name} at {chat.project.at}."
        return f"{chat.project.settings.model.name}. /model NAME loads another one."
    return chat.use_model(known_choice(chat.project, rest))


def _known_models(chat: Chat) -> list[str]:
    """Return the models that completion offers: the built-in one and those used lately."""
    return sorted(
        {"starter", "tiny", *(choice.name for choice in RecentModels(chat.project.workspace).list())}
    )


def _available(chat: Chat) -> list[str]:
    return chat.project.personas.list_available()


def _loaded(chat: Chat) -> list[str]:
    return chat.project.personas.list_loaded()


WORK: tuple[Command, ...] = (
    Command("list", "/list", "the personas: > speaks", _list),
    Command("info", "/info NAME", "details of a persona", _info, _available),
    Command("init", "/init", "prepare this model: axes and personas", _init),
    Command("load", "/load NAME", "load a persona and show its trace", _load, personas.there),
    Command("unload", "/unload NAME", "unload a persona; its file stays", _unload, _loaded),
    Command("create", "/create NAME DESCRIPTION", "create a persona; takes a while", _create),
    Command(
        "calibrate",
        "/calibrate NAME",
        "calibrate a persona again; takes a while",
        _calibrate,
        _available,
    ),
    Command(
        "dataset",
        "/dataset KIND [N]",
        "have the model write prompts: safe, unsafe, questions",
        _dataset,
        lambda _: ("safe", "unsafe", "questions", "archetype"),
    ),
    Command("delete", "/delete NAME", "delete a persona's file", _delete, _available),
)

MODEL: tuple[Command, ...] = (
    Command("model", "/model [NAME]", "talk to another model", _model, _known_models),
)
