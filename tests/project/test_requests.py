"""Requests that outlive the run that made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import JobContext
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import FromArchetype, FromDescription, Project
from persona_tui.project.requests import JobRequest, Unfinished, create_request, prepare_request

# Another run of the program, which writes a request down and is then killed.
KILLED = """
import os, sys
from pathlib import Path
from persona_tui.project.requests import JobRequest, Unfinished
from persona_tui.core.workspace import Workspace
unfinished = Unfinished(Workspace(Path(sys.argv[1])))
unfinished.add(JobRequest("create", {"name": "wizard"}, "builtin"))
unfinished.remove(unfinished.add(JobRequest("prepare")))
os._exit(1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.open(tmp_path / "workspace")


def kill_a_run(workspace: Workspace) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(workspace.root)], check=False)


def test_what_a_killed_run_left_is_found_once(project: Project) -> None:
    kill_a_run(project.workspace)
    unfinished = Unfinished(project.workspace)
    found = unfinished.take_over()
    assert [request.name for request in found.values()] == ["create wizard"]
    assert Unfinished(project.workspace).take_over() == {}, "this run lives, and has it now"
    unfinished.close()
    assert list(Unfinished(project.workspace).take_over().values()) == list(found.values())


def test_nothing_is_left_of_what_has_ended(project: Project) -> None:
    unfinished = Unfinished(project.workspace)
    unfinished.remove(unfinished.add(prepare_request(project)))
    unfinished.close()
    assert Unfinished(project.workspace).take_over() == {}
    assert not list((project.workspace.root / "jobs").glob("*"))


@pytest.mark.parametrize("source", [FromArchetype("sage"), FromDescription("a grumpy wizard")])
def test_a_request_survives_being_written_down(
    project: Project, source: FromArchetype | FromDescription
) -> None:
    request = create_request(project, "sage", source)
    again = JobRequest(**json.loads(json.dumps({**vars(request)})))
    assert again == request
    with pytest.raises(PersonaTuiError, match="already"):
        again.run(project, JobContext())


def test_a_job_that_nobody_knows_is_an_error(project: Project) -> None:
    with pytest.raises(PersonaTuiError, match="another version"):
        JobRequest("dance").run(project, JobContext())


def test_a_file_that_holds_something_else_is_passed_over(project: Project) -> None:
    kill_a_run(project.workspace)
    folder = next((project.workspace.root / "jobs").iterdir())
    (folder / "000.json").write_text("not JSON")
    (folder / "009.json").write_text('{"colour": "red"}')
    assert len(Unfinished(project.workspace).take_over()) == 1
