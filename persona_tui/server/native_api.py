"""Endpoints of our own: scores of any text, and all that `persona-tui chat --connect` needs.

1. `/native` says which model is served, and `/native/vectors/...` gives the files that its replies are
   steered and measured with, so that a client knows what its faders do.
2. `/native/turns` answers with events, token by token; the mix of a turn may change meanwhile.
3. `/native/tokens`, `/native/readings`, `/native/likelihoods` and `/native/rereads` read texts without
   answering.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persona_tui import __version__
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, Mix
from persona_tui.model import Message, Reading, TokenEvent
from persona_tui.model.text import Rendering
from persona_tui.monitors.guard import breaches_of, verdict_of
from persona_tui.project.project import Project
from persona_tui.server.http import ChatMessage, answering, data, openai_error, read_body, server_sent
from persona_tui.server.limits import Refused
from persona_tui.server.service import Service, Wish
from persona_tui.server.turns import Answer, Exchange
from persona_tui.server.voices import VoiceOptions
from persona_tui.traits.vector import summary
from persona_tui.vectors.manager import sha256
from persona_tui.vectors.metadata import RenderingRecord

NATIVE = 2  # the version of these endpoints; the first had no `/native`
_MOST_SCORED = 64
_MOST_MIXES = 8
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


class MixBody(BaseModel):
    """A mix, or the fields of one that change; the others stay."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, float] | None = None
    strength: float | None = None
    capping: bool | None = None
    capping_axis: Literal["assistant", "safety"] | None = None
    percentile: float | None = None
    plausibility: float | None = None
    safe: bool | None = None
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)

    def over(self, mix: Mix) -> Mix:
        """Return a mix with what is said here.

        Raises:
            PersonaTuiError: a value is out of range.
        """
        optional = ("capping_axis", "percentile", "layers")  # None means something there
        given = self.model_dump(include=set(MixBody.model_fields), exclude_unset=True)
        return replace(mix, **{name: by for name, by in given.items() if by is not None or name in optional})


class ChangeBody(MixBody):
    """`PATCH /native/turns/ID`: what changes in the mix of one of the turn's replies."""

    row: int = Field(default=0, ge=0)


class TurnBody(BaseModel):
    """`POST /native/turns`.

    Attributes:
        messages: the conversation.
        model: who speaks, as everywhere.
        persona_tui: the same and more, as everywhere.
        sampling: fields of `generation` in config.yaml, for this turn.
        mixes: who speaks, in full: the conversation is answered once with each of them, in one batch and with
            the same random numbers. Then `persona_tui` only says what is traced and judged.
        rendering: the date and the default system prompt with which the conversation began.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[ChatMessage]
    model: str | None = None
    persona_tui: VoiceOptions | None = None
    mixes: list[MixBody] = Field(default=[], max_length=_MOST_MIXES)
    rendering: RenderingRecord | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class ConversationBody(BaseModel):
    """`POST /native/tokens`: a conversation."""

    model_config = ConfigDict(extra="forbid")

    messages: list[ChatMessage]
    rendering: RenderingRecord | None = None


class ReadingsBody(BaseModel):
    """`POST /native/readings`: conversations whose last messages are read, as a watch reads them."""

    model_config = ConfigDict(extra="forbid")

    conversations: list[list[ChatMessage]] = Field(min_length=1, max_length=_MOST_SCORED)
    layers: list[int] = Field(min_length=1)


class PairBody(ConversationBody):
    """A conversation and what might be said next."""

    reply: str


class LikelihoodsBody(BaseModel):
    """`POST /native/likelihoods`: how likely are replies without any mix?"""

    model_config = ConfigDict(extra="forbid")

    pairs: list[PairBody] = Field(min_length=1, max_length=_MOST_SCORED)


class RereadBody(ConversationBody):
    """`POST /native/rereads`.

    Attributes:
        reply: what is read again, as a text or as its tokens; None = the last message, which is the user's.
        mixes: by token, what the reply was spoken with from that one on; none = it is read without any.
        trace: personas and traits that it is compared with.
    """

    reply: str | list[int] | None = None
    mixes: dict[int, MixBody] = {}
    trace: list[str] = []


class Native:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return where they are."""
        form = answering(openai_error)
        return [
            Route("/score", form(self.score), methods=["POST"]),
            Route("/native", form(self.about)),
            Route("/native/vectors/{name:path}", form(self.vectors)),
            Route("/native/tokens", form(self.tokens), methods=["POST"]),
            Route("/native/readings", form(self.readings), methods=["POST"]),
            Route("/native/likelihoods", form(self.likelihoods), methods=["POST"]),
            Route("/native/rereads", form(self.rereads), methods=["POST"]),
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
        mixes = await service.off_loop(lambda: tuple(self._mix(each) for each in body.mixes))
        prompt = [each.plain() for each in body.messages]
        wish = Wish([prompt], voice, sampling, mixes=mixes, rendering=_rendering(body.rendering))
        turn = await service.begin(wish)
        return server_sent(self._spoken(turn))

    def _mix(self, given: MixBody) -> Mix:
        self._service.voices.check_known(given.weights or {})
        return given.over(self._service.project.default_mix())

    async def _spoken(self, turn: Exchange) -> AsyncIterator[str]:
        id = uuid.uuid4().hex
        self._service.turns[id] = turn
        told = Counter[Answer]()  # changes of each reply's mix
        try:
            sampling = turn.answers[0].voiced.request.sampling
            opening = {
                "id": id,
                "fingerprint": self._service.model.fingerprint,
                "prompt_tokens": turn.prompt_tokens,
                "sampling": sampling and asdict(sampling),
            }
            yield data(opening, "begin")
            async with aclosing(turn.events(stoppable=True)) as events:
                async for row, event in events:
                    answer = turn.answers[row]
                    for token, mix in answer.voiced.changes[told[answer] :]:
                        told[answer] += 1
                        yield data({"row": row, "index": token, "mix": mix}, "mix")
                    yield data(as_record(event, row), "token")
            rows = [turn.summary(row) for row in range(len(turn.answers))]
            yield data(rows[0] if len(rows) == 1 else {"rows": rows}, "end")
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
        if request.method == "DELETE":
            for each in turn.answers:
                each.stop()
            return Response(status_code=204)
        body = await read_body(request, ChangeBody)
        if body.row >= len(turn.answers):
            raise Refused(f"This turn has {len(turn.answers)} replies, counted from 0.", param="row")
        voiced = turn.answers[body.row].voiced

        def changed() -> dict[str, Any]:
            service.voices.check_known(body.weights or {})
            mix = body.over(voiced.mix)
            voiced.set_mix(mix)
            return service.engine.describe(mix)

        return JSONResponse({"mix": await service.off_loop(changed)})

    # Reading ------------------------------------------------------------------------------------------------

    async def tokens(self, request: HttpRequest) -> Response:
        """Count the tokens of a conversation, with what its reply begins with."""
        body = await read_body(request, ConversationBody)
        messages, rendering = [each.plain() for each in body.messages], _rendering(body.rendering)
        encoder = self._service.encoder
        count = await self._service.off_loop(lambda: len(encoder.conversation(messages, rendering)))
        return JSONResponse({"tokens": count})

    async def readings(self, request: HttpRequest) -> Response:
        """Read the last messages of conversations: means over their tokens, and the last token before a
        reply.
        """
        body = await read_body(request, ReadingsBody)
        model = self._service.model
        conversations = [[message.plain() for message in each] for each in body.conversations]
        if not all(0 <= layer < model.n_layers for layer in body.layers):
            raise Refused(f"The layers are 0 to {model.n_layers - 1}.", param="layers")
        layers = sorted(set(body.layers))
        read = await self._service.with_model(lambda: model.read_messages(conversations, layers))
        return JSONResponse({"data": [reading_record(each) for each in read]})

    async def likelihoods(self, request: HttpRequest) -> Response:
        """Say how likely replies are, in nats per token."""
        body = await read_body(request, LikelihoodsBody)
        pairs = [([message.plain() for message in each.messages], each.reply) for each in body.pairs]
        found = await self._service.with_model(lambda: self._service.model.score(pairs))
        return JSONResponse({"data": [asdict(each) for each in found]})

    async def rereads(self, request: HttpRequest) -> Response:
        """Read a reply, or the user's last message, token by token."""
        body = await read_body(request, RereadBody)
        service, rendering = self._service, _rendering(body.rendering)
        messages = [each.plain() for each in body.messages]

        def read() -> list[TokenEvent]:
            engine = service.engine
            service.voices.check_known(body.trace)
            with service.model.rendered_as(rendering.record() if rendering is not None else None):
                if body.reply is None:
                    return engine.reread_message(messages, traced=body.trace)
                mixes = {index: self._mix(each) for index, each in body.mixes.items()}
                return engine.reread_reply(messages, body.reply, mixes, traced=body.trace)

        return JSONResponse({"data": [as_record(each) for each in await service.with_model(read)]})

    # What there is ------------------------------------------------------------------------------------------

    async def about(self, request: HttpRequest) -> Response:
        """Say which model is served, and with which vectors."""
        service = self._service
        return JSONResponse(await service.off_loop(lambda: about(service)))

    async def vectors(self, request: HttpRequest) -> Response:
        """Give the file of a persona, of a trait or of the axes, by a name that `/native` lists."""
        service, name = self._service, request.path_params["name"]

        def found() -> bytes:
            files = service.project.personas.files()
            if name not in files:
                raise Refused(f'There is no file "{name}".', status=404, code="file_not_found")
            return files[name].read_bytes()

        return Response(await service.off_loop(found), media_type="application/octet-stream")

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
        """List the axes, their layers, and the one that a floor is on by default."""
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


def about(service: Service) -> dict[str, Any]:
    """Return what a client has to know of a server before it chats."""
    model, settings = service.model, service.project.settings
    return {
        "native": NATIVE,
        "version": __version__,
        "model": service.base,
        "fingerprint": model.fingerprint,
        "source": model.source,
        "layers": model.n_layers,
        "hidden_size": model.hidden_size,
        "parameters": model.n_parameters,
        "context": service.context,
        "guides": service.model.guides,
        "seconds": service.limits.seconds,
        "rendering": model.rendering.record(),
        "circumstances": service.engine.circumstances(),
        "capping": {
            "layers": list(service.engine.capping_layers),
            "axis": settings.steering.capping_axis,
            "percentile": service.engine.safety_floor,
        },
        "monitor": _monitor(service.project),
        "vectors": {name: sha256(path) for name, path in service.project.personas.files().items()},
    }


def _monitor(project: Project) -> dict[str, str]:
    """Return what a guard judges with: its weakness ("" = it has none), or the problem that it cannot be
    used.
    """
    try:
        return {"weakness": project.monitors.load(project.settings.monitoring.monitor).weakness}
    except PersonaTuiError as error:
        return {"problem": str(error)}


def _rendering(given: RenderingRecord | None) -> Rendering | None:
    """Return how prompts are written; replies of a server do not think first."""
    return None if given is None else Rendering(given.date, given.default_system)


def reading_record(read: Reading) -> dict[str, Any]:
    """Return a reading for JSON."""
    tensors = {"mean": read.mean, "last": read.last, "parts": read.parts}
    return {
        "layers": list(read.layers),
        "n_tokens": read.n_tokens,
        **{name: None if each is None else each.tolist() for name, each in tensors.items()},
    }


def as_record(event: TokenEvent, row: int = 0) -> dict[str, Any]:
    """Return an event for JSON, without what is empty."""
    record = {name: getattr(event, name) for name in _TOLD}
    verdict, breaches = verdict_of(event), breaches_of(event)
    return {
        "row": row,
        **record,
        **({} if event.nats is None else {"nats": event.nats}),
        **({} if verdict is None else {"verdict": verdict.as_dict()}),
        **({"breaches": [each.as_dict() for each in breaches]} if breaches else {}),
    }


def _told(about: Any, name: str) -> dict[str, Any]:
    """Return what is known of one of them. A damaged file says so; it must not hide the others."""
    try:
        return {"name": name, **about(name)}
    except PersonaTuiError as error:
        return {"name": name, "error": str(error)}
