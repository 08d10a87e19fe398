"""What the endpoints share: bodies and messages in, errors out, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from persona_tui.core.documents import json_value
from persona_tui.core.errors import (
    LayerNotFoundError,
    MemoryShortage,
    PersonaNotFoundError,
    PersonaTuiError,
    VectorFileError,
)
from persona_tui.core.mistakes import mistake_of, place_of
from persona_tui.model import TokenEvent
from persona_tui.server.limits import Refused

logger = logging.getLogger(__name__)

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
GONE = 499  # as web servers log a client that did not wait; nobody receives it


def _text(content: object) -> object:
    """Return a message's content as text: parts are joined."""
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f'only parts of type "text" are read here, not "{kind}"')
            if not isinstance(part.get(part["type"]), str):
                raise ValueError(f'a part of type "{part["type"]}" needs its text under "{part["type"]}"')
        return "".join(part[part["type"]] for part in content)
    return content


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: Annotated[str | None, BeforeValidator(_text)] = None

    def plain(self) -> dict[str, str]:
        """Return it as the model takes it.

        Raises:
            Refused: its role is not known here, or it has no content and is not the assistant's.
        """
        role = _ROLES.get(self.role)
        if role is None:
            raise Refused(
                f'The role "{self.role}" is not known here; there are {", ".join(_ROLES)}.', param="messages"
            )
        if self.content is None and role != "assistant":  # whose message may have been a call of a tool
            raise Refused(f"A message of the {role}'s needs content.", param="messages")
        return {"role": role, "content": self.content or ""}


async def read_body(request: HttpRequest, form: type[B]) -> B:
    """Return a request's body; special characters that are no text are replaced.

    Raises:
        Refused: it is not JSON, or not of this form.
    """
    try:
        document = json_value(await request.body(), constants=False, halves=True)
    except ValueError as error:
        raise Refused(f"The body is not JSON: {error}", code="invalid_json") from error
    given = _clean(document)
    try:
        read = form.model_validate(given)
    except ValidationError as error:
        where = place_of(error, given) or None
        said = mistake_of(error, given, form)
        raise Refused(said if said.endswith("?") else f"{said}.", param=where) from error
    if (slip := _other_type(given, read.model_dump())) is not None:
        keys, needed, shown = slip
        raise Refused(f'"{keys}": {needed} is needed, not {shown}.', param=keys)
    return read


def _other_type(given: Any, read: Any, at: str = "") -> tuple[str, str, str] | None:
    """Return where a value was only made to fit: `true` taken for a number, "3" for 3, 1 for `true`.

    Returns:
        The keys with dots between them, what is needed there, and what was given, as JSON.
    """
    if isinstance(read, dict) and isinstance(given, dict):
        pairs = [(str(key), given[key], each) for key, each in read.items() if key in given]
    elif isinstance(read, list | tuple) and isinstance(given, list) and len(read) == len(given):
        pairs = [(str(place), *pair) for place, pair in enumerate(zip(given, read, strict=True))]
    elif isinstance(read, bool) and not isinstance(given, bool):
        return at, "true or false", json.dumps(given)
    elif isinstance(read, int | float) and not isinstance(read, bool) and isinstance(given, bool | str):
        return at, "a number", json.dumps(given)
    else:
        return None
    found = (_other_type(value, each, f"{at}.{key}".lstrip(".")) for key, value, each in pairs)
    return next((slip for slip in found if slip is not None), None)


def _clean(value: Any) -> Any:
    """Return a document without halves of surrogate pairs, which no tokenizer takes."""
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def status_of(error: Exception) -> int:
    """Return the HTTP status that tells of an error."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, PersonaNotFoundError):
        return 404
    if isinstance(error, MemoryShortage):
        return 503
    if isinstance(error, LayerNotFoundError):
        return 400
    if isinstance(error, VectorFileError) or not isinstance(error, PersonaTuiError):
        return 500
    return 400


def message_of(error: Exception) -> str:
    """Return what a client is told about an error: nothing about bugs in this program."""
    if isinstance(error, PersonaTuiError):
        return str(error)
    logger.error("A request failed.", exc_info=error)
    return "Something went wrong in the server; its log says what."


def openai_error(error: Exception) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    status = status_of(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    refused = error if isinstance(error, Refused) else None
    return {
        "error": {
            "message": message_of(error),
            "type": refused.kind if refused is not None else kind,
            "param": refused.param if refused is not None else None,
            "code": refused.code if refused is not None else None,
        }
    }


def ollama_error(error: Exception) -> dict[str, Any]:
    """Return an error in Ollama's form."""
    return {"error": message_of(error)}


Endpoint = Callable[[HttpRequest], Coroutine[Any, Any, Response]]


def answering(form: Callable[[Exception], dict[str, Any]]) -> Callable[[Endpoint], Endpoint]:
    """Return what has an endpoint's errors answered in a form."""

    def around(endpoint: Endpoint) -> Endpoint:
        async def answered(request: HttpRequest) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=GONE)
            except Exception as error:  # whatever it is, the client is told in the form it knows
                return error_response(error, form)

        return answered

    return around


def error_response(error: Exception, form: Callable[[Exception], dict[str, Any]]) -> Response:
    """Return the response that tells of an error."""
    status = status_of(error)
    headers = {"Retry-After": "5"} if status in (429, 503) else None
    return JSONResponse(form(error), status, headers)


async def unless_gone(request: HttpRequest, work: Awaitable[T]) -> T | None:
    """Wait for something, but no longer than the client does; None if it is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_sent(events: AsyncIterator[str]) -> Response:
    """Return a response of server-sent events, each already in its form."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def data(document: object, event: str | None = None) -> str:
    """Return one server-sent event."""
    name = f"event: {event}\n" if event is not None else ""
    return f"{name}data: {compact(document)}\n\n"


def compact(document: object) -> str:
    """Return a document as JSON on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def written(events: Sequence[TokenEvent]) -> list[TokenEvent]:
    """Return the tokens that are part of the text: the end of the turn is not."""
    return [event for event in events if event.text or event.finish is None]
