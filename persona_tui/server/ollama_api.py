"""Endpoints in the form of Ollama's API, as its own clients use them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from persona_tui import __version__
from persona_tui.model import Message, Sampling, TokenEvent
from persona_tui.server.http import (
    GONE,
    ChatMessage,
    answering,
    compact,
    ollama_error,
    read_body,
    unless_gone,
    written,
)
from persona_tui.server.limits import Refused
from persona_tui.server.service import Service, Wish
from persona_tui.server.turns import Exchange
from persona_tui.server.voices import LATEST, VoiceOptions

# Clients compare it with what they need; it says which of Ollama's forms are spoken here.
SPOKEN_VERSION = "0.12.0"

_DONE = {"stop": "stop", "length": "length", "refused": "stop"}
# Options that change replies and have no counterpart here, with the values that change nothing.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "repeat_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "mirostat": (0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "top_k": (0, -1),
}


class OllamaOptions(BaseModel):
    """How a reply is sampled. What only concerns Ollama's own machinery is ignored."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None

    def check(self) -> None:
        """Raise Refused for what would be ignored otherwise."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in _NEUTRAL and value not in _NEUTRAL[name]:
                raise Refused(f"the option {name} is not supported.")

    def sampling(self, default: Sampling) -> Sampling:
        """Return how tokens are chosen.

        Raises:
            GenerationError: a value is out of range.
        """
        longest = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        return Sampling(
            default.max_new_tokens if longest is None else longest,
            default.temperature if self.temperature is None else self.temperature,
            default.top_p if self.top_p is None else self.top_p,
            default.seed if self.seed is None else self.seed % 2**63,  # clients may send negative ones
        )

    def stops(self) -> tuple[str, ...]:
        """Return the texts that end a reply."""
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(each for each in given if each)


class _Asked(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="ignore")

    model: str
    stream: bool | None = None
    options: OllamaOptions | None = None
    format: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    persona_tui: VoiceOptions | None = None

    def check(self) -> None:
        """Raise Refused for what is not done here."""
        (self.options or OllamaOptions()).check()
        if self.format:
            raise Refused("format is not supported.")


class OllamaMessage(ChatMessage):
    """One message of a conversation."""

    images: list[Any] | None = None


class OllamaChatBody(_Asked):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] = []
    tools: list[Any] | None = None

    def check(self) -> None:
        super().check()
        if self.tools:
            raise Refused("tools are not supported.")
        if any(each.images for each in self.messages):
            raise Refused("images are not supported.")


class GenerateBody(_Asked):
    """`POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None

    def check(self) -> None:
        super().check()
        for name in ("suffix", "template", "images"):
            if getattr(self, name):
                raise Refused(f"{name} is not supported.")

    def asked(self) -> list[Message] | str:
        """Return the conversation, or the text to be continued."""
        if self.raw:
            return self.prompt or ""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, {"role": "user", "content": self.prompt or ""}]


class NamedBody(BaseModel):
    """`POST /api/show` and `/api/pull`: `model`, or `name` in older clients."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    name: str | None = None
    stream: bool | None = None

    @property
    def named(self) -> str:
        return self.model or self.name or ""


class Ollama:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return where they are."""
        form = answering(ollama_error)
        post, others = ["POST"], ["POST", "DELETE"]
        return [
            Route("/", form(self.root), methods=["GET", "HEAD"]),
            Route("/api/version", form(self.version)),
            Route("/api/tags", form(self.tags)),
            Route("/api/ps", form(self.running)),
            Route("/api/show", form(self.show), methods=post),
            Route("/api/chat", form(self.chat), methods=post),
            Route("/api/generate", form(self.generate), methods=post),
            Route("/api/pull", form(self.pull), methods=post),
            *(
                Route(f"/api/{name}", form(self.elsewhere), methods=others)
                for name in ("create", "copy", "delete", "push", "embed", "embeddings")
            ),
        ]

    # Models -------------------------------------------------------------------------------------------------

    async def root(self, request: HttpRequest) -> Response:
        """Say that somebody is here, as Ollama does."""
        return PlainTextResponse("persona-tui is running")

    async def version(self, request: HttpRequest) -> Response:
        """Say which of Ollama's versions is spoken."""
        return JSONResponse({"version": SPOKEN_VERSION, "persona_tui": __version__})

    async def tags(self, request: HttpRequest) -> Response:
        """List the plain model and one for each persona."""
        voices = await self._service.off_loop(lambda: self._service.voices)
        return JSONResponse({"models": [self._about(name) for name in voices.names]})

    async def running(self, request: HttpRequest) -> Response:
        """List the model that is loaded."""
        about = self._about(self._service.base)
        context = self._service.model.context_length
        never = "9999-12-31T00:00:00Z"
        more = {"expires_at": never, "size_vram": 0, "context_length": context}
        return JSONResponse({"models": [{**about, **more}]})

    def _about(self, name: str) -> dict[str, Any]:
        model = self._service.model
        tagged = name if ":" in name else f"{name}{LATEST}"
        digest = hashlib.sha256(f"{model.fingerprint} {name}".encode()).hexdigest()
        return {
            "name": tagged,
            "model": tagged,
            "modified_at": datetime.fromtimestamp(self._service.started, UTC).isoformat(),
            "size": self._service.size,
            "digest": digest,
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        model = self._service.model
        family = str(model.model.config.model_type)
        return {
            "parent_model": "",
            "format": "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": f"{model.n_parameters / 1e6:.1f}M",
            "quantization_level": str(model.dtype).removeprefix("torch."),
        }

    async def show(self, request: HttpRequest) -> Response:
        """Describe one model."""
        body = await read_body(request, NamedBody)
        voices = await self._service.off_loop(lambda: self._service.voices)
        voices.check_model(body.named)
        model = self._service.model
        family = str(model.model.config.model_type)
        return JSONResponse(
            {
                "modelfile": "",
                "parameters": "",
                "template": self._service.template,
                "modified_at": datetime.fromtimestamp(self._service.started, UTC).isoformat(),
                "details": self._details(),
                "model_info": {
                    "general.architecture": family,
                    "general.parameter_count": model.n_parameters,
                    f"{family}.block_count": model.n_layers,
                    f"{family}.embedding_length": model.hidden_size,
                    f"{family}.context_length": model.context_length,
                },
                "capabilities": ["completion"],
            }
        )

    async def pull(self, request: HttpRequest) -> Response:
        """Succeed for what is here; nothing is fetched."""
        body = await read_body(request, NamedBody)
        voices = await self._service.off_loop(lambda: self._service.voices)
        voices.check_model(body.named)
        return JSONResponse({"status": "success"})

    async def elsewhere(self, request: HttpRequest) -> Response:
        """Refuse what Ollama does and this server does not."""
        raise Refused(f"{request.url.path} is not supported.", status=501)

    # Replies ------------------------------------------------------------------------------------------------

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a conversation; without one, say that the model is loaded."""
        body = await read_body(request, OllamaChatBody)
        body.check()
        if not body.messages:
            return await self._loaded(body, {"message": {"role": "assistant", "content": ""}})
        return await self._answer(request, body, [each.plain() for each in body.messages], _message)

    async def generate(self, request: HttpRequest) -> Response:
        """Answer a prompt; without one, say that the model is loaded."""
        body = await read_body(request, GenerateBody)
        body.check()
        if not body.prompt:
            return await self._loaded(body, {"response": ""})
        return await self._answer(request, body, body.asked(), _response)

    async def _loaded(self, body: _Asked, said: dict[str, Any]) -> Response:
        voices = await self._service.off_loop(lambda: self._service.voices)
        voices.check_model(body.model)
        return JSONResponse({**_head(body.model), **said, "done": True, "done_reason": "load"})

    async def _answer(
        self, request: HttpRequest, body: _Asked, asked: list[Message] | str, part: Any
    ) -> Response:
        service, options = self._service, body.options or OllamaOptions()
        sampling = options.sampling(service.sampling)
        voice = await service.off_loop(lambda: service.voices.read(body.model, body.persona_tui))
        likeliest = (body.top_logprobs or 0) if body.logprobs else 0
        turn = await service.begin(Wish([asked], voice, sampling, 1, options.stops(), likeliest))
        lines = self._lines(turn, body, part)
        if body.stream is not False:
            return StreamingResponse(lines, media_type="application/x-ndjson")
        done = await unless_gone(request, turn.finish())
        if done is None:
            return Response(status_code=GONE)
        said = turn.answers[0].said
        logprobs = {"logprobs": self._logprobs(said.events)} if body.logprobs else {}
        return JSONResponse(
            {**_head(body.model), **part(said.text), **logprobs, **_done(turn)},
        )

    async def _lines(self, turn: Exchange, body: _Asked, part: Any) -> AsyncIterator[str]:
        """Yield a reply as it comes, a line of JSON for each piece."""
        try:
            async with aclosing(turn.events()) as events:
                async for _, event in events:
                    if event.text:
                        logprobs = {"logprobs": self._logprobs([event])} if body.logprobs else {}
                        line = {**_head(body.model), **part(event.text), **logprobs, "done": False}
                        yield f"{compact(line)}\n"
            yield f"{compact({**_head(body.model), **part(''), **_done(turn)})}\n"
        except Exception as error:  # the response has begun: its status cannot say it any more
            yield f"{compact(ollama_error(error))}\n"
        finally:
            turn.cancel()

    def _logprobs(self, events: list[TokenEvent]) -> list[dict[str, Any]]:
        token = self._service.encoder.token
        return [
            {
                "token": token(event.token_id),
                "logprob": event.logprob,
                "top_logprobs": [
                    {"token": token(each), "logprob": logprob} for each, logprob in event.likeliest
                ],
            }
            for event in written(events)
        ]


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _response(text: str) -> dict[str, Any]:
    return {"response": text}


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat()}


def _done(turn: Exchange) -> dict[str, Any]:
    """Return what the last line says of a reply; times are in nanoseconds."""
    now = time.monotonic()
    first = turn.first_token if turn.first_token is not None else now
    said = turn.answers[0].said
    return {
        "done": True,
        "done_reason": _DONE[said.finish or "stop"],
        "total_duration": _nanoseconds(now - turn.arrived),
        "load_duration": 0,
        "prompt_eval_count": turn.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(first - turn.arrived),
        "eval_count": turn.completion_tokens,
        "eval_duration": _nanoseconds(now - first),
        "persona_tui": turn.summary(),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
