"""Pin all that `.[dev]` and every extra install: make a fresh environment, and write constraints.txt.

`make pin` runs it. The CPU build of torch is asked for by its version alone, so that every platform finds its
own build of the same release.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
OWN = "persona-tui"
HEAD = (
    "# What the tests and the shipped vectors were made with. `make` installs with these;\n"
    "# `make pin` writes them.\n"
)


def main() -> None:
    """Write constraints.txt."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        # torch first and alone: with a version it resolves to what the index has for this machine.
        for wanted in ([TORCH], [TORCH, "-e", f"{ROOT}[dev,gguf,plots,quantization]"]):
            subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        frozen = subprocess.run(
            [python, "-m", "pip", "freeze", "--exclude", OWN], check=True, text=True, stdout=subprocess.PIPE
        ).stdout
    (ROOT / "constraints.txt").write_text(HEAD + pinned(frozen), encoding="utf-8")


def pinned(frozen: str) -> str:
    """Return the lines `name==version` of `pip freeze`, without a build's name and without addresses."""
    lines = (line.partition("+")[0] for line in frozen.splitlines() if "==" in line)
    return "".join(f"{line}\n" for line in lines if "@" not in line)


if __name__ == "__main__":
    main()
