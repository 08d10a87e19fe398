"""Try the lowest and the newest versions that pyproject.toml admits: `python -m tools.matrix [lowest]`.

For each end of the ranges it makes a new virtual environment in a temporary folder, installs the package with
its extras there, runs the fast tests of the parts that lean on libraries most, and prints a table. It takes
about half an hour on two cores, and the network. torch stays at the version that constraints.txt names:
another may bring gigabytes of libraries for GPUs. So its own range is not tried. Neither are those of the
tools for development, which nobody who uses the package has: they are the newest at both ends.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

from tools.pin import EXTRAS, REPOSITORY, pinned, pinned_torch

TESTS = ("tests/model", "tests/steering", "tests/cli")
FAST = "not slow"
ENDS = ("lowest", "newest")
_FLOOR = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)")


def floors() -> dict[str, str]:
    """Return the lowest version of every requirement by name, those of the users' extras included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "dev"}
    wanted = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]
    found = {match[1]: match[2] for each in wanted if (match := _FLOOR.match(each))}
    return {name: version for name, version in found.items() if name != "torch"}


def install(folder: Path, end: str) -> tuple[Path, dict[str, str]]:
    """Return the interpreter of a new virtual environment, and the versions that are in it, by name.

    Raises:
        subprocess.CalledProcessError: pip finds no versions that fit together; its words are on stderr.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    limits = folder / "limits.txt"
    lowest = [f"{name}=={version}" for name, version in floors().items()] if end == "lowest" else []
    limits.write_text("\n".join([pinned_torch(), *lowest]) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(limits)]
    subprocess.run([*pip, pinned_torch()], check=True)
    subprocess.run([*pip, "-e", f"{REPOSITORY}[{EXTRAS}]"], check=True)
    return python, {_folded(name): version for name, version in map(_split, pinned(python))}


def tested(python: Path, tests: list[str]) -> tuple[int, str]:
    """Return the status and the last line of the fast tests, whose output passes through."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", FAST, *(tests or TESTS)]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    return process.returncode, next((line for line in reversed(lines) if line), "")


def table(versions: dict[str, dict[str, str]], results: dict[str, str]) -> str:
    """Return what was installed and how the tests went, as a table in Markdown."""
    ends = list(versions)
    rows = [["", *ends], ["---"] * (len(ends) + 1)]
    for name in ["torch", *floors()]:
        rows.append([name, *(versions[end].get(_folded(name), "") for end in ends)])
    rows.append(["tests", *(results[end] for end in ends)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _split(line: str) -> tuple[str, str]:
    name, _, version = line.partition("==")
    return name, version


def _folded(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Try both ends, or one; the status is 1 if a test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("end", nargs="*", choices=[*ENDS, []], help="lowest, newest; by default both")
    parser.add_argument("--tests", action="append", default=[], help="a folder or file of tests instead")
    options = parser.parse_args()
    versions: dict[str, dict[str, str]] = {}
    results: dict[str, str] = {}
    statuses = []
    for end in options.end or ENDS:
        with tempfile.TemporaryDirectory(prefix=f"persona-tui-{end}-") as folder:
            python, versions[end] = install(Path(folder), end)
            status, results[end] = tested(python, options.tests)
            statuses.append(status)
    print(table(versions, results))
    return int(any(statuses))


if __name__ == "__main__":
    raise SystemExit(main())
