"""How many modules of persona_tui one prompt crosses, in the app and on the command line, and a new persona.

    python benchmarks/crossings.py [--modules]

Counted are the modules of which a function runs between handing over the prompt and the end of the reply, on
all threads, and the calls that lead from one module into another. Two figures for the app: all that runs, and
what is left without drawing (widgets, screens and what lays out their text), which goes on at its own pace;
of that, so many belong to the app itself. The model is loaded before. A persona's file is read by the first
reply that speaks as it: `generate` is counted then and once more, the app for its second reply.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import persona_tui
from persona_tui.core.workspace import packaged_root
from persona_tui.project.project import Project

ROOT = str(Path(persona_tui.__file__).parent)
QUESTION = "What is bread?"
DRAWING = (
    "tui.widgets",
    "tui.screens",
    "tui.views",
    "tui.blocks",
    "tui.markdown",
    "tui.token_layout",
    "tui.transcript",
    "tui.theme",
    "tui.keys",
    "tui.fluency",
    "tui.collector",
)


class Crossings:
    """Counts what runs while it is switched on.

    Attributes:
        modules: calls by the module that they go to.
        calls: calls from one module of the package into another.
    """

    def __init__(self) -> None:
        self.modules: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._on = False
        threading.setprofile(self._profile)  # for threads that are started from now on
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._on or event != "call" or not frame.f_code.co_filename.startswith(ROOT):
            return
        name, caller = _module(frame), frame.f_back
        self.modules[name] += 1
        if caller is not None and caller.f_code.co_filename.startswith(ROOT) and _module(caller) != name:
            self.calls[_module(caller), name] += 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count within."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def named(self, drawing: bool = True) -> list[str]:
        """Return the modules, with or without those that only draw."""
        return sorted(name for name in self.modules if drawing or not name.startswith(DRAWING))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?")).removeprefix("persona_tui.")


def in_the_app(workspace: Path) -> Crossings:
    """Say one thing in the app, without a terminal."""
    from persona_tui.core.mix import Mix
    from persona_tui.tui.app import PersonaApp

    found = Crossings()

    async def talk() -> None:
        app = PersonaApp(Project.open(workspace), Mix({"sage": 1.0}))
        async with app.run_test(size=(120, 40)) as pilot:
            await _until(lambda: app.model_ready)
            for count in range(2):  # the first reply reads files that the second one finds read
                await pilot.pause(1.0)
                app.main.prompt.replace_text(QUESTION)
                await pilot.pause(1.0)
                with found.counting() if count else contextlib.nullcontext():
                    await pilot.press("enter")
                    await _until(lambda: not app.busy)
        app.worker.close(60)
        app.chat.close()

    asyncio.run(talk())
    return found


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def on_the_command_line(workspace: Path) -> list[Crossings]:
    """Have a prompt answered by `generate`, twice, and once by the library's `SteeringEngine.generate`."""
    from click.testing import CliRunner

    from persona_tui.cli.generate import generate
    from persona_tui.cli.options import Invocation

    invocation = Invocation(workspace=workspace)
    invocation.project.engine.reply([{"role": "user", "content": QUESTION}])
    counted = []
    for _ in range(2):
        counted.append(Crossings())
        with counted[-1].counting(), contextlib.redirect_stdout(io.StringIO()):
            result = CliRunner().invoke(generate, [QUESTION, "--persona", "sage"], obj=invocation)
        if result.exception is not None:
            raise result.exception
    counted.append(Crossings())
    engine = invocation.project.engine
    with counted[-1].counting():
        engine.generate(QUESTION, "sage")
    return counted


def creating(workspace: Path) -> Crossings:
    """Make a persona from a description, and calibrate it; what that takes is imported before."""
    import_module("persona_tui.extraction.personas")
    from click.testing import CliRunner

    from persona_tui.cli.create import create
    from persona_tui.cli.options import Invocation

    invocation = Invocation(workspace=workspace)
    invocation.project.engine.reply([{"role": "user", "content": QUESTION}])
    found = Crossings()
    with found.counting():
        options = ["smith", "--description", "a grumpy blacksmith", "--questions", "4", "--samples", "1"]
        result = CliRunner().invoke(create, options, obj=invocation)
    if result.exception is not None:
        raise result.exception
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--modules", action="store_true", help="name the modules, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        for name in ("vectors", "datasets"):
            shutil.copytree(packaged_root() / name, workspace / name)
        settings = "model: {name: tiny}\ngeneration: {max_new_tokens: 12, seed: 1}\n"
        settings += "calibration: {questions: 2, max_new_tokens: 8}\n"
        (workspace / "config.yaml").write_text(settings)
        (line, again, engine), app = on_the_command_line(workspace), in_the_app(workspace)
        made = creating(workspace)
    sys.setprofile(None)
    print(f"generate: {len(line.named())} modules, {line.calls.total()} calls between them")
    print(f"generate again: {len(again.named())} modules, {again.calls.total()} calls between them")
    print(
        f"SteeringEngine.generate: {len(engine.named())} modules, {engine.calls.total()} calls between them"
    )
    own = sum(name.startswith("tui.") for name in app.named(drawing=False))
    print(
        f"app: {len(app.named(drawing=False))} modules without drawing ({own} of them the app's own), "
        f"{len(app.named())} with it, {app.calls.total()} calls between them"
    )
    print(f"create: {len(made.named())} modules, {made.calls.total()} calls between them")
    if arguments.modules:
        print("generate:", *line.named())
        print("SteeringEngine.generate:", *engine.named())
        print("app:", *app.named(drawing=False))
        print("create:", *made.named())
        print("drawing:", *(name for name in app.named() if name.startswith(DRAWING)))


if __name__ == "__main__":
    main()
