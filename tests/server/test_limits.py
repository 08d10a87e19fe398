"""What a server takes on, whom it lets in, and clients that go away."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from persona_tui.core.workspace import packaged_root
from persona_tui.project.project import Project
from persona_tui.server.limits import Capacity
from persona_tui.server.run import Server

from .conftest import serving

ASKED = [{"role": "user", "content": "Tell me a long story."}]
LONG = {"model": "tiny", "messages": ASKED, "temperature": 5, "top_p": 1, "max_tokens": 1500, "seed": 1}


@pytest.fixture(scope="module")
def endless(project: Project) -> Iterator[Server]:
    """A server with room for little, whose replies hardly ever end by themselves."""
    limits = Capacity(rows=2, waiting=1, tokens=700, body=20_000, seconds=600)
    with serving(project, limits=limits) as server:
        model = server.service.model
        ends, model._end_tokens = model._end_tokens, frozenset()
        yield server
        model._end_tokens = ends


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def idle(server: Server) -> bool:
    return server.service.worker.rows == 0 and server.service.worker.waiting == 0


def test_a_full_queue_says_so_and_a_client_that_goes_away_frees_its_row(endless: Server) -> None:
    worker = endless.service.worker
    with (
        httpx.Client(base_url=endless.url, timeout=100) as client,
        client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as first,
    ):
        lines = first.iter_lines()  # a dropped iterator would hang up
        next(lines)
        until(lambda: worker.rows == 1, "one is written")
        # Not streamed, and it hangs up before anything was said.
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=LONG, timeout=1)
        until(lambda: worker.waiting == 0, "who waited and went away is forgotten")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.post, "/v1/chat/completions", json={**LONG, "max_tokens": 2})
            until(lambda: worker.waiting == 1, "one waits")
            full = client.post("/v1/chat/completions", json=LONG)
            assert full.status_code == 429 and full.headers["retry-after"]
            assert full.json()["error"]["code"] == "queue_full"
            assert client.post("/api/generate", json={"model": "tiny", "prompt": "x"}).status_code == 429
            first.close()  # the reader of the running reply hangs up: the next batch begins
            assert waiting.result(60).status_code == 200
    until(lambda: idle(endless), "nothing is left")


def test_between_two_tokens_others_are_served(endless: Server) -> None:
    with (
        httpx.Client(base_url=endless.url, timeout=100) as client,
        client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        assert client.post("/v1/moderations", json={"input": "How do I bake?"}).status_code == 200
        scored = client.post("/score", json={"input": ["I hear you."], "traits": ["crisis_recognition"]})
        assert list(scored.json()["results"][0]["scores"]) == ["crisis_recognition"]
        assert endless.service.worker.rows == 1 and next(lines) is not None
    until(lambda: idle(endless), "nothing is left")


def test_what_is_too_long_is_not_taken(endless: Server) -> None:
    with httpx.Client(base_url=endless.url, timeout=100) as client:
        prompt = {**LONG, "messages": [{"role": "user", "content": "bread " * 1000}]}
        assert client.post("/v1/chat/completions", json=prompt).status_code == 413
        large = client.post("/v1/chat/completions", json={**LONG, "user": "x" * 30_000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

        def chunks() -> Iterator[bytes]:
            yield from (b" " * 1000 for _ in range(40))

        assert client.post("/v1/chat/completions", content=chunks()).status_code == 413
        broken = client.post("/v1/chat/completions", content=b'{"model": ')
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
        deep = client.post("/v1/chat/completions", content=b"[" * 15_000)
        assert deep.status_code == 400
        lone = json.dumps({**LONG, "max_tokens": 1, "messages": [{"role": "user", "content": "\ud800"}]})
        assert client.post("/v1/chat/completions", content=lone.encode()).status_code == 200


def test_what_takes_too_long_ends(project: Project) -> None:
    with serving(project, limits=Capacity(seconds=0.3)) as server:
        model = server.service.model
        ends, model._end_tokens = model._end_tokens, frozenset()
        try:
            response = httpx.post(f"{server.url}/v1/chat/completions", json=LONG, timeout=100)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
            streamed = httpx.post(
                f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}, timeout=100
            )
            assert '"code":"timeout"' in streamed.text and streamed.text.endswith("data: [DONE]\n\n")
            until(lambda: idle(server), "nothing is left")
        finally:
            model._end_tokens = ends


def test_a_key_is_asked_for_and_only_this_machines_names_are_answered(project: Project) -> None:
    with serving(project, api_key="sesame") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/healthz").status_code == 200
        refused = client.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/tags", headers={"Authorization": "Bearer sesame"}).status_code == 200
        foreign = {"Authorization": "Bearer sesame", "Host": "evil.example:80"}
        assert client.get("/v1/models", headers=foreign).status_code == 403
        page = client.get("/metrics", headers={"Authorization": "Bearer sesame"}).text
        assert 'persona_tui_requests_total{path="/v1/models",status="401"} 1.0' in page


@pytest.mark.slow
def test_the_command_serves_and_finishes_what_runs_when_it_is_told_to_end(tmp_path: Path) -> None:
    for name in ("datasets", "vectors"):
        shutil.copytree(packaged_root() / name, tmp_path / name, ignore=shutil.ignore_patterns("partial"))
    (tmp_path / "config.yaml").write_text("model: {name: tiny}\n", encoding="utf-8")
    command = [sys.executable, "-m", "persona_tui", "--workspace", str(tmp_path), "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = line.split(" at ")[1].split()[0].rstrip(".")
        curl = shutil.which("curl")
        if curl is not None:
            told = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 4})
            done = subprocess.run(
                [curl, "-sf", f"{url}/v1/chat/completions", "-d", told], capture_output=True, timeout=100
            )
            assert done.returncode == 0 and b'"choices"' in done.stdout
        body = {**LONG, "max_tokens": 60, "temperature": 2, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=100) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            said = "\n".join(lines)
        assert '"finish_reason":"' in said and said.rstrip().endswith("data: [DONE]")
        out, notes = process.communicate(timeout=60)
        assert out == "" and "POST /v1/chat/completions" in notes and "Traceback" not in notes
    finally:
        process.kill()


def test_an_address_that_is_taken_is_said(server: Server, project: Project) -> None:
    from persona_tui.core.errors import PersonaTuiError

    port = int(server.url.rpartition(":")[2])
    with pytest.raises(PersonaTuiError, match="Cannot listen"):
        Server(project, port=port)
