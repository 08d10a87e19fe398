"""Endpoints in the form of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persona_tui.model import Sampling, TokenEvent
from persona_tui.model.prompts import PromptEncoder
from persona_tui.server.http import (
    GONE,
    ChatMessage,
    answering,
    data,
    openai_error,
    read_body,
    server_sent,
    unless_gone,
    written,
)
from persona_tui.server.limits import Refused
from persona_tui.server.service import Service, Wish
from persona_tui.server.turns import Exchange
from persona_tui.server.voices import VoiceOptions

_SLIP = 0.85  # how alike a field is to one that was meant
_MOST = 16  # replies to one request, and texts that end a reply
_FINISH = {"stop": "stop", "length": "length", "refused": "content_filter"}


class StreamOptions(BaseModel):
    """What a stream has besides the reply."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _Body(BaseModel):
    """What both kinds of request have. Fields that would change the reply and are not here are refused."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1, le=_MOST)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    persona_tui: VoiceOptions | None = None

    def longest(self) -> int | None:
        return self.max_tokens

    def check(self) -> None:
        """Raise Refused for what would be ignored otherwise."""
        for name in self.model_extra or {}:  # others mean nothing here
            if meant := get_close_matches(name, type(self).model_fields, 1, _SLIP):
                raise Refused(f'There is no "{name}". Did you mean "{meant[0]}"?', param=name)
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise Refused(f"{name} is not supported.", code="unsupported_parameter", param=name)
        if len(self.stops()) > _MOST or any(not each or len(each) > 256 for each in self.stops()):
            raise Refused(f"stop takes up to {_MOST} texts of 1 to 256 characters.", param="stop")

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, default: Sampling) -> Sampling:
        """Return how tokens are chosen.

        Raises:
            GenerationError: a value is out of range.
        """
        longest = self.longest()
        return Sampling(
            default.max_new_tokens if longest is None else longest,
            default.temperature if self.temperature is None else self.temperature,
            default.top_p if self.top_p is None else self.top_p,
            default.seed if self.seed is None else self.seed % 2**63,  # clients may send negative ones
        )


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        super().check()
        kind = (self.response_format or {}).get("type", "text")
        refused = {
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "tool_choice": self.tool_choice not in (None, "none", "auto"),
            "response_format": kind != "text",
            "modalities": self.modalities not in (None, ["text"]),
        }
        for name, given in refused.items():
            if given:
                raise Refused(f"{name} is not supported.", code="unsupported_parameter", param=name)
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs needs logprobs to be true.", param="top_logprobs")


class CompletionBody(_Body):
    """`POST /v1/completions`."""

    prompt: str | list[str] = Field(default="", union_mode="left_to_right")
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        super().check()
        for name, given in {
            "echo": bool(self.echo),
            "suffix": bool(self.suffix),
            "best_of": (self.best_of or 1) > (self.n or 1),
        }.items():
            if given:
                raise Refused(f"{name} is not supported.", code="unsupported_parameter", param=name)
        prompts = self.prompts()
        if not prompts or len(prompts) * (self.n or 1) > _MOST * 4:
            raise Refused(f"prompt takes 1 to {_MOST * 4} texts, n times each.", param="prompt")

    def prompts(self) -> list[str]:
        """Return the texts to be continued."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ModerationBody(BaseModel):
    """`POST /v1/moderations`."""

    model_config = ConfigDict(extra="ignore")

    input: str | list[str | dict[str, Any]]
    model: str | None = None

    def texts(self) -> list[str]:
        """Return the texts to be judged.

        Raises:
            Refused: there are none, one is empty, or something is not text.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = [each if isinstance(each, str) else each.get("text") for each in given]
        if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
            raise Refused("input takes one or more texts that are not empty.", param="input")
        return [str(each) for each in texts]


class OpenAI:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return where they are."""
        form = answering(openai_error)
        return [
            Route("/v1/models", form(self.models)),
            Route("/v1/models/{model:path}", form(self.model)),
            Route("/v1/chat/completions", form(self.chat), methods=["POST"]),
            Route("/v1/completions", form(self.complete), methods=["POST"]),
            Route("/v1/moderations", form(self.moderate), methods=["POST"]),
        ]

    # Models -------------------------------------------------------------------------------------------------

    async def models(self, request: HttpRequest) -> Response:
        """List the plain model and one for each persona."""
        voices = await self._service.off_loop(lambda: self._service.voices)
        return JSONResponse({"object": "list", "data": [self._about(name) for name in voices.names]})

    async def model(self, request: HttpRequest) -> Response:
        """Describe one model, also a blend."""
        name = request.path_params["model"]
        voices = await self._service.off_loop(lambda: self._service.voices)
        voices.check_model(name)
        return JSONResponse(self._about(name))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._service.started, "owned_by": "persona-tui"}

    # Replies ------------------------------------------------------------------------------------------------

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a conversation."""
        body = await read_body(request, ChatBody)
        body.check()
        likeliest = (body.top_logprobs or 0) if body.logprobs else 0
        messages = [each.plain() for each in body.messages]
        replies = ChatChoices(self._service.encoder, body, bool(body.logprobs))
        return await self._answer(request, body, [messages], likeliest, replies)

    async def complete(self, request: HttpRequest) -> Response:
        """Continue texts."""
        body = await read_body(request, CompletionBody)
        body.check()
        replies = TextChoices(self._service.encoder, body, body.logprobs is not None)
        return await self._answer(request, body, body.prompts(), body.logprobs or 0, replies)

    async def _answer(
        self,
        request: HttpRequest,
        body: _Body,
        prompts: Sequence[Any],
        likeliest: int,
        replies: Choices,
    ) -> Response:
        service = self._service
        sampling = body.sampling(service.sampling)
        voice = await service.off_loop(lambda: service.voices.read(body.model, body.persona_tui))
        wish = Wish(prompts, voice, sampling, body.n or 1, body.stops(), likeliest)
        replies.traced = voice.trace or ()
        turn = await service.begin(wish)
        if body.stream:
            return server_sent(replies.stream(turn))
        done = await unless_gone(request, turn.finish())
        return Response(status_code=GONE) if done is None else JSONResponse(replies.whole(turn))

    # Judging ------------------------------------------------------------------------------------------------

    async def moderate(self, request: HttpRequest) -> Response:
        """Have the monitor judge texts as a user's messages."""
        body = await read_body(request, ModerationBody)
        texts = body.texts()
        results = await self._service.with_model(lambda: self._service.judge(texts))
        monitor = self._service.monitor
        return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": monitor.name, "results": results})


class Choices:
    """A request's replies in OpenAI's form.

    Attributes:
        traced: whose projections are told token by token.
    """

    object = ""
    prefix = ""

    def __init__(self, encoder: PromptEncoder, body: _Body, likelihoods: bool) -> None:
        """
        Args:
            encoder: knows what tokens look like.
            body: the request.
            likelihoods: whether log-probabilities are wanted.
        """
        self.traced: tuple[str, ...] = ()
        self.encoder = encoder
        self.likelihoods = likelihoods
        self._body = body
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, turn: Exchange) -> dict[str, Any]:
        """Return all replies when they are there."""
        choices = []
        for place, answer in enumerate(turn.answers):
            said = answer.said
            choices.append(
                {
                    "index": place,
                    **self.said(said.text, said.refusal),
                    "logprobs": self.logprobs(said.events) if self.likelihoods else None,
                    "finish_reason": _FINISH[said.finish or "stop"],
                    "persona_tui": {**turn.summary(place), **self._trace(said.events)},
                }
            )
        return {**self._head(self.object), "choices": choices, "usage": usage(turn)}

    async def stream(self, turn: Exchange) -> AsyncIterator[str]:
        """Yield the replies as they come, as server-sent events."""
        wants_usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        extra = {"usage": None} if wants_usage else {}
        head = {**self._head(self.chunk_object), **extra}
        try:
            for place in range(len(turn.answers)):
                if (opening := self.opening()) is not None:
                    yield data({**head, "choices": [self._choice(place, opening)]})
            async with aclosing(turn.events()) as events:
                async for place, event in events:
                    for choice in self._chunks(turn, place, event):
                        yield data({**head, "choices": [choice]})
            if wants_usage:
                yield data({**head, "choices": [], "usage": usage(turn)})
        except Exception as error:  # the response has begun: its status cannot say it any more
            yield data(openai_error(error))
        finally:
            turn.cancel()
        yield "data: [DONE]\n\n"

    def _chunks(self, turn: Exchange, place: int, event: TokenEvent) -> list[dict[str, Any]]:
        """Return what a token adds to the stream."""
        chunks = []
        listed = event.token_id >= 0 and (event.text or event.finish is None)
        if event.text or (listed and (self.likelihoods or self.traced)):
            choice = self._choice(place, self.delta(event.text))
            if self.likelihoods:
                choice["logprobs"] = self.logprobs([event])
            if self.traced:
                choice["persona_tui"] = self._trace([event])
            chunks.append(choice)
        if event.finish is not None:
            closing = self._choice(place, self.delta("", turn.answers[place].said.refusal))
            closing |= {
                "finish_reason": _FINISH[event.finish],
                "persona_tui": turn.summary(place),
            }
            chunks.append(closing)
        return chunks

    def _choice(self, place: int, part: dict[str, Any]) -> dict[str, Any]:
        return {"index": place, **part, "logprobs": None, "finish_reason": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._body.model}

    def _trace(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        if not self.traced:
            return {}
        return {
            "trace": {
                name: [round(event.projections[name], 5) for event in events if name in event.projections]
                for name in self.traced
            }
        }

    @property
    def chunk_object(self) -> str:
        """What a part of a stream is called."""
        return self.object

    def said(self, text: str, refusal: str | None) -> dict[str, Any]:
        """Return a whole reply's text."""
        return {"text": text}

    def opening(self) -> dict[str, Any] | None:
        """Return what a stream begins with."""
        return None

    def delta(self, text: str, refusal: str | None = None) -> dict[str, Any]:
        """Return a piece of a reply's text."""
        return {"text": text}

    def logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        """Return tokens' log-probabilities."""
        raise NotImplementedError


class ChatChoices(Choices):
    """Messages."""

    object = "chat.completion"
    prefix = "chatcmpl"

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def said(self, text: str, refusal: str | None) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": refusal}}

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str, refusal: str | None = None) -> dict[str, Any]:
        if refusal is not None:
            return {"delta": {"refusal": refusal}}
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(event.token_id, event.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in event.likeliest],
                }
                for event in written(events)
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.encoder.token(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


class TextChoices(Choices):
    """Continued texts."""

    object = "text_completion"
    prefix = "cmpl"

    def logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        tokens = [self.encoder.token(event.token_id) for event in written(events)]
        offsets, length = [], 0
        for token in tokens:
            offsets.append(length)
            length += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [event.logprob for event in written(events)],
            "top_logprobs": [
                {self.encoder.token(token): logprob for token, logprob in event.likeliest}
                for event in written(events)
            ],
            "text_offset": offsets,
        }


def usage(turn: Exchange) -> dict[str, int]:
    """Return how many tokens a request has taken."""
    prompt, completion = turn.prompt_tokens, turn.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
