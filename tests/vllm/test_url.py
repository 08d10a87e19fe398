"""`--engine URL`: a model that a server lends answers, reads and makes vectors as one in this process."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_tui.chat.chat import Chat
from persona_tui.core.connection import KEY_VARIABLE
from persona_tui.core.errors import EndpointError, GenerationError, PersonaTuiError
from persona_tui.core.jobs import JobContext
from persona_tui.model import Interventions, ModelWrapper, Reading, Sampling, Watch
from persona_tui.project.models import ModelChoice, load, with_model
from persona_tui.project.project import Project
from persona_tui.remote.project import RemoteProject
from persona_tui.vllm.client import ServedModel, connect
from tests.extraction.conftest import fill_workspace
from tests.server.conftest import serving

from .conftest import KEY, Server
from .test_engine import (
    ALL,
    GREEDY,
    QUESTIONS,
    asked,
    near,
    ours,
    rows_of,
    test_a_reply_is_read_again,
    test_a_stream_tells_the_same,
    test_floors_on_ever_other_axes,
    test_likelihoods,
    test_replies_and_their_means,
    test_replies_are_added_up_where_they_were_written,
    test_text_is_read_in_the_middle_of_a_stream,
    test_the_same_seed_has_the_same_reply,
    test_what_is_foreseen_changes_no_answer,
    test_what_is_read_of_text,
    test_who_gives_up_leaves_nothing_behind,
    ways,
)
from .test_jobs import PROMPTS, SETTINGS, fit_on, opened
from .test_serve import ASKED, send, slug

__all__ = [
    "ours",
    "test_a_reply_is_read_again",
    "test_a_stream_tells_the_same",
    "test_floors_on_ever_other_axes",
    "test_likelihoods",
    "test_replies_and_their_means",
    "test_replies_are_added_up_where_they_were_written",
    "test_text_is_read_in_the_middle_of_a_stream",
    "test_the_same_seed_has_the_same_reply",
    "test_what_is_foreseen_changes_no_answer",
    "test_what_is_read_of_text",
    "test_who_gives_up_leaves_nothing_behind",
]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="module")
def inside(server: Server) -> ServedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return ServedModel.connect(*connect(server.url))


def test_it_is_the_model_that_the_server_has(inside: ServedModel, ours: ModelWrapper) -> None:
    assert inside.fingerprint == ours.fingerprint.partition(".")[0]  # the rest is of whole matrices
    assert inside.sketch == ours.sketch
    assert inside.n_parameters == ours.n_parameters
    assert inside.encode(asked("Hi").messages) == ours.encode(asked("Hi").messages)


def test_what_a_server_cannot_do_is_one_line(inside: ServedModel) -> None:
    with pytest.raises(GenerationError, match="context holds"):
        inside.generate([asked("What is bread? " * 40)], GREEDY)
    with pytest.raises(GenerationError, match=r"shape \[32\]"):
        inside.generate([asked("Hi")], GREEDY, Interventions({1: torch.ones(32)}))
    assert inside.generate([asked("Hi")], GREEDY)[0].token_ids


def test_a_watch_reads_in_the_passes_that_write(inside: ServedModel, ours: ModelWrapper) -> None:
    """What is read of a message is the same; of a reply, the server may have written more meanwhile."""
    watch = Watch(ALL, (1, 2), after=3, every=2)

    def readings(model: ModelWrapper) -> list[Reading]:
        events = model.stream([asked("What is bread?")], GREEDY, watch=watch)
        return [each.reading for each in events if each.reading is not None]

    there, here = readings(inside), readings(ours)
    assert [each.n_tokens for each in there] == [each.n_tokens for each in here] and len(here) > 3
    for recipe in ("mean", "last", "parts"):
        near(getattr(there[0], recipe), getattr(here[0], recipe))
    whole = ours.generate([asked("What is bread?")], GREEDY, capture_layers=(1, 2))[0].activations
    assert whole is not None
    apart = [(there[-1].mean - each).norm() / each.norm() for each in (here[-1].mean, whole.response)]
    assert min(apart) < 1e-5


def test_a_mix_that_changes_while_it_speaks(inside: ServedModel, ours: ModelWrapper, workspace: Path) -> None:
    """The server does not wait: it changes at one of the next tokens, and is exact from there on."""
    known, long = ways(workspace, ours, inside), Sampling(max_new_tokens=400, temperature=0)
    question = asked("Who are you?")

    def spoken(model: ModelWrapper, at: int) -> list[int]:
        steps = iter([known["plain"], *[None] * at, known["steered"]])
        return [each.token_id for each in model.stream([question], long, lambda: next(steps, None))]

    plain = spoken(ours, 400)
    assert len(plain) == 400  # a shorter one may have ended before the change arrives
    tries = (spoken(inside, 3) for _ in range(20))
    there = next(each for each in tries if each != plain)
    apart = next(at for at, (one, other) in enumerate(zip(there, plain, strict=False)) if one != other)
    assert any(there == spoken(ours, at) for at in range(apart, max(apart - 20, -1), -1))


def ask(url: str, path: str, body: object, key: str = KEY, method: str = "POST") -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/persona_tui{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


ERRAND = {"name": "x"}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/ways", b"no tensors", "cannot be read"),
        ("/orders", b"{", "Invalid JSON"),
        ("/orders", [{"prompt": [1], "errand": {"name": "x", "way": "unknown"}}], "not known here"),
        ("/orders", [{"prompt": [1], "errand": {"name": "x", "twin": "y"}}], "come together"),
        ("/orders", [{"prompt": [1] * 9999, "errand": {"name": "x", "twin": "y"}}], "guided prompt"),
        ("/orders", [{"prompt": [1], "errand": {**ERRAND, "spans": [[0, 1]] * 99999}}], "can have"),
        ("/orders", [{"prompt": [1], "errand": {**ERRAND, "spans": [[0]]}}], "two positions"),
        ("/orders", [{"prompt": [1], "errand": {**ERRAND, "scored": 1}}], "a position of the prompt"),
        ("/orders", [{"prompt": [1], "errand": ERRAND}] * 2, "the same name"),
        ("/sums", {"names": ["x"], "layers": [99]}, "the layers are"),
        ("/sums", {"names": 3}, "names is"),
        ("/pools", {"groups": ["x"], "layers": []}, "names is"),
        ("/pools", {"groups": [], "layers": [99]}, "the layers are"),
        ("/change", {"ways": {"x": "unknown"}}, "ways is"),
        ("/change", {"ways": {}, "limits": {"x": "y"}}, "limits is"),
        ("/files/../config.json", {}, "no"),
    ],
)
def test_what_the_door_does_not_take(server: Server, path: str, body: object, reason: str) -> None:
    status, said = ask(server.url, path, body)
    assert status in (400, 404) and reason in said
    assert send(server.url, {"model": slug(server.url), **ASKED})[0] == 200  # the server goes on


def test_no_weights_and_no_other_files_come_through(server: Server) -> None:
    for name in ("model.safetensors", "..%2Fconfig.json", "config.yaml", "passwd"):
        assert ask(server.url, f"/files/{name}", b"", method="GET")[0] in (400, 404)
    assert ask(server.url, "", b"", key="wrong", method="GET")[0] == 401


def test_who_goes_away_leaves_nothing_behind(server: Server, inside: ServedModel) -> None:
    """As many as there are places for sums, and then some."""
    spans = [[0, -1]] * (inside.driver.about.places // 2)
    for at in range(5):
        errand = {"name": f"gone-{at}", "spans": spans}
        body = json.dumps([{"prompt": [5, 6, 7], "errand": errand, "tokens": 200}]).encode()
        headers = {"Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{server.url}/v1/persona_tui/orders", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
    assert inside.generate([asked("Hi")], GREEDY, capture_layers=ALL)[0].activations is not None


def test_guided_replies_beside_others(
    server: Server, inside: ServedModel, ours: ModelWrapper, workspace: Path
) -> None:
    """A reply and its twin are in the same passes, whatever else the server does."""
    guided = ways(workspace, ours, inside)["guided"]
    long = Sampling(max_new_tokens=40, temperature=0)
    requests = [asked(each) for each in QUESTIONS]
    wanted = ours.generate(requests, long, rows_of(guided, len(requests)))
    busy = ServedModel.connect(*connect(server.url))
    others = [asked(f"{each} And {at}? {'Tell me more. ' * at}") for at in range(8) for each in QUESTIONS[:2]]
    work = threading.Thread(target=lambda: [busy.generate(others, long) for _ in range(4)])
    work.start()
    found = []
    while work.is_alive() or not found:
        found.append(inside.generate(requests, long, rows_of(guided, len(requests))))
    work.join()
    assert len(found) > 1
    told = {tuple(tuple(each.token_ids) for each in replies) for replies in found}
    assert told == {tuple(tuple(each.token_ids) for each in wanted)}
    plain = ours.generate(requests, long, rows_of(replace(guided, plausibility=0.0), len(requests)))
    assert [each.token_ids for each in plain] != [each.token_ids for each in wanted]


def test_two_engines_at_once(server: Server, inside: ServedModel) -> None:
    wanted = [each.token_ids for each in inside.generate([asked("Hi"), asked("Who are you?")], GREEDY)]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        model = ServedModel.connect(*connect(server.url))
        for _ in range(3):
            replies = model.generate([asked("Hi"), asked("Who are you?")], GREEDY, capture_layers=ALL)
            found.setdefault(number, []).append([each.token_ids for each in replies])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [wanted] * 3, 1: [wanted] * 3}


def on_laptop(root: Path, url: str) -> Project:
    """A workspace whose machine has no such model."""
    fill_workspace(root)
    (root / "config.yaml").write_text(SETTINGS)
    return Project.open(root, engine=url)


def test_a_persona_is_made_there_and_kept_here(server: Server, tmp_path: Path, model_folder: Path) -> None:
    there = on_laptop(tmp_path / "there", server.url)
    here = opened(tmp_path / "here", model_folder, "transformers")
    for project in (there, here):
        project.extract_axes(JobContext())
    one = there.create_persona("grim", PROMPTS, JobContext()).persona
    other = here.create_persona("grim", PROMPTS, JobContext()).persona
    assert one.metadata["counts"] == other.metadata["counts"]
    for recipe, raw in one.raw.items():
        assert (raw - other.raw[recipe]).norm() < 1e-4 * other.raw[recipe].norm(), recipe
    assert one.calibration is not None and other.calibration is not None
    assert one.calibration.gain == pytest.approx(other.calibration.gain, rel=1e-3)
    assert there.engine.reply([{"role": "user", "content": "What is bread?"}]).text
    with pytest.raises(PersonaTuiError, match="no other model"):
        with_model(there, ModelChoice("tiny"))
    load(on_laptop(tmp_path / "app", server.url), JobContext())  # as the app does


def test_our_own_server_stands_in_front(server: Server, tmp_path: Path) -> None:
    """With its native API, guards, policies and `chat --connect`."""
    project = on_laptop(tmp_path / "front", server.url)
    project.create_persona("grim", PROMPTS, JobContext())
    fit_on(project)
    (tmp_path / "laptop").mkdir()
    with serving(project) as running:
        chat = Chat.start(RemoteProject.connect(running.url, workspace=tmp_path / "laptop"))
        try:
            chat.change_mix(weights={"grim": 1.0}, strength=0.5, capping=False)
            events = list(chat.events(chat.say("What is bread?")))
        finally:
            chat.close()
        body = {"model": project.slug, **ASKED, "persona_tui": {"guard": "warn"}}
        told = send(running.url, body)[1]["choices"][0]["persona_tui"]
    assert set(events[0].projections) == {"grim"}
    assert told["guard"]["message"]["label"]


def test_a_job_outlives_the_server(server: Server, tmp_path: Path) -> None:
    """The last test: it ends the server."""
    project = on_laptop(tmp_path, server.url)
    calls = 0

    def kill() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.killpg(server.process.pid, signal.SIGKILL)

    with pytest.raises(GenerationError, match="What is finished is kept; run the command again to go on"):
        project.create_persona("grim", PROMPTS, JobContext(give_way=kill))
    assert "persona-grim" in project.partial().interrupted()
    with pytest.raises(EndpointError, match="nobody answers"):
        Project.open(tmp_path, engine=server.url)
