"""What steering and extraction need of a model that runs: one protocol, whatever runs it.

`ModelWrapper` is the backend on transformers. Another one keeps the same promises: mixes arrive as
`Interventions` (one for the batch or one per row), activations leave as float32 tensors on the CPU, layer i
is the output of decoder block i counted from 0, and log-probabilities are in nats under the model as it is
(before temperature and top-p).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from persona_tui.core.identity import ModelSketch
    from persona_tui.model.distil import Distillation
    from persona_tui.model.pool import Pooled
    from persona_tui.model.request import Interventions, Message, Poll, Request, Sampling, Watch
    from persona_tui.model.results import Activations, Generation, Likelihood, Reading, TokenEvent
    from persona_tui.model.text import Rendering

Axes = Mapping[str, Mapping[int, Tensor]]


class Backend(Protocol):
    """A loaded causal language model that can be steered, capped and read.

    Not for use from several threads at once. Every method raises GenerationError when a text does not fit the
    context, a vector does not fit the model, or memory ran out.
    """

    @property
    def name(self) -> str:
        """What the user called the model."""
        ...

    @property
    def slug(self) -> str:
        """The name as a folder name."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells this model from others; vectors remember it."""
        ...

    @property
    def sketch(self) -> ModelSketch:
        """What tells near copies of this model from others; vectors remember it."""
        ...

    @property
    def source(self) -> str:
        """Where the weights came from, and their SHA-256; "" where that is not known."""
        ...

    @property
    def identity(self) -> tuple[str, str, str]:
        """Fingerprint, precision and quantization: what the last digits of a result depend on."""
        ...

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        ...

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most tokens that a prompt and its reply may have together; None = no limit is known."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    @property
    def rendering(self) -> Rendering:
        """What the chat template writes by itself, and whether the model thinks before it answers."""
        ...

    def today(self) -> dict[str, Any]:
        """Return the record of what the template writes in a conversation that begins now."""
        ...

    def rendered_as(self, record: Mapping[str, Any] | None) -> AbstractContextManager[None]:
        """Within, write prompts as was recorded; None = as they are."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how much of the context a conversation takes."""
        ...

    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | Poll | None = None,
        axes: Axes | None = None,
        stop: threading.Event | None = None,
        watch: Watch | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer all requests in one batch: rows with their mixes in, one event per row and token out.

        Args:
            requests: one row each; a row's text depends on its own seed only.
            sampling: how tokens are chosen.
            interventions: what is done to the residual stream; or a function that is asked before every token
                and returns new interventions, or None to leave them as they are. Rows with a plausibility
                are guided: an unsteered twin limits their tokens, and the events have `nats`.
            axes: name -> layer -> `[hidden]`, what the events' projections are about.
            stop: when set, no further token is written and unfinished rows end with a "cancelled" event.
            watch: what is read for a monitor, in the passes that write.
        """
        ...

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | None = None,
        capture_layers: Sequence[int] = (),
        on_step: Callable[[], None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """Answer all requests in one batch, with the response means `[layers, hidden]` of each.

        The means come from the pass that writes; without `capture_layers` there are none.

        Args:
            on_step: called after every token; may raise, to give up.
        """
        ...

    def foresee(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Callable[[], Interventions] | None = None,
        captured: bool = False,
    ) -> bool:
        """Be told what `generate` or `pooled` will be asked soon, in this order, so that its answers may be
        begun before those of what is asked first have ended. It changes no answer.

        Args:
            requests: none = what was foreseen is not wanted any more.
            sampling: as it will be given.
            interventions: makes what will be given.
            captured: whether activations will be.

        Returns:
            Whether they were begun, and the next ones are of interest.
        """
        ...

    def pooled(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        capture_layers: Sequence[int] = (),
        belongs: Callable[[str], bool] | None = None,
        kept: Collection[int] = (),
        on_step: Callable[[], None] | None = None,
    ) -> Pooled:
        """Answer all requests in one batch, their activations added up where the model runs.

        Args:
            belongs: told a reply; whether it is of the first of two kinds. None = all are.
            kept: rows whose own activations are wanted as well.
        """
        ...

    def score(
        self, pairs: Sequence[tuple[list[Message], str]], interventions: Interventions | None = None
    ) -> list[Likelihood]:
        """Return how likely given replies are after their conversations, in nats per token.

        Args:
            interventions: what is done at every position; rows are those of `pairs`.
        """
        ...

    def read(
        self,
        texts: Sequence[str | list[Message]],
        layers: Sequence[int],
        interventions: Interventions | None = None,
    ) -> list[Activations]:
        """Return the activations of given texts, or of the last replies of given conversations."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it computes gradients: whether `distillation` can be called."""
        ...

    def distillation(
        self,
        lessons: Sequence[tuple[list[Message], list[Message], str]],
        emphasis: float = 1.0,
        focus: float = 0.0,
        own: bool = False,
    ) -> Distillation:
        """Prepare to fit vectors; see `LoadedModel.distillation`."""
        ...

    def read_messages(self, conversations: Sequence[list[Message]], layers: Sequence[int]) -> list[Reading]:
        """Return what a watch would read of the last message of each conversation, without an answer."""
        ...

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        axes: Axes,
        changes: Mapping[int, Interventions] | None = None,
    ) -> list[TokenEvent]:
        """Return a given reply's events, as `stream` would have reported them.

        Args:
            changes: by token: the interventions from that one on.
        """
        ...

    def reread_message(self, messages: Sequence[Message], axes: Axes) -> list[TokenEvent]:
        """Return the events of the user's last message, each token at its own position."""
        ...
