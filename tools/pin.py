"""Pin everything that `make` installs: `python -m tools.pin [constraints.txt]`.

Installs the package with its extras, at the newest versions that pyproject.toml admits, into a new virtual
environment, and writes down what is there then. torch stays at the version that constraints.txt names now:
another may bring gigabytes of libraries for GPUs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = "dev,plots,quantization"
HEAD = "# Everything that `make` installs, and what the tests and the shipped vectors were made with.\n"


def pinned(python: Path) -> list[str]:
    """Return what is installed, as `name==version` without a build's own suffix."""
    frozen = subprocess.run(
        [python, "-m", "pip", "freeze", "--exclude", "pip", "--all"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^+\s]+)", frozen, re.MULTILINE)
    return [f"{name}=={version}" for name, version in found if name != "persona-tui"]


def pinned_torch() -> str:
    """Return the requirement of torch that constraints.txt holds."""
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==\S+", text, re.MULTILINE)
    if torch is None:
        sys.exit("constraints.txt does not name a version of torch")
    return torch[0]


def main() -> None:
    """Write the constraints."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "constraints.txt"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, pinned_torch()], check=True)
        subprocess.run([*pip, "-e", f"{REPOSITORY}[{EXTRAS}]", pinned_torch()], check=True)
        target.write_text(HEAD + "".join(f"{line}\n" for line in pinned(python)), encoding="utf-8")


if __name__ == "__main__":
    main()
