"""What is asked of vLLM for one request, and what comes back; and whoever asks it."""

from __future__ import annotations

import itertools
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.model.pool import Pool, unusable
from persona_tui.vllm.wire import ENGINE, About, Errand, Slot, slot_key

_names = itertools.count()
_process = secrets.token_hex(4)  # other processes may ask the same server


@dataclass(frozen=True)
class Order:
    """One request.

    Attributes:
        prompt: token ids.
        errand: what the workers do for it.
        tokens: how many are written at most.
        ends: ids that end it.
        likeliest: how many of the likeliest tokens are told with each one; None = no log-probabilities are.
        salt: what its part of the cache is kept apart by, besides what is done to it.
    """

    prompt: Sequence[int]
    errand: Errand
    tokens: int = 1
    ends: frozenset[int] = frozenset()
    likeliest: int | None = None
    salt: str = ""


def _about(order: Order) -> tuple[int, tuple[int, ...]]:
    """Return what mostly tells an order from others, whatever it is called."""
    return order.errand.seed, tuple(order.prompt)


def _spans(orders: Iterable[Order]) -> int:
    return sum(len(order.errand.spans) for order in orders)


@dataclass(frozen=True)
class Arrival:
    """What a step has brought for one request.

    Attributes:
        name: of its errand.
        tokens: new ones.
        logprobs: of each, those that are told, by token.
        done: whether it has ended.
    """

    name: str
    tokens: list[int]
    logprobs: list[dict[int, float]] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True)
class Sums:
    """What was summed up for one request.

    Attributes:
        counts: tokens, by span.
        sums: `[spans, layers, hidden]` float32; None = there are no spans.
        scores: log-probabilities of the prompt's tokens, from the first that is told.
    """

    counts: list[int]
    sums: Tensor | None
    scores: list[float] = field(default_factory=list)


def prompt_of(order: Order) -> Any:
    """Return an order's prompt, for vLLM; its part of the cache knows what is done to it."""
    from vllm import TokensPrompt

    prompt = TokensPrompt(prompt_token_ids=list(order.prompt))
    if salt := f"{order.errand.way}{order.salt}":
        prompt["cache_salt"] = salt
    return prompt


def params_of(order: Order) -> Any:
    """Return how vLLM answers an order: greedily, as workers draw the tokens themselves (`WorkerSlots`)."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=order.tokens,
        stop_token_ids=sorted(order.ends),
        ignore_eos=True,  # what ends a turn is among them
        logprobs=order.likeliest,
        detokenize=False,
        skip_reading_prefix_cache=order.errand.first is not None,  # but for what comes before (`plugin`)
        output_kind=RequestOutputKind.DELTA,
        extra_args={ENGINE: order.errand.packed()},
    )


def arrival_of(output: Any) -> Arrival:
    """Return what an output of vLLM has brought."""
    best = output.outputs[0]
    logprobs = [{token: each.logprob for token, each in told.items()} for told in best.logprobs or ()]
    return Arrival(str(output.request_id), list(best.token_ids), logprobs, bool(output.finished))


def sums_of(answers: Sequence[dict[str, Any]], layers: int, hidden: int) -> dict[str, Sums]:
    """Return what was summed up for requests, from what each worker says."""
    found = {}
    for name, count in answers[0]["counts"].items():
        sums = None
        for each in answers:  # where others hold other layers, their sums are zero
            if name in each["sums"]:
                numbers = torch.from_numpy(np.frombuffer(each["sums"][name], dtype=np.float32).copy())
                shaped = numbers.view(len(count), layers, hidden)
                sums = shaped if sums is None else sums + shaped
        scores = [score for each in answers for score in each["scores"].get(name, ())]  # of who has the head
        found[name] = Sums(list(count), sums, scores)
    return found


def pools_of(answers: Sequence[Sequence[dict[str, Any]]], layers: Sequence[int], hidden: int) -> list[Pool]:
    """Groups of replies, from what each worker says: where others hold other layers, theirs are zero.

    Raises:
        GenerationError: an activation is not a usable number.
    """
    pools = []
    for told in zip(*answers, strict=True):
        if (wrong := max(each["wrong"] for each in told)) >= 0:
            raise unusable(wrong)
        totals = [torch.from_numpy(np.frombuffer(each["totals"], dtype=np.int64).copy()) for each in told]
        count, tokens = told[0]["count"], told[0]["tokens"]
        whole = torch.stack(totals).sum(0).view(2, len(layers), hidden) if count else None
        pools.append(Pool(tuple(layers), whole, count, tokens))
    return pools


def pools_to(pools: Sequence[Pool]) -> bytes:
    """Groups of replies, for another machine."""
    tensors = {}
    for number, pool in enumerate(pools):
        tensors[f"{number}.counts"] = torch.tensor([pool.count, pool.tokens])
        if pool.totals is not None:
            tensors[f"{number}.totals"] = pool.totals.contiguous()
    return save(tensors)


def pools_from(data: bytes, layers: Sequence[int]) -> list[Pool]:
    """Return what `pools_to` has made.

    Raises:
        SafetensorError: it is something else.
    """
    tensors = load(data)
    found = []
    for number in range(sum(name.endswith(".counts") for name in tensors)):
        count, tokens = tensors[f"{number}.counts"].tolist()
        found.append(Pool(tuple(layers), tensors.get(f"{number}.totals"), count, tokens))
    return found


def sums_to(sums: Mapping[str, Sums], broken: Iterable[str] = ()) -> bytes:
    """Return what was summed up for requests, for another machine; and those that have lost their twins."""
    tensors = {f"{name}.counts": torch.tensor(each.counts) for name, each in sums.items()}
    tensors |= {f"{name}.sums": each.sums for name, each in sums.items() if each.sums is not None}
    tensors |= {f"{name}.scores": torch.tensor(each.scores) for name, each in sums.items() if each.scores}
    tensors |= {f"{name}.broken": torch.tensor(1) for name in broken}
    return save(tensors)


def sums_from(data: bytes) -> tuple[dict[str, Sums], set[str]]:
    """Return what `sums_to` has made.

    Raises:
        SafetensorError: it is something else.
    """
    tensors, end = load(data), ".counts"
    found = {}
    for name in [each.removesuffix(end) for each in tensors if each.endswith(end)]:
        scores = tensors.get(f"{name}.scores", torch.empty(0))
        found[name] = Sums(tensors[f"{name}{end}"].tolist(), tensors.get(f"{name}.sums"), scores.tolist())
    return found, {name.removesuffix(".broken") for name in tensors if name.endswith(".broken")}


def told_of(answers: Sequence[dict[str, list[list[float]]]]) -> dict[str, list[list[float]]]:
    """Return what was found of the tokens of requests, from what each worker says: see `Driver.traced`."""
    found = answers[-1]  # the last stage chooses the tokens
    for each in answers[:-1]:  # others have other layers
        for name, rows in each.items():
            for own, more in zip(found[name], rows, strict=True):
                own[1:] = [one + other for one, other in zip(own[1:], more[1:], strict=True)]
    return found


class Driver(ABC):
    """vLLM as our engine uses it: token ids in, token ids out, and the sums that its workers took.

    What comes for a request waits for whoever steps for it: text can be read in the middle of a stream, whose
    replies may be written on meanwhile.

    Attributes:
        about: see `About`.
    """

    about: About
    joins = True  # whether a twin can begin in the middle of a reply
    held_at_most = 4096  # ways that workers keep for us
    ahead_at_most = 0.5  # share of the places for sums that is for what will be asked for later

    def __init__(self) -> None:
        self._held: dict[str, None] = {}
        self._open: set[str] = set()  # names of what is being answered
        self._come: dict[str, deque[Arrival]] = {}  # by name, what nobody has seen yet
        self._partner: dict[str, str] = {}  # guided requests and their twins, both ways
        self._ahead: dict[tuple[int, tuple[int, ...]], Order] = {}  # begun before they are asked for

    @staticmethod
    def new_name() -> str:
        """Return a name that no errand had before."""
        return f"{_process}-{next(_names)}"

    def hold(self, slots: Sequence[Slot]) -> list[str]:
        """Have the workers keep what is done to requests; the key of each, "" for nothing."""
        keys = [slot_key(each) for each in slots]
        new = {key: each for key, each in zip(keys, slots, strict=True) if key not in self._held}
        new.pop("", None)
        if new:
            unused = [key for key in self._held if key not in keys]
            forgotten = unused if len(self._held) > self.held_at_most else []
            self._hold(new, forgotten)
            self._held = {key: None for key in self._held if key not in forgotten} | dict.fromkeys(new)
        return keys

    def check_idle(self) -> None:
        """Raise a GenerationError if a reply is being written: only text can be read meanwhile. What was only
        foreseen gives way."""
        self.forget_ahead()
        if self._open:
            raise GenerationError("vLLM is in the middle of another reply: let it end first.")

    def add(self, order: Order) -> None:
        """Have a request answered, beside those that are."""
        errand = order.errand
        self._add(order)
        self._open.add(errand.name)
        self._come[errand.name] = deque()
        if errand.twin:
            self._partner |= {errand.name: errand.twin, errand.twin: errand.name}

    def begin(self, orders: Sequence[Order]) -> bool:
        """Have requests answered that will be asked for later, if there is room for them and their sums;
        return whether there was.
        """
        new = {key: order for order in orders if (key := _about(order)) not in self._ahead}
        ahead = [*self._ahead.values(), *new.values()]
        room = self.about.places * self.ahead_at_most
        if _spans(ahead) > room or len(ahead) > max(len(orders), 2 * self.about.requests):
            return False
        for order in new.values():
            self.add(order)
        self._ahead |= new
        return True

    def begun(self, order: Order) -> Order | None:
        """Return the same order that was begun before, under its own name; None = there is no such."""
        found = self._ahead.get(_about(order))
        if found is None or replace(order, errand=replace(order.errand, name=found.errand.name)) != found:
            return None
        return self._ahead.pop(_about(order))

    def forget_ahead(self) -> None:
        """Be done with what was begun, and was not asked for."""
        names = [order.errand.name for order in self._ahead.values()]
        self._ahead.clear()
        if names:
            self.abort(names)
            self.take(names)

    def step(self, among: Collection[str] | None = None) -> list[Arrival]:
        """Return what comes next: one token for each request at most, for a guided one with its twin's;
        nothing, where a pass has only read.

        Args:
            among: the requests that are looked for; None = all.
        """
        names = list(self._come) if among is None else [name for name in among if name in self._come]
        found = self._ready(names)
        if not found:
            for arrival in self._pass():
                if arrival.name in self._come:
                    self._come[arrival.name].append(arrival)
            found = self._ready(names)
        for arrival in found:
            if arrival.done:
                self._close([arrival.name])
        return found

    def _ready(self, names: Sequence[str]) -> list[Arrival]:
        def waits(name: str) -> bool:
            return name in self._come and not self._come[name]

        ready = [name for name in names if not waits(name) and not waits(self._partner.get(name, name))]
        return [self._come[name].popleft() for name in ready]

    def abort(self, names: Sequence[str]) -> None:
        """Have requests answered no further."""
        self._abort([name for name in names if name in self._open])
        self._close(names)

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            self._open.discard(name)
            self._come.pop(name, None)
            self._partner.pop(name, None)

    def run(self, orders: Sequence[Order]) -> Iterator[list[Arrival]]:
        """Have requests answered, and yield what comes for them until all are; what is left is aborted."""
        if _spans([*orders, *self._ahead.values()]) > self.about.places:
            self.forget_ahead()
        for order in orders:
            if order.errand.name not in self._come:  # else it was begun before
                self.add(order)
        left = {order.errand.name for order in orders}
        try:
            while left:
                written = self.step(left)
                left -= {each.name for each in written if each.done}
                yield written
                left &= self._open
        finally:
            self.abort(sorted(left))

    @abstractmethod
    def _hold(self, new: Mapping[str, Slot], forgotten: Sequence[str]) -> None: ...

    @abstractmethod
    def _add(self, order: Order) -> None: ...

    @abstractmethod
    def _pass(self) -> list[Arrival]:
        """Return what one more pass brings, for whomever."""

    @abstractmethod
    def _abort(self, names: Sequence[str]) -> None: ...

    @abstractmethod
    def take(
        self, names: Sequence[str], layers: Sequence[int] = (), keep: bool = False
    ) -> tuple[dict[str, Sums], set[str]]:
        """Return what was summed up for requests, which workers forget unless it is kept; and those that have
        lost their twins, which are not to be believed.
        """

    @abstractmethod
    def pool(self, groups: Sequence[Sequence[str]], layers: Sequence[int]) -> list[Pool]:
        """Return the replies of groups of requests, added up where they were written, and not forgotten."""

    @abstractmethod
    def change(self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]) -> None:
        """Do something else to running requests from their next token on."""

    @abstractmethod
    def traced(self, names: Sequence[str]) -> dict[str, list[list[float]]]:
        """Return what was found of the tokens that requests have brought in the last step: entropy, lift,
        projections.
        """

    @abstractmethod
    def shut_down(self) -> None:
        """Be done with vLLM."""
