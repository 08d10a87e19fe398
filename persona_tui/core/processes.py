"""The processes that share one job.

`accelerate launch` starts several, on one machine or on many, each with the whole model (or as much of the
machine's devices as the model needs). They take turns at a job's batches and add up the results. Only
the first, the main one, prints and writes vectors.

What travels between them are a few sums on the CPU, so that gloo carries it, whatever the model runs on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from persona_tui.core.errors import JobCancelled, PersonaTuiError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# A launcher ends all processes when one of them fails. Until then, one may have to wait long for another.
_PATIENCE = timedelta(days=30)


class OtherProcessEnded(JobCancelled):
    """Another process of the same launch is gone; what went wrong is for that one to say."""


def launched() -> bool:
    """Return whether this process is one of several. Loads nothing."""
    return _number("WORLD_SIZE", 1) > 1


def is_main() -> bool:
    """Return whether this process is the one that prints and writes. Loads nothing."""
    return not launched() or _number("RANK", 0) == 0


def may_speak() -> bool:
    """Return whether an error here is for this process to tell: what all of them meet, only the main one
    tells.
    """
    return is_main() or (processes.cache_info().currsize > 0 and processes().alone)


def local_place() -> int:
    """This process' place among those on the same machine, from 0."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    try:
        return int(os.environ.get(variable, ""))
    except ValueError:
        return default


class Processes:
    """All processes of this launch, as one of them sees them. Every method but `share` needs all of them.

    Attributes:
        count: how many there are.
        place: this one's number, from 0.
        alone: whether this process does something that the others do not, so that only it knows what goes
            wrong.
    """

    def __init__(self, count: int = 1, place: int = 0) -> None:
        self.count = count
        self.place = place
        self.alone = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.place == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process' share of items that all of them know, in the same order."""
        return items[self.place :: self.count]

    @contextmanager
    def own_share(self) -> Iterator[None]:
        """Around what this process does alone; an error there leaves `alone` set."""
        self.alone = True
        yield
        self.alone = False

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what the main process makes, in all of them. Its errors, too."""
        if self.count == 1:
            return make()
        outcome: tuple[bool, Any] = (False, None)
        if self.is_main:
            try:
                outcome = (True, make())
            except PersonaTuiError as error:
                outcome = (False, error)
        box = [outcome]
        with _peers_may_end():
            _distributed().broadcast_object_list(box, src=0)
        made, value = box[0]
        if not made:
            raise value
        result: T = value
        return result

    def gather(self, value: T) -> list[T]:
        """Return what each process has, by place."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _peers_may_end():
            _distributed().all_gather_object(values, value)
        return values

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the CPU; exact for whole numbers."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        with _peers_may_end():
            _distributed().all_reduce(total)
        return total

    def wait(self) -> None:
        """Go on when all have come here."""
        self.gather(None)


@cache
def processes() -> Processes:
    """Return the processes of this launch; they find each other on the first call."""
    if not launched():
        return Processes()
    from accelerate import PartialState

    with warnings.catch_warnings(), _peers_may_end():
        warnings.simplefilter("ignore")  # how many threads it chose
        state = PartialState(cpu=True, backend="gloo", timeout=_PATIENCE)
    atexit.register(_leave)
    return Processes(state.num_processes, state.process_index)


def _leave() -> None:
    """Join gloo's threads before the interpreter ends: left running, they abort the process now and then."""
    with contextlib.suppress(RuntimeError):  # the others are gone already
        if _distributed().is_initialized():
            _distributed().destroy_process_group()


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


@contextmanager
def _peers_may_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OtherProcessEnded("another process of this launch has ended") from error
