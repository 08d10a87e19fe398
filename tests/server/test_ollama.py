"""Ollama's own client against the server."""

from __future__ import annotations

import json

import httpx
import ollama
import pytest

from persona_tui.server.run import Server

ASKED = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(server: Server) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=100)


def test_models_are_listed_and_described(client: ollama.Client, http: httpx.Client) -> None:
    names = [model.model for model in client.list().models]
    assert names[0] == "tiny:latest" and "tiny+sage:latest" in names
    shown = client.show("tiny+sage:latest")
    assert shown.capabilities == ["completion"] and shown.details and shown.modelinfo
    assert client.ps().models[0].model == "tiny:latest"
    assert http.get("/api/version").json()["version"] and http.head("/").status_code == 200
    assert client.pull("tiny").status == "success"
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.show("llama3")


def test_a_chat_streams_unless_told_not_to(client: ollama.Client, http: httpx.Client) -> None:
    whole = client.chat("tiny+sage:0.5", messages=ASKED, options=GREEDY)
    parts = list(client.chat("tiny+sage:0.5", messages=ASKED, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    last = parts[-1]
    assert last.done and last.done_reason == whole.done_reason and last.eval_count == whole.eval_count
    assert last.prompt_eval_count and last.total_duration and last.eval_duration
    body = {"model": "tiny+sage:0.5", "messages": ASKED, "options": GREEDY}
    lines = [json.loads(line) for line in http.post("/api/chat", json=body).text.splitlines()]
    assert len(lines) > 2 and [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["persona_tui"]["mix"]["strength"] == 0.5


def test_generate_answers_a_prompt_or_continues_it(client: ollama.Client) -> None:
    asked = client.generate("tiny", "Who are you?", options=GREEDY).response
    assert asked == client.chat("tiny", messages=ASKED, options=GREEDY).message.content
    raw = client.generate("tiny", "The bread is", raw=True, options=GREEDY).response
    assert raw and raw != client.generate("tiny", "The bread is", options=GREEDY).response
    assert client.generate("tiny", "").done_reason == "load"


async def test_the_asynchronous_client_streams(server: Server, client: ollama.Client) -> None:
    said = ""
    stream = await ollama.AsyncClient(host=server.url).chat(
        "tiny", messages=ASKED, options=GREEDY, stream=True
    )
    async for part in stream:
        said += part.message.content or ""
    assert said == client.chat("tiny", messages=ASKED, options=GREEDY).message.content


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "llama3"}, 404, "does not exist"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"format": "json"}, 400, "format"),
        ({"options": {"top_k": 40}}, 400, "top_k"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
        ({"messages": [{"role": "user", "content": "bread " * 5000}]}, 413, "tokens"),
    ],
)
def test_errors_are_in_ollamas_form(
    http: httpx.Client, body: dict[str, object], status: int, words: str
) -> None:
    response = http.post("/api/chat", json={"model": "tiny", "messages": ASKED, **body})
    assert response.status_code == status and words in response.json()["error"]


def test_what_is_not_done_here_says_so(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed("tiny", "x")
    assert caught.value.status_code == 501
