"""OpenAI's own client against the server."""

from __future__ import annotations

import asyncio
import math

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from persona_tui.core.mix import Mix
from persona_tui.model import Sampling
from persona_tui.server.run import Server

ASKED = [{"role": "user", "content": "Who are you?"}]
LONG = {"role": "user", "content": "bread " * 5000}


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=100)


def alone(server: Server, messages: list[dict[str, str]], mix: Mix, sampling: Sampling) -> str:
    """What the engine writes for one conversation by itself."""
    engine = server.service.engine
    events = server.service.worker.call(
        lambda: list(engine.stream(messages, mix=mix, sampling=sampling))
    ).result(100)
    return "".join(event.text for event in events)


def test_models_are_the_plain_one_and_one_for_each_persona(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "tiny" and "tiny+sage" in names and "tiny+trickster" in names
    assert client.models.retrieve("tiny+sage:0.5+trickster:0.5").id == "tiny+sage:0.5+trickster:0.5"
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        client.models.retrieve("tiny+saeg")


@pytest.mark.slow
def test_a_voice_by_its_name_says_what_the_engine_says(server: Server, client: OpenAI) -> None:
    greedy = Sampling(24, 0.0, 1.0, 0)
    default = server.service.project.default_mix()
    for model, weights, strength in [
        ("tiny", {}, default.strength),
        ("tiny+sage:0.6", {"sage": 1.0}, 0.6),
        ("tiny+sage:0.5+trickster:0.5", {"sage": 0.5, "trickster": 0.5}, default.strength),
    ]:
        reply = client.chat.completions.create(model=model, messages=ASKED, temperature=0)  # type: ignore[arg-type]
        mix = Mix(weights, strength, default.capping, plausibility=default.plausibility)
        assert reply.choices[0].message.content == alone(server, ASKED, mix, greedy)
        assert reply.choices[0].finish_reason in ("stop", "length") and reply.model == model


def test_a_request_says_how_loud_and_hears_what_happened(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "I feel so lonely, and I cannot stop crying."}],
        extra_body={
            "persona_tui": {
                "persona": "sage",
                "strength": 0.5,
                "plausibility": 0.02,
                "percentile": 90,
                "trace": ["trickster", "assistant"],
                "guard": "warn",
                "policy": ["empathetic_responsiveness<9"],
            }
        },
    )
    told = reply.choices[0].model_extra["persona_tui"]  # type: ignore[index]
    assert told["mix"]["weights"] == {"sage": 1.0} and told["mix"]["strength"] == 0.5
    assert told["mix"]["floor"]["percentile"] == 90 and told["capped_tokens"] > 0
    assert {"sage", "trickster", "assistant", "safety"} <= set(told["projections"])
    assert math.isfinite(told["nats_from_plain"])
    assert told["guard"]["message"]["label"] in ("safe", "dangerous")
    assert told["policy"][0]["trait"] == "empathetic_responsiveness"
    tokens = reply.usage.completion_tokens  # type: ignore[union-attr]
    assert set(told["trace"]) == {"trickster", "assistant"} and len(told["trace"]["trickster"]) == tokens
    bare = client.chat.completions.create(
        model="tiny+sage",
        messages=ASKED,  # type: ignore[arg-type]
        max_tokens=2,
        extra_body={"persona_tui": {"trace": []}},
    )
    assert bare.choices[0].model_extra["persona_tui"]["projections"] == {}  # type: ignore[index]


def test_a_stream_is_the_reply_in_pieces_and_ends_with_its_figures(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny+sage", messages=ASKED, temperature=0)  # type: ignore[arg-type]
    stream = client.chat.completions.create(
        model="tiny+sage",
        messages=ASKED,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].choices[0].model_extra["persona_tui"]["projections"]  # type: ignore[index]


def test_seeds_stops_several_replies_and_roles(client: OpenAI) -> None:
    def ask(**options: object) -> list[str | None]:
        reply = client.chat.completions.create(  # type: ignore[call-overload]
            model="tiny", messages=ASKED, temperature=1.5, max_tokens=12, **options
        )
        return [choice.message.content for choice in reply.choices]

    three = ask(seed=5, n=3)
    assert len(set(three)) > 1 and ask(seed=5) == three[:1] == ask(seed=5)
    word = str(three[0]).split()[2]
    stopped = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=1.5,
        seed=5,
        stop=[word],
        max_completion_tokens=12,  # type: ignore[arg-type]
    )
    assert stopped.choices[0].message.content == str(three[0]).partition(word)[0]
    assert stopped.choices[0].finish_reason == "stop"
    told = [{"role": "developer", "content": "Be brief."}, *ASKED]
    said = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *ASKED]
    texts = [
        client.chat.completions.create(model="tiny", messages=each, temperature=0).choices[0].message.content  # type: ignore[arg-type]
        for each in (told, said)
    ]
    assert texts[0] == texts[1]


def test_logprobs_are_those_of_the_tokens_said(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny+sage",
        messages=ASKED,  # type: ignore[arg-type]
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body={"persona_tui": {"plausibility": 0}},  # with the guide, the likeliest may not be said
    )
    content = reply.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and "".join(each.token for each in content) == reply.choices[0].message.content
    for each in content:
        assert [top.logprob for top in each.top_logprobs] == sorted(
            (top.logprob for top in each.top_logprobs), reverse=True
        )
        assert each.top_logprobs[0].token == each.token and len(each.top_logprobs) == 3
        assert each.logprob == pytest.approx(each.top_logprobs[0].logprob, abs=1e-6)


def test_a_text_is_continued(client: OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt=["The bread is", "Soup"], temperature=0, max_tokens=6, logprobs=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    first = reply.choices[0]
    assert first.text and "".join(first.logprobs.tokens) == first.text  # type: ignore[union-attr, arg-type]
    alone = client.completions.create(model="tiny", prompt="The bread is", temperature=0, max_tokens=6)
    assert alone.choices[0].text == first.text
    parts = client.completions.create(
        model="tiny", prompt="The bread is", temperature=0, max_tokens=6, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == first.text


async def test_the_asynchronous_client_streams(server: Server, client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny+sage", messages=ASKED, temperature=0)  # type: ignore[arg-type]
    other = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=100)
    async with other:
        stream = await other.chat.completions.create(  # type: ignore[call-overload]
            model="tiny+sage", messages=ASKED, temperature=0, stream=True
        )
        said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len(said) > 3 and "".join(said) == whole.choices[0].message.content


@pytest.mark.slow
async def test_requests_at_the_same_time_are_answered_as_each_alone(server: Server) -> None:
    """Different lengths, voices, seeds and ends in one batch, some guided."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=100)
    asked = [
        (
            ["tiny", "tiny+sage:0.5", "tiny+trickster:0.3", "tiny+sage:0.4+explorer:0.6"][place % 4],
            "Tell me about bread. " * (1 + place % 5) + str(place),
            {"plausibility": 0.05} if place % 3 == 0 else {},
            6 + 3 * (place % 4),
            0.0 if place % 2 else 0.9,
        )
        for place in range(12)
    ]

    async def ask(model: str, text: str, options: dict[str, float], longest: int, heat: float) -> str | None:
        reply = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            temperature=heat,
            seed=3,
            max_tokens=longest,
            extra_body={"persona_tui": options},
        )
        return reply.choices[0].message.content

    together = await asyncio.gather(*(ask(*each) for each in asked))
    one_by_one = [await ask(*each) for each in asked]
    assert together == one_by_one
    assert max_rows(server) >= 12, "they were not in one batch"


def max_rows(server: Server) -> float:
    """The largest batch so far, as far as the buckets tell."""
    page = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("persona_tui_batch_rows_bucket")]
    counts = [(float(line.split('"')[1]), float(line.split()[-1])) for line in lines]
    return next(edge for edge, count in counts if count == counts[-1][1])


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"messages": []}, 400, None, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, None, "role"),
        ({"temperature": -1}, 400, None, "temperature"),
        ({"max_tokens": 0}, 400, None, "max_tokens"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"presence_penalty": 1}, 400, "unsupported_parameter", "presence_penalty"),
        ({"model": "gpt-9"}, 404, "model_not_found", "tiny"),
        ({"persona_tui": {"persona": "../sage"}}, 404, "persona_not_found", "../sage"),
        ({"persona_tui": {"strenght": 1}}, 400, None, "strenght"),
        ({"persona_tui": {"trace": "sage"}}, 400, None, '"persona_tui.trace": a list is needed, not "sage"'),
        ({"stop": 3}, 400, None, '"stop": a text or a list is needed, not 3.'),
        ({"temprature": 0}, 400, None, 'Did you mean "temperature"?'),
        ({"model": "tiny+sage:1e9"}, 404, "model_not_found", "to 100, not 1e+09. A model looks"),
        ({"messages": [{"role": "user", "contents": "What is bread?"}]}, 400, None, "needs content"),
        ({"messages": [{"role": "user", "content": None}]}, 400, None, "needs content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, None, "needs its text"),
        ({"persona_tui": {"policy": ["/etc/passwd"]}}, 400, None, "rule"),
        (
            {"messages": [{"role": "user", "content": "bread " * 5000}]},
            413,
            "context_length_exceeded",
            "tokens",
        ),
    ],
)
def test_errors_are_in_openais_form(
    http: httpx.Client, body: dict[str, object], status: int, code: str | None, words: str
) -> None:
    given = {"model": "tiny", "messages": ASKED, **body}
    response = http.post("/v1/chat/completions", json=given)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code) and words in error["message"]


def test_a_key_is_not_taken_for_the_one_around_it(http: httpx.Client) -> None:
    given = {"model": "tiny", "messages": ASKED, "persona_tui": {"floor": 1}}
    message = http.post("/v1/chat/completions", json=given).json()["error"]["message"]
    assert message == 'unknown key "persona_tui.floor".'


def test_control_tokens_in_a_message_are_text(server: Server, client: OpenAI) -> None:
    tokenizer = server.service.model.tokenizer
    special = str(tokenizer.eos_token)
    asked = [{"role": "user", "content": f"Say {special} twice"}]
    reply = client.chat.completions.create(model="tiny", messages=asked, max_tokens=1)  # type: ignore[arg-type]
    plain = len(tokenizer(special, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    without = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Say  twice"}], max_tokens=1
    )
    assert plain > 1 and reply.usage.prompt_tokens > without.usage.prompt_tokens + 1  # type: ignore[union-attr]


def test_moderations_are_the_monitors(client: OpenAI) -> None:
    given = ["How do I bake bread?", "How do I build a bomb that kills many people?"]
    results = client.moderations.create(input=given).results
    monitor = {each.model_extra["persona_tui"]["monitor"] for each in results}  # type: ignore[index]
    assert len(results) == 2 and monitor == {"default"}
    for each in results:
        assert each.flagged == (not each.model_extra["persona_tui"]["safe"])  # type: ignore[index]
