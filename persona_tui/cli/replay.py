"""`replay`: write the replies of a session again, and say whether every token is the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json
from persona_tui.cli.progress import note, prepare_model

if TYPE_CHECKING:
    from persona_tui.chat.replay import Replayed, Stretch
    from persona_tui.project.project import Project
    from persona_tui.steering import SteeringEngine

DTYPES = ("float32", "float16", "bfloat16")


@click.command()
@click.argument("session")
@json_option
@pass_invocation
def replay(invocation: Invocation, /, session: str, as_json: bool) -> None:
    """Write every reply of SESSION again, as the transcript says, and compare the tokens.

    Uses the model, precision and device of the transcript unless the command line says otherwise.
    The exit status is 1 if a token differs, or if the model or a vector file has changed since.
    """
    from persona_tui.chat import SessionStore
    from persona_tui.chat.replay import stretches
    from persona_tui.core.workspace import Workspace

    store = SessionStore(Workspace.find(invocation.folder))
    id = store.resolve(session)
    conversation, _ = store.load(id)
    with quick_interrupt():
        results = [_shown(result, as_json) for result in _replayed(invocation, stretches(conversation))]
    equal = sum(result.equal for result in results)
    if as_json:
        print_json({"session": id, "equal": equal == len(results), "replies": [*map(_as_json, results)]})
    elif not results:
        echo("It has no replies to replay.", err=True)
    else:
        echo(f"{equal} of {len(results)} replies came out the same, token for token.")
    if equal < len(results):
        click.get_current_context().exit(1)


def _replayed(invocation: Invocation, recorded: list[Stretch]) -> Iterator[Replayed]:
    """Write all runs again. What can be compared before a model speaks is compared first."""
    from persona_tui.chat.replay import check_same, unlike
    from persona_tui.chat.replay import replay as write_again

    for _, group in groupby(recorded, key=lambda stretch: _needs(stretch.settings)):
        same = list(group)
        project = _runtime(invocation, same[0].settings)
        engines = [_engine(project, stretch) for stretch in same]
        _same_threads(same[0].settings)  # loading the model has chosen others, perhaps
        for engine, stretch in zip(engines, same, strict=True):
            check_same(engine, stretch)
        for engine, stretch in zip(engines, same, strict=True):
            result = write_again(engine, stretch)
            if not result.equal and (reasons := unlike(engine, stretch)):
                note(f"{stretch.name} was written with {'; '.join(reasons)}.")
            yield result


def _needs(settings: dict[str, Any]) -> list[str]:
    """Return what a model has to be loaded with to write a reply again."""
    return [str(settings.get(name)) for name in ("model", "device", "dtype", "quantization", "threads")]


def _runtime(invocation: Invocation, settings: dict[str, Any]) -> Project:
    """Return the workspace with the model as it was then; what the command line says goes before that."""
    from persona_tui.project.project import Project

    dtype = settings.get("dtype")
    project = Project.open(
        invocation.folder,
        invocation.model or settings.get("model"),
        invocation.device or settings.get("device"),
        invocation.dtype or (dtype if dtype in DTYPES else None),
        invocation.quantization or settings.get("quantization"),
        invocation.trusted_model,
    )
    project.on_model_load = prepare_model
    return project


def _same_threads(settings: dict[str, Any]) -> None:
    """Add up in as many threads as then: another order of adding changes the last digits."""
    import torch

    threads = settings.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)


def _engine(project: Project, stretch: Stretch) -> SteeringEngine:
    """Return an engine that caps where it was capped then, whatever the settings say now."""
    layers = stretch.capping_layers
    if not layers or layers == list(project.engine.capping_layers):
        return project.engine
    from persona_tui.core.config import override
    from persona_tui.steering import SteeringEngine

    settings = override(project.settings, {"steering.capping_layers": layers})
    return SteeringEngine(project.model, project.personas, settings)


def _shown(result: Replayed, quiet: bool) -> Replayed:
    """Say how one run went, as soon as it is known."""
    if not quiet:
        total = len(result.stretch.tokens)
        said = f"equal, {total} tokens" if result.equal else _difference(result)
        echo(f"{result.stretch.name}: {said}")
    return result


def _difference(result: Replayed) -> str:
    got = "nothing" if result.got is None else f"token {result.got}"
    total = len(result.stretch.tokens)
    return f"differs at token {result.tokens} of {total}: {result.expected} was written then, now {got}"


def _as_json(result: Replayed) -> dict[str, Any]:
    return {
        "reply": result.stretch.node,
        "run": result.stretch.run,
        "tokens": len(result.stretch.tokens),
        "mix_changes": len(result.stretch.recorded.changes),
        "equal": result.equal,
        "first_difference": None if result.equal else result.tokens,
        "expected": result.expected,
        "got": result.got,
    }
