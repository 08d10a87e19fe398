"""`persona-tui serve --engine vllm`: OpenAI's client speaks with personas, and what is wrong is refused."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from pathlib import Path
from statistics import fmean
from typing import Any

import openai
import pytest

from persona_tui.core.config import Settings
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.model import ModelWrapper, Request, Sampling
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vllm.http import rewritten
from persona_tui.vllm.serve import command, environment

from .conftest import KEY, NAME, Server
from .test_plugin import ours

DEFAULTS = Settings().steering
ASKED = {"messages": [{"role": "user", "content": "What is bread?"}], "max_tokens": 16, "temperature": 0}


@pytest.mark.parametrize(
    ("body", "model", "told"),
    [
        ({"model": "m+sage:0.3"}, "m", {"persona": "sage", "strength": 0.3}),
        ({"model": "m+sage"}, "m", {"blend": {"sage": 1.0}}),
        ({"model": "m+trait:warm:0.3"}, "m", {"persona": "trait:warm", "strength": 0.3}),
        ({"model": "m+sage:1+fool:3"}, "m", {"blend": {"sage": 1.0, "fool": 3.0}}),
        ({"model": "m+sage:0.3", "persona_tui": {"strength": 1}}, "m", {"persona": "sage", "strength": 1}),
        ({"model": "m+sage:0.3", "persona_tui": {"persona": "fool"}}, "m", {"persona": "fool"}),
        ({"model": "m", "persona_tui": {"persona": "fool"}}, "m", {"persona": "fool"}),
    ],
)
def test_who_speaks_is_read(body: dict[str, Any], model: str, told: dict[str, Any]) -> None:
    found = rewritten({**body, "seed": 1}, ["m"])
    assert isinstance(found, dict)
    assert found["model"] == model and found["seed"] == 1 and "persona_tui" not in found
    assert json.loads(found["vllm_xargs"]["persona_tui"]) == told


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "other+sage"}, {"model": 3}, [], "x", None])
def test_what_names_nobody_is_left_alone(body: object) -> None:
    assert rewritten(body, ["m"]) is body


def test_who_speaks_is_said_once() -> None:
    twice = {"model": "m+sage", "vllm_xargs": {"persona_tui": '{"persona": "fool"}'}}
    with pytest.raises(PersonaTuiError, match="said twice"):
        rewritten(twice, ["m"])


def test_the_command(workspace: Path, model_folder: Path) -> None:
    settings = Settings.model_validate(
        {"model": {"name": str(model_folder)}, "vllm": {"tensor_parallel": 2, "context": 512}}
    )
    words = command(settings, NAME, "0.0.0.0", 80, 8, ("--seed=3",))
    assert {"--tensor-parallel-size=2", "--max-model-len=512", "--max-num-seqs=8"} < set(words)
    assert words[-1] == "--seed=3" and str(model_folder) in words and "--enforce-eager" not in words
    variables = environment(workspace, NAME, KEY, {"VLLM_PLUGINS": "lora", "HOME": "/root"})
    assert variables["VLLM_PLUGINS"] == "lora,persona_tui" and variables["VLLM_API_KEY"] == KEY
    assert KEY not in " ".join(words)  # other users can see them


def send(url: str, body: object, path: str = "/v1/chat/completions", key: str = KEY) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def read(url: str, body: object) -> str:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def said(url: str, **body: Any) -> str:
    status, answer = send(url, {"model": slug(url), **ASKED, **body})
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def slug(url: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    return str(json.load(urllib.request.urlopen(request, timeout=60))["data"][0]["id"])


@pytest.fixture(scope="module")
def engine(model_folder: Path, workspace: Path) -> SteeringEngine:
    settings = Settings.model_validate({"steering": {"capping_layers": [2, 3]}})
    model = ModelWrapper.load(str(model_folder), device="cpu", dtype="float32")
    return SteeringEngine(model, PersonaManager(workspace / "vectors" / NAME), settings)


def test_three_ways_to_say_who_speaks(server: Server, engine: SteeringEngine) -> None:
    ids, _ = ours(engine, "What is bread?", {"persona": "sage", "strength": 0.7, "capping": False})
    wanted = engine.model.tokenizer.decode(  # type: ignore[attr-defined]
        [each for each in ids if each != 2], skip_special_tokens=True
    )
    mix = {"persona": "sage", "strength": 0.7, "capping": False}
    name = slug(server.url)
    assert said(server.url, persona_tui=mix) == wanted
    assert said(server.url, vllm_xargs={"persona_tui": json.dumps(mix)}) == wanted
    assert said(server.url, model=f"{name}+sage:0.7", persona_tui={"capping": False}) == wanted
    assert said(server.url) != wanted


def client_of(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_openais_own_client(server: Server, engine: SteeringEngine) -> None:
    """Plain, by a voice in the model's name and in its extra field; whole and streamed: what our engine says,
    with its figures."""
    name = slug(server.url)
    create = client_of(server.url).chat.completions.create
    mix = {"persona": "sage", "strength": 0.7}
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"model": name}, {"capping": False}),
        ({"model": f"{name}+sage:0.7"}, mix),
        ({"model": name, "extra_body": {"persona_tui": mix}}, mix),
        ({"model": f"{name}+sage:1+fool:3"}, {"blend": {"sage": 1.0, "fool": 3.0}}),
    ]
    replies = []
    for given, told in ways:
        ids, _ = ours(engine, "What is bread?", {"strength": DEFAULTS.default_strength, **told})
        whole = create(**ASKED, **given).choices[0]
        replies.append(whole.message.content)
        assert whole.message.content == engine.model.tokenizer.decode(  # type: ignore[attr-defined]
            [each for each in ids if each != 2], skip_special_tokens=True
        )
        pieces = [each.choices[0] for each in create(**ASKED, **given, stream=True)]
        assert "".join(each.delta.content or "" for each in pieces) == whole.message.content
        figures = (whole.model_extra or {}).get("persona_tui")
        assert (figures is None) == (given == {"model": name})
        streamed = (pieces[-1].model_extra or {}).get("persona_tui")
        assert (streamed or {}).get("projections") == pytest.approx((figures or {}).get("projections"))
    assert replies[1] == replies[2] and len(set(replies)) == 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"model": "+nobody"}, 'no persona.*"?nobody'),
        ({"model": "+sage:loud"}, "loud"),
        ({"model": "", "extra_body": {"persona_tui": {"persona": "nobody"}}}, "nobody"),
        ({"model": "", "extra_body": {"persona_tui": {"persona": "sage", "volume": 3}}}, "volume"),
        ({"model": "", "extra_body": {"persona_tui": {"persona": "sage", "guard": "refuse"}}}, "cannot hold"),
    ],
)
def test_what_openais_client_is_told(
    server: Server, given: dict[str, Any], reason: str, streamed: bool
) -> None:
    """An error of its own before the first token, and no reply as if nobody had been named."""
    asked = {**ASKED, **given, "model": slug(server.url) + given["model"], "stream": streamed}
    with pytest.raises(openai.BadRequestError, match=f"(?is){reason}") as refused:
        client_of(server.url).chat.completions.create(**asked)
    assert refused.value.status_code == 400 and refused.value.param == "persona_tui"


def test_openais_client_needs_the_key(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        client_of(server.url, "wrong").chat.completions.create(model=slug(server.url), **ASKED)


def test_answers_tell_what_was_found(server: Server, engine: SteeringEngine) -> None:
    """The same figures as our own engine's: means over the reply, on the same scales."""
    mix = Mix({"sage": 1.0}, 0.7, capping=True, percentile=90)
    sampling = Sampling(max_new_tokens=16, temperature=0)
    events = list(engine.stream([{"role": "user", "content": "What is bread?"}], mix=mix, sampling=sampling))
    asked = {"persona": "sage", "strength": 0.7, "capping": True, "percentile": 90}
    body = {"model": slug(server.url), **ASKED, "persona_tui": asked}
    told = send(server.url, body)[1]["choices"][0]["persona_tui"]
    assert told["capped_tokens"] == sum(each.capped > 0 for each in events) > 0
    assert set(told["projections"]) == {"sage", "safety"} <= set(events[0].projections)
    for name, value in told["projections"].items():
        wanted = fmean(each.projections[name] for each in events)
        assert value == pytest.approx(wanted, rel=1e-3, abs=1e-3), name
    streamed = read(server.url, {**body, "stream": True})
    last = [json.loads(each[6:]) for each in streamed.split("\n\n") if each.startswith("data: {")][-1]
    assert last["choices"][0]["persona_tui"]["capped_tokens"] == told["capped_tokens"]
    assert last["choices"][0]["persona_tui"]["projections"] == pytest.approx(told["projections"])
    assert "persona_tui" not in send(server.url, {"model": slug(server.url), **ASKED})[1]["choices"][0]


def test_a_reply_is_compared_with_whom_a_request_names(server: Server) -> None:
    body = {"model": slug(server.url), **ASKED, "persona_tui": {"persona": "sage", "trace": ["fool"]}}
    told = send(server.url, body)[1]["choices"][0]["persona_tui"]
    assert set(told["projections"]) == {"sage", "fool", "safety"}
    assert "nobody" in send(server.url, {**body, "persona_tui": {"trace": ["nobody"]}})[1]


@pytest.mark.parametrize("field", [{"guard": "refuse"}, {"policy": ["warm<1"]}])
def test_what_these_endpoints_cannot_hold_is_refused(server: Server, field: dict[str, Any]) -> None:
    status, said = send(server.url, {"model": slug(server.url), **ASKED, "persona_tui": field})
    assert status == 400 and "cannot hold" in said


def test_a_workspace_that_wants_a_guard_is_not_served_without(workspace: Path) -> None:
    settings = Settings.model_validate({"model": {"name": "tiny"}, "monitoring": {"guard": "refuse"}})
    with pytest.raises(PersonaTuiError, match=r"monitoring\.guard is refuse"):
        command(settings, "tiny", "127.0.0.1", 1, 4)


def test_a_mix_changes_while_its_reply_streams(server: Server, engine: SteeringEngine) -> None:
    """It says what the first mix says, and from some token on what it says with the other."""
    mix = {"persona": "sage", "strength": 0.7, "capping": False}
    body = {"model": slug(server.url), **ASKED, "max_tokens": 400, "stream": True}
    body = {**body, "return_token_ids": True, "persona_tui": {**mix, "changeable": True}}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    for _ in range(20):  # a reply may have ended before the change arrives
        ids: list[int] = []
        told = ""
        status = 0
        with urllib.request.urlopen(request, timeout=60) as answer:
            reply = answer.headers["persona-tui-reply"]
            for line in answer:
                if line.startswith(b"data: {"):
                    ids += json.loads(line[6:])["choices"][0].get("token_ids") or []
                if len(ids) >= 5 and not told:
                    wrong, _ = patch(server.url, reply, {"persona": "nobody"})
                    status, told = patch(server.url, reply, {"strength": -0.7})
        if status != 404:
            break
    assert (wrong, status, json.loads(told)) == (400, 200, {**mix, "strength": -0.7})
    plain, changed = spoken(engine, mix, 400, 1.0), ids
    apart = next(at for at, (one, other) in enumerate(zip(changed, plain, strict=False)) if one != other)
    assert any(changed == spoken(engine, mix, at, -1.0) for at in range(apart - 4, apart + 1))
    assert patch(server.url, reply, {"strength": 0})[0] == 404  # it has ended
    assert patch(server.url, "nobody", {"strength": 0}, key="wrong")[0] == 401


def patch(url: str, reply: str, body: object, key: str = KEY) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"}
    where = f"{url}/v1/persona_tui/replies/{reply}"
    request = urllib.request.Request(where, json.dumps(body).encode(), headers, method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def spoken(engine: SteeringEngine, mix: dict[str, Any], at: int, sign: float) -> list[int]:
    """What our own engine says, with the strength times a sign from a token on."""
    mixes = [Mix({mix["persona"]: 1.0}, each * mix["strength"], capping=False) for each in (1.0, sign)]
    ways = [engine.interventions(each) for each in mixes]
    steps = iter([ways[0], *[None] * at, ways[1]])
    request = Request([{"role": "user", "content": "What is bread?"}], 0)
    sampling = Sampling(max_new_tokens=400, temperature=0)
    events = engine.model.stream([request], sampling, lambda: next(steps, None))
    return [each.token_id for each in events]


def test_nothing_malformed_is_answered_unsteered(server: Server) -> None:
    """200 requests that ask for what cannot be had: none is answered, and the server goes on."""
    before = said(server.url)
    chance = random.Random(0)
    odd: list[Any] = [
        None,
        "",
        "x",
        -1,
        1e30,
        [],
        {},
        True,
        "\x00",
        "../../etc/passwd",
        {"sage": "x"},
        "é" * 99,
    ]
    fields = ["persona", "blend", "strength", "capping", "percentile", "capping_axis", "safe", "file"]
    answered = []
    for at in range(200):
        mix = {chance.choice(fields): chance.choice(odd) for _ in range(chance.randint(1, 3))}
        wrong = {"persona": "nobody"} if at % 2 else {"plausibility": 0.1}
        body: Any = {"model": slug(server.url), **ASKED, "persona_tui": {**mix, **wrong}}
        if at % 5 == 0:
            body["persona_tui"] = chance.choice(["x", 3, [1], True])
        if at % 7 == 0:
            body = json.dumps(body).encode()[: chance.randint(1, 80)]
        if at % 11 == 0:
            body = {"model": slug(server.url), **ASKED, "vllm_xargs": {"persona_tui_engine": "x"}}
        status, _ = send(server.url, body)
        answered.append(status)
    assert set(answered) <= {400, 404, 422}, sorted(set(answered))
    assert said(server.url) == before


def test_without_the_key_nobody_is_answered(server: Server) -> None:
    assert send(server.url, {"model": "x", **ASKED}, key="wrong")[0] == 401
