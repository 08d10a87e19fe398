"""Endpoints of our own: what there is, scores of any text, and turns whose mix changes while they stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.model import Message, TokenEvent
from persona_tui.monitors.events import breaches_of
from persona_tui.monitors.guard import verdict_of
from persona_tui.server.http import answering, data, openai_error, read_body, server_sent
from persona_tui.server.limits import Refused
from persona_tui.server.openai_api import ChatMessage
from persona_tui.server.service import Service, Wish
from persona_tui.server.turns import Exchange
from persona_tui.server.voices import VoiceOptions
from persona_tui.traits.vector import summary

_MOST_SCORED = 64
_SAMPLED = ("max_new_tokens", "temperature", "top_p", "seed")
_TOLD = ("index", "token_id", "text", "projections", "capped", "logprob", "entropy", "finish")


class ScoreBody(BaseModel):
    """`POST /score`.

    Attributes:
        input: a text, or several texts or conversations; of a conversation the last reply is scored.
        traits: on which traits; none = on all.
    """

    model_config = ConfigDict(extra="forbid")

    input: str | list[str | list[ChatMessage]]
    traits: list[str] = []

    def conversations(self) -> list[list[Message]]:
        """Return what is to be scored: a text is read as a reply to nothing in particular.

        Raises:
            Refused: there is nothing, too much, or a conversation without a reply at its end.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        if not 0 < len(given) <= _MOST_SCORED:
            raise Refused(f"input takes 1 to {_MOST_SCORED} texts or conversations.", param="input")
        found = [
            [{"role": "user", "content": ""}, {"role": "assistant", "content": each}]
            if isinstance(each, str)
            else [message.plain() for message in each]
            for each in given
        ]
        if any(
            not each or each[-1]["role"] != "assistant" or not each[-1]["content"].strip() for each in found
        ):
            raise Refused("each text or conversation ends with a reply that is not empty.", param="input")
        return found


class TurnBody(BaseModel):
    """`POST /native/turns`.

    Attributes:
        messages: the conversation.
        model: who speaks, as everywhere.
        persona_tui: the same and more, as everywhere.
        sampling: fields of `generation` in config.yaml, for this turn.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[ChatMessage]
    model: str | None = None
    persona_tui: VoiceOptions | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class MixBody(BaseModel):
    """`PATCH /native/turns/ID`: fields of the mix that change; the others stay."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, float] | None = None
    strength: float | None = None
    capping: bool | None = None
    capping_axis: Literal["assistant", "safety"] | None = None
    percentile: float | None = None
    plausibility: float | None = None


class Native:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return where they are."""
        form = answering(openai_error)
        return [
            Route("/score", form(self.score), methods=["POST"]),
            Route("/native/personas", form(self.personas)),
            Route("/native/traits", form(self.traits)),
            Route("/native/axes", form(self.axes)),
            Route("/native/turns", form(self.speak), methods=["POST"]),
            Route("/native/turns/{id}", form(self.change), methods=["PATCH", "DELETE"]),
        ]

    # Turns --------------------------------------------------------------------------------------------------

    async def speak(self, request: HttpRequest) -> Response:
        """Answer a conversation as server-sent events: begin, token, ..., end; or error."""
        body = await read_body(request, TurnBody)
        service = self._service
        given = body.model_dump(include=set(_SAMPLED), exclude_none=True)
        sampling = replace(service.sampling, **given)
        voice = await service.off_loop(
            lambda: service.voices.read(body.model or service.base, body.persona_tui)
        )
        turn = await service.begin(Wish([[each.plain() for each in body.messages]], voice, sampling))
        return server_sent(self._spoken(turn))

    async def _spoken(self, turn: Exchange) -> AsyncIterator[str]:
        id = uuid.uuid4().hex
        self._service.turns[id] = turn
        answer = turn.answers[0]
        changes = 0
        try:
            sampling = answer.voiced.request.sampling
            opening = {
                "id": id,
                "prompt_tokens": turn.prompt_tokens,
                "sampling": sampling and asdict(sampling),
            }
            yield data(opening, "begin")
            async with aclosing(turn.events(stoppable=True)) as events:
                async for _, event in events:
                    for token, mix in answer.voiced.changes[changes:]:
                        changes += 1
                        yield data({"index": token, "mix": mix}, "mix")
                    yield data(_as_record(event), "token")
            yield data(turn.summary(), "end")
        except Exception as error:  # the response has begun: its status cannot say it any more
            yield data(openai_error(error), "error")
        finally:
            del self._service.turns[id]
            turn.cancel()

    async def change(self, request: HttpRequest) -> Response:
        """Speak with another mix from the next token on (PATCH), or stop and keep what was said (DELETE)."""
        service, turn = self._service, self._service.turns.get(request.path_params["id"])
        if turn is None:
            raise Refused("This turn is not being written.", status=404, code="turn_not_found")
        voiced = turn.answers[0].voiced
        if request.method == "DELETE":
            turn.answers[0].stop()
            return Response(status_code=204)
        body = await read_body(request, MixBody)
        given = body.model_dump(exclude_unset=True)

        def changed() -> dict[str, Any]:
            service.voices.check_known(body.weights or {})
            mix = replace(voiced.mix, **given)
            voiced.set_mix(mix)
            return service.engine.describe(mix)

        return JSONResponse({"mix": await service.off_loop(changed)})

    # What there is ------------------------------------------------------------------------------------------

    async def score(self, request: HttpRequest) -> Response:
        """Measure texts on traits."""
        body = await read_body(request, ScoreBody)
        service, conversations = self._service, body.conversations()
        voices = await service.off_loop(lambda: service.voices)
        names = [name.removeprefix(TRAIT_PREFIX) for name in body.traits]
        known = [name.removeprefix(TRAIT_PREFIX) for name in voices.traits]
        for name in names:
            if name not in known:
                raise Refused(
                    f'There is no trait "{name}".', status=404, code="trait_not_found", param="traits"
                )
        if not known:
            raise Refused("There are no traits for this model.", status=404, code="trait_not_found")
        results = await service.with_model(lambda: service.score(names, conversations))
        return JSONResponse({"object": "list", "model": service.base, "results": results})

    async def personas(self, request: HttpRequest) -> Response:
        """List the personas, with how they were made and calibrated."""
        project = self._service.project

        def found() -> list[dict[str, Any]]:
            return [_told(project.personas.about, name) for name in project.personas.list_available()]

        return JSONResponse({"data": await self._service.off_loop(found)})

    async def traits(self, request: HttpRequest) -> Response:
        """List the traits, with their figures."""
        traits = self._service.project.traits

        def found() -> list[dict[str, Any]]:
            return [_told(lambda each: summary(traits.get(each)), name) for name in traits.names()]

        return JSONResponse({"data": await self._service.off_loop(found)})

    async def axes(self, request: HttpRequest) -> Response:
        """List the axes, their layers, and which of them a floor is on unless told otherwise."""
        engine = self._service.engine

        def found() -> dict[str, Any]:
            axes = engine.personas.axes
            names = [] if axes is None else list(axes.names)
            return {
                "data": [{"name": name} for name in names],
                "capping": {"axis": engine.capping_axis(), "layers": list(engine.capping_layers)},
                "percentile": engine.safety_floor,
            }

        return JSONResponse(await self._service.off_loop(found))


def _as_record(event: TokenEvent) -> dict[str, Any]:
    """An event for JSON, without what is empty."""
    record = {name: getattr(event, name) for name in _TOLD}
    verdict, breaches = verdict_of(event), breaches_of(event)
    return {
        **record,
        **({} if event.nats is None else {"nats": event.nats}),
        **({} if verdict is None else {"verdict": verdict.as_dict()}),
        **({"breaches": [each.as_dict() for each in breaches]} if breaches else {}),
    }


def _told(about: Any, name: str) -> dict[str, Any]:
    """What is known of one of them. A damaged file says so; it must not hide the others."""
    try:
        return {"name": name, **about(name)}
    except PersonaTuiError as error:
        return {"name": name, "error": str(error)}
