"""A served model, as far as a chat has to know it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

import torch

from persona_tui.core.connection import Connection
from persona_tui.core.errors import EndpointError, GenerationError, PersonaTuiError
from persona_tui.core.workspace import model_slug
from persona_tui.model import Interventions, Likelihood, Message, Reading, TokenEvent
from persona_tui.model.text import Rendering


class RemoteModel:
    """Stands where a `Backend` stands. It reads, but only `RemoteEngine` has it write.

    Attributes:
        connection: to its server.
        circumstances: what besides the model decides about the last digits of its replies.
        context_length: the most tokens that a prompt and its reply may have together.
        rendering: what the chat template writes by itself.
    """

    def __init__(self, connection: Connection, about: Mapping[str, Any]) -> None:
        """
        Args:
            connection: to its server.
            about: what the server has said about it (`GET /native`).
        """
        self.connection = connection
        self.name = str(about["model"])
        self.slug = model_slug(self.name)
        self.fingerprint = str(about["fingerprint"])
        self.source = str(about["source"])
        self.n_layers = int(about["layers"])
        self.hidden_size = int(about["hidden_size"])
        self.n_parameters = int(about["parameters"])
        self.context_length: int | None = int(about["context"])
        self.circumstances = dict(about["circumstances"])
        self.rendering = Rendering.from_record(about["rendering"]) or Rendering()

    @property
    def device(self) -> torch.device:
        """Where it runs, on its machine."""
        return torch.device(str(self.circumstances["device"]))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        found = getattr(torch, str(self.circumstances["dtype"]))
        assert isinstance(found, torch.dtype)
        return found

    @property
    def identity(self) -> tuple[str, str, str]:
        """Fingerprint, precision and quantization."""
        facts = self.circumstances
        return self.fingerprint, str(facts["dtype"]), str(facts["quantization"])

    def today(self) -> dict[str, Any]:
        """Return the record of what the template writes in a conversation that begins now."""
        now = datetime.now().isoformat(timespec="seconds")
        return replace(self.rendering, date=self.rendering.date and now).record()

    @contextmanager
    def rendered_as(self, record: Mapping[str, Any] | None) -> Iterator[None]:
        """Within, prompts are written as was recorded; a served model does not think before it answers."""
        before = self.rendering
        found = Rendering.from_record(record) or before
        self.rendering = Rendering(found.date, found.default_system)
        try:
            yield
        finally:
            self.rendering = before

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how much of the context a conversation takes.

        Raises:
            EndpointError: the server does not answer.
        """
        body = {"messages": list(messages), "rendering": self.rendering.record()}
        return int(self.connection.post("/native/tokens", body)["tokens"])

    def read_messages(self, conversations: Sequence[list[Message]], layers: Sequence[int]) -> list[Reading]:
        """Return what a watch would read of the last message of each conversation, without an answer.

        Raises:
            EndpointError: the server does not answer.
        """
        body = {"conversations": list(conversations), "layers": list(layers)}
        return [_reading(each) for each in self.connection.post("/native/readings", body)["data"]]

    def score(
        self, pairs: Sequence[tuple[list[Message], str]], interventions: Interventions | None = None
    ) -> list[Likelihood]:
        """Return how likely given replies are after their conversations, in nats per token.

        Raises:
            GenerationError: the server cannot say, or interventions are given, which take the model itself.
        """
        if interventions is not None:
            raise GenerationError(f"interventions need the model itself, which is at {self.connection.url}")
        body = {"pairs": [{"messages": messages, "reply": reply} for messages, reply in pairs]}
        try:
            found = self.connection.post("/native/likelihoods", body)["data"]
        except EndpointError as error:
            raise GenerationError(str(error)) from error
        return [Likelihood(**each) for each in found]

    # What takes the weights ---------------------------------------------------------------------------------

    @property
    def sketch(self) -> NoReturn:
        """Not to be had."""
        self._not_here()

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[TokenEvent]:
        """Not to be had: see `RemoteEngine.stream_rows`."""
        self._not_here()

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had."""
        self._not_here()

    def foresee(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had."""
        self._not_here()

    def pooled(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had."""
        self._not_here()

    def read(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had."""
        self._not_here()

    @property
    def learns(self) -> bool:
        """Whether vectors can be fitted here."""
        return False

    def distillation(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had."""
        self._not_here()

    def reread_reply(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had: see `RemoteEngine.reread_reply`."""
        self._not_here()

    def reread_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not to be had: see `RemoteEngine.reread_message`."""
        self._not_here()

    def _not_here(self) -> NoReturn:
        raise PersonaTuiError(f"That needs the model itself, which is at {self.connection.url}: do it there")


def _reading(record: Mapping[str, Any]) -> Reading:
    tensors = {
        name: None if record[name] is None else torch.tensor(record[name])
        for name in ("mean", "last", "parts")
    }
    assert tensors["mean"] is not None
    return Reading(
        tuple(record["layers"]), tensors["mean"], tensors["last"], int(record["n_tokens"]), tensors["parts"]
    )
