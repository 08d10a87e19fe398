"""`doctor`: whether this machine, this workspace and this model are ready, and what to do if not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from persona_tui.project.project import Project

State = Literal["ok", "note", "WRONG"]

_MIN_COLUMNS, _MIN_LINES = 80, 24
_PROBE = 1 << 16  # bytes that are written to see whether that can be done
_LITTLE_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One finding: `note` is worth knowing, `WRONG` keeps something from working."""

    name: str
    state: State
    detail: str


@click.command()
@json_option
@pass_invocation
def doctor(invocation: Invocation, /, as_json: bool) -> None:
    """Check the machine, the workspace and the model.

    The exit status is 1 if something is WRONG; notes are for information only.
    """
    found: list[Check] = []
    for check in _checks(invocation):
        found.append(check)
        if not as_json:
            print_table([[f"{check.state:<5}", f"{check.name:<12}", check.detail]])
    if as_json:
        print_json([asdict(check) for check in found])
    if any(check.state == "WRONG" for check in found):
        click.get_current_context().exit(1)


def _checks(invocation: Invocation) -> Iterator[Check]:
    yield _guarded("python", _python)
    yield _guarded("torch", _torch)
    yield _guarded("transformers", _transformers)
    yield _guarded("device", _device)
    yield _guarded("memory", _memory)
    workspace = _guarded("workspace", lambda: _workspace(invocation))
    yield workspace
    if workspace.state != "WRONG":
        project = invocation.project
        yield _guarded("datasets", lambda: _datasets(project))
        model = _guarded("model", lambda: _model(project))
        yield model
        yield _guarded("axes", lambda: _axes(project))
        yield _guarded("personas", lambda: _personas(project))
        yield _guarded("monitor", lambda: _monitor(project))
    yield _guarded("terminal", _terminal)


def _guarded(name: str, check: Callable[[], Check | tuple[State, str]]) -> Check:
    """Whatever goes wrong in a check is its finding."""
    try:
        found = check()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Check(name, "WRONG", text)
    return found if isinstance(found, Check) else Check(name, *found)


def _python() -> tuple[State, str]:
    version = platform.python_version()
    state: State = "ok" if sys.version_info >= (3, 11) else "WRONG"
    return state, f"{version} ({sys.executable})" + ("" if state == "ok" else ", 3.11 or later is needed")


def _torch() -> tuple[State, str]:
    import torch

    return "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"


def _transformers() -> tuple[State, str]:
    import transformers

    major = int(transformers.__version__.partition(".")[0])
    return ("ok" if major == 5 else "WRONG"), transformers.__version__ + (
        "" if major == 5 else ", 5.x is needed"
    )


def _device() -> tuple[State, str]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return "ok", ", ".join(f"{each.name} ({_gigabytes(each.total_memory)})" for each in names)
    if torch.backends.mps.is_available():
        return "ok", "Apple GPU (mps)"
    return (
        "note",
        f"no GPU, {os.cpu_count()} CPU cores: small models are quick, large ones slow",
    )


def _memory() -> tuple[State, str]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "note", "unknown on this system"
    return ("note" if total < _LITTLE_MEMORY else "ok"), f"{_gigabytes(free)} free of {_gigabytes(total)}"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _workspace(invocation: Invocation) -> tuple[State, str]:
    project = invocation.project
    for folder in (project.workspace.root, project.workspace.vectors):
        _check_writable(folder)
    return "ok", str(project.workspace.root)


def _check_writable(folder: Path) -> None:
    from persona_tui.core.files import atomic_write_text

    probe = folder / f".doctor-{os.getpid()}"
    try:
        atomic_write_text(probe, "x" * _PROBE)  # a file without a byte has room on a full disk, too
    finally:
        probe.unlink(missing_ok=True)


def _datasets(project: Project) -> tuple[State, str]:
    return "ok", f"{project.check_datasets()} records, no problems"


def _model(project: Project) -> tuple[State, str]:
    model = project.model
    shape = f"{model.n_layers} layers of {model.hidden_size}, {model.n_parameters / 1e6:,.1f}M parameters"
    return "ok", f"{model.name} ({model.source}) on {model.device}: {shape}"


def _axes(project: Project) -> tuple[State, str]:
    axes = project.personas.axes
    if axes is None:
        return "WRONG", f"none for {project.settings.model.name}: run persona-tui init"
    if project.model_loaded and (unenforced := project.engine.unenforced(project.default_mix())):
        return "WRONG", unenforced
    said = f"{' and '.join(axes.names)}, layers {axes.layers[0]} to {axes.layers[-1]}"
    doubt = axes.doubt("safety")
    return ("note", f"{said}. {doubt}") if doubt else ("ok", said)


def _personas(project: Project) -> tuple[State, str]:
    names = project.personas.list_available()
    for name in names:
        project.personas.get(name)
    if not names:
        return "note", "none yet: run persona-tui init"
    found = f"{len(names)}: {', '.join(names)}"
    return ("note", f"{found}. {' '.join(project.notes)}") if project.notes else ("ok", found)


def _monitor(project: Project) -> tuple[State, str]:
    settings = project.settings.monitoring
    if settings.guard == "critique":
        from persona_tui.monitors.critique_trial import trial

        if not (found := trial(project.model)).works:
            return "WRONG", f"guard: critique, but {found.sentence}"
    if settings.monitor not in project.monitors.names():
        guarded = settings.guard not in ("off", "critique")
        return ("WRONG" if guarded else "note"), "none yet: run persona-tui monitor fit"
    monitor = project.monitors.load(settings.monitor, project.model)
    caught = monitor.caught
    if monitor.weakness:
        return "note", monitor.weakness
    if caught is None:
        return "note", f"{monitor.name}, never measured: run persona-tui monitor evaluate"
    return "ok", f"{monitor.name} catches {caught['value']:.2f} of plain dangerous requests ({caught['on']})"


def _terminal() -> tuple[State, str]:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "note", "none: chat reads lines"
    size = shutil.get_terminal_size()
    term, encoding = os.environ.get("TERM", ""), sys.stdout.encoding
    parts = [term or "TERM is not set", f"{size.columns}x{size.lines}", encoding, _colours(term)]
    small = size.columns < _MIN_COLUMNS or size.lines < _MIN_LINES
    if small:
        parts.append(f"the app needs {_MIN_COLUMNS}x{_MIN_LINES}")
    poor = small or term in ("", "dumb") or "utf" not in encoding.lower()
    return ("note" if poor else "ok"), ", ".join(parts)


def _colours(term: str) -> str:
    if os.environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if os.environ.get("COLORTERM", "") in ("truecolor", "24bit"):
        return "16 million colours"
    return "256 colours" if "256color" in term else "few colours"
