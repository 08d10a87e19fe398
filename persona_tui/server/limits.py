"""What a server takes on, and the errors that say it does not."""

from __future__ import annotations

from dataclasses import dataclass

from persona_tui.core.errors import PersonaTuiError


@dataclass(frozen=True)
class Capacity:
    """What a server takes on.

    Attributes:
        rows: replies written at a time, in one batch.
        waiting: replies that may wait for the next batch.
        tokens: prompts and replies of one batch, padding included.
        body: bytes of a request.
        seconds: from a request's arrival to the end of its reply.
        closing: seconds that running replies have when the server is told to end.
    """

    rows: int = 32
    waiting: int = 128
    tokens: int = 2**15
    body: int = 2**22
    seconds: float = 600.0
    closing: float = 30.0


class Refused(PersonaTuiError):
    """A request that is not answered.

    Attributes:
        status: of the HTTP response.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, if it has one for this.
        param: the field of the request that is wrong, if one is.
    """

    status = 400
    kind = "invalid_request_error"
    code: str | None = None

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status or self.status
        self.code = code or self.code
        self.param = param


class TooManyWaiting(Refused):
    """Too many replies wait already."""

    status = 429
    kind = "rate_limit_exceeded"
    code = "queue_full"


class TooLarge(Refused):
    """A prompt does not fit the context, or a body is too large."""

    status = 413
    code = "context_length_exceeded"


class Unavailable(Refused):
    """It took too long, or the server is about to end."""

    status = 503
    kind = "server_error"
    code = "unavailable"
