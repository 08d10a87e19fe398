"""Endpoints of our own: what there is, scores of any text, and turns whose mix changes while they stream."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.model import Message
from persona_tui.server.http import answering, openai_error, read_body
from persona_tui.server.limits import Refused
from persona_tui.server.openai_api import ChatMessage
from persona_tui.server.service import Service
from persona_tui.traits.vector import summary

_MOST_SCORED = 64


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
        ]

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


def _told(about: Any, name: str) -> dict[str, Any]:
    """What is known of one of them. A damaged file says so; it must not hide the others."""
    try:
        return {"name": name, **about(name)}
    except PersonaTuiError as error:
        return {"name": name, "error": str(error)}
