"""What `--engine URL` on another machine asks of a vLLM server, below `/v1/persona_tui`.

There only where the operator has said so (`serve --lend`), behind the server's API key: whoever may pass has
vectors of their own added here, as numbers, and has text written and read. Files of the workspace cannot be
named, and nothing is unpickled.

1. `GET` says which model is served; `files/NAME` gives its tokenizer and configuration, but no weights.
2. `ways` takes what is done to requests, by a hash of it. `orders` answers requests, pass by pass, as events.
3. `sums` gives what was summed up for them, as `[spans, layers, hidden]`; `pools`, what the replies of groups
   of them come to together. `change` and `abort` act on those that are being answered.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from persona_tui.core.documents import json_value
from persona_tui.core.errors import GenerationError, PersonaTuiError
from persona_tui.core.mistakes import mistake_of
from persona_tui.core.mix import TEMPERATURE, TOP_P
from persona_tui.vectors.axes import AXIS_NAMES
from persona_tui.vectors.manager import sha256
from persona_tui.vllm.asgi import (
    OURS,
    PROTOCOL,
    Receive,
    Scope,
    Send,
    answer,
    answer_bytes,
    begin_events,
    event,
    gone,
    refuse,
)
from persona_tui.vllm.op import AXES, TRACES
from persona_tui.vllm.orders import (
    Arrival,
    Order,
    arrival_of,
    params_of,
    pools_of,
    pools_to,
    prompt_of,
    sums_of,
    sums_to,
    told_of,
)
from persona_tui.vllm.wire import MODEL, PASS, Slot, axes_of, door_pass, pack_slot, slots_from

_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_WAYS_BYTES = 2**31  # of ways that are kept, in the memory of each worker's process; at least 512
_PATIENCE = 120.0  # seconds that orders wait for others' sums
_FORGOTTEN = 30.0  # seconds after which nobody asks for the sums of a request any more
_LOOK = 2.0  # seconds between looks for such sums, while others wait for their room

_ORDERS = TypeAdapter(list[Order])


class Door:
    """Answers below `OURS`.

    Attributes:
        problem: why it does not; "" if it does.
    """

    def __init__(self, engine: Any, slug: str) -> None:
        """
        Args:
            engine: vLLM's.
            slug: what clients call the model.
        """
        self._engine = engine
        self._slug = slug
        self._config = engine.vllm_config
        self._layers = int(self._config.model_config.hf_text_config.num_hidden_layers)
        self._hidden = int(self._config.model_config.hf_text_config.hidden_size)
        self._most_ways = max(512, _WAYS_BYTES // (8 * self._layers * self._hidden))
        self._about: dict[str, Any] | None = None
        self._beginning = asyncio.Lock()
        self._ways: dict[str, None] = {}
        self._spans: dict[str, int] = {}  # by request whose sums are kept, how many
        self._ended: dict[str, float] = {}  # when it has ended
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ways_of: dict[str, str] = {}  # by request that is being answered, what is done to it
        self._freed = asyncio.Condition()
        self.problem = self._problem()

    def _problem(self) -> str:
        if self._config.scheduler_config.async_scheduling:
            return "engines on other machines need --no-async-scheduling, else sums have a token too many"
        if self._config.parallel_config.data_parallel_size > 1:
            return "engines on other machines need --data-parallel-size 1: sums are in one of the copies"
        if self._config.speculative_config is not None:
            return "engines on other machines cannot use a server that drafts tokens"
        return ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str, body: bytes) -> None:
        """Answer a request; `path` is what comes behind `OURS`."""
        method = scope["method"]
        try:
            if self.problem:
                raise PersonaTuiError(self.problem)
            if (method, path) == ("GET", ""):
                await answer(send, await self.about())
            elif method == "GET" and path.startswith("/files/"):
                await answer_bytes(send, await asyncio.to_thread(self._file, path[7:]))
            elif (method, path) == ("POST", "/ways"):
                await self.hold(body)
                await answer(send, {})
            elif (method, path) == ("POST", "/orders"):
                await self.answer(_ORDERS.validate_json(body), receive, send)
            elif (method, path) == ("POST", "/sums"):
                await answer_bytes(send, await self.take(_read(body)))
            elif (method, path) == ("POST", "/pools"):
                await answer_bytes(send, await self.pool(_read(body)))
            elif (method, path) == ("POST", "/change"):
                await self.change(_read(body))
                await answer(send, {})
            elif (method, path) == ("POST", "/abort"):
                await self.abort(_names(_read(body)))
                await answer(send, {})
            else:
                await refuse(send, f"there is no {method} {OURS}{path}", 404)
        except ValidationError as error:
            await refuse(send, mistake_of(error))
        except _Full as error:
            await refuse(send, str(error), 503)
        except (PersonaTuiError, ValueError) as error:
            await refuse(send, str(error))

    async def _ask(self, method: str, *arguments: Any) -> list[Any]:
        answers = await self._engine.collective_rpc(method, args=arguments)
        return [each for each in answers if each is not None]

    # What is served -----------------------------------------------------------------------------------------

    async def about(self) -> dict[str, Any]:
        """Say which model is served."""
        async with self._beginning:
            if self._about is None:
                workers = (await self._ask("persona_tui_about"))[0]
                self._about = {**await asyncio.to_thread(self._identity), "about": workers}
        return self._about

    def _identity(self) -> dict[str, Any]:
        """Return what tells the model from others; its weights stay on the disk."""
        from persona_tui.model import ModelWrapper, loader, sources

        config = self._config.model_config
        dtype = str(config.dtype).removeprefix("torch.")
        model, tokenizer = loader.load(
            config.model, loader.ON_DISK, dtype, "none", bool(config.trust_remote_code)
        )
        named = os.environ.get(MODEL, self._slug)
        name = self._slug if Path(named).is_absolute() or Path(named).exists() else named
        found = ModelWrapper(model, tokenizer, name, sources.resolve(config.model).identity)
        return {
            "protocol": PROTOCOL,
            "name": name,
            "source": found.source,
            "fingerprint": found.fingerprint,
            "sketch": found.sketch.record(),
            "dtype": dtype,
            "files": {each.name: sha256(each) for each in self._folder().iterdir() if each.name in _FILES},
        }

    def _folder(self) -> Path:
        from persona_tui.model import sources

        folder = sources.resolve(self._config.model_config.model).folder
        if folder is None:
            raise PersonaTuiError("the files of the served model are not on the server")
        return folder

    def _file(self, name: str) -> bytes:
        if name not in _FILES or not (path := self._folder() / name).is_file():
            raise PersonaTuiError("there is no such file of the model")
        return path.read_bytes()

    # Requests -----------------------------------------------------------------------------------------------

    async def hold(self, body: bytes) -> None:
        """Keep what is done to requests.

        Raises:
            PersonaTuiError: it does not fit the model.
        """
        slots = slots_from(body)
        for slot in slots.values():
            self._check_slot(slot)
        new = {key: slot for key, slot in slots.items() if key not in self._ways}
        for key in slots:
            self._ways.pop(key, None)
        self._ways |= dict.fromkeys(slots)
        unused = list(self._ways)[: max(0, len(self._ways) - self._most_ways)]
        for key in unused:
            del self._ways[key]
        await self._ask("persona_tui_hold", {key: pack_slot(each) for key, each in new.items()}, unused)

    def _check_slot(self, slot: Slot) -> None:
        vectors = [*slot.added.items(), *((layer, cap.axis) for layer, cap in slot.caps.items())]
        for layer, vector in vectors:
            if not 0 <= layer < self._layers or list(vector.shape) != [self._hidden]:
                raise PersonaTuiError(
                    f"a vector for layer {layer} has shape {list(vector.shape)}; this model has "
                    f"{self._layers} layers, and its residual stream is {self._hidden} wide"
                )
            if not bool(vector.isfinite().all()):
                raise PersonaTuiError(f"a vector for layer {layer} is not finite")

    async def answer(self, orders: Sequence[Order], receive: Receive, send: Send) -> None:
        """Answer requests with events: what has come for them, again and again. One whose client goes away
        is answered no further.

        Raises:
            PersonaTuiError: what is asked for cannot be done.
        """
        workers = (await self.about())["about"]
        if len({order.errand.name for order in orders}) < len(orders):
            raise PersonaTuiError("two requests have the same name")
        names = [order.errand.name for order in orders]
        for order in orders:
            self._check_order(order, workers)
            if any(each and each not in names for each in (order.errand.twin, order.errand.of)):
                raise PersonaTuiError("a guided request and its twin come together")
        self._check_axes({order.errand.name: order.errand.way for order in orders})
        await self._admit(orders, workers["places"])
        self._ways_of |= {order.errand.name: order.errand.way for order in orders}
        come: asyncio.Queue[Arrival | Exception] = asyncio.Queue()
        tasks = [asyncio.create_task(self._one(order, come)) for order in orders]
        self._running |= dict(zip(names, tasks, strict=True))
        left_us = asyncio.create_task(gone(receive))
        whole = False
        try:
            await begin_events(send)
            whole = await self._send_all(orders, come, left_us, send)
            await event(send, [], "end")
        except Exception as error:  # the answer has begun: its status cannot say it any more
            await event(send, {"error": {"message": _first_line(error)}}, "error")
        finally:
            left_us.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, left_us, return_exceptions=True)
            for name in names:
                self._running.pop(name, None)
                self._ways_of.pop(name, None)
            self._ended |= {name: time.monotonic() for name in names if name in self._spans}
            if not whole:
                await self._release(names)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(
        self,
        orders: Sequence[Order],
        come: asyncio.Queue[Arrival | Exception],
        left_us: asyncio.Task[None],
        send: Send,
    ) -> bool:
        """Send what comes for requests; whether it is all, and the client still there to ask for its sums."""
        left = {order.errand.name for order in orders}
        told: dict[str, list[list[float]]] = {each.errand.name: [] for each in orders if each.errand.told}
        every = {each.errand.name for each in orders if each.errand.every}
        while left and not left_us.done():
            first = asyncio.create_task(come.get())
            await asyncio.wait({first, left_us}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.cancel()
                break
            batch = [first.result(), *(come.get_nowait() for _ in range(come.qsize()))]
            if any(isinstance(each, Exception) for each in batch):
                raise next(each for each in batch if isinstance(each, Exception))
            arrivals = [each for each in batch if isinstance(each, Arrival)]
            left -= {each.name for each in arrivals if each.done}
            await self._tell(arrivals, told)
            await event(send, [_record(each, told, every) for each in arrivals], "arrivals")
        return not left and not left_us.done()

    async def _one(self, order: Order, come: asyncio.Queue[Arrival | Exception]) -> None:
        params = params_of(order)
        params.extra_args[PASS] = door_pass()
        name = order.errand.name
        try:
            async for output in self._engine.generate(prompt_of(order), params, name):
                come.put_nowait(arrival_of(output))
        except asyncio.CancelledError:
            come.put_nowait(Arrival(name, [], done=True))
            raise
        except Exception as error:
            come.put_nowait(error)

    async def abort(self, names: Sequence[str]) -> None:
        """Have requests answered no further."""
        tasks = [self._running[name] for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, arrivals: Sequence[Arrival], told: dict[str, list[list[float]]]) -> None:
        """Fetch what was found of tokens that have come; `told` is left with as much as has come."""
        names = [each.name for each in arrivals if each.name in told]
        if not names:
            return
        for name, rows in told_of(await self._ask("persona_tui_told", names)).items():
            told[name] += rows

    def _check_axes(self, ways: Mapping[str, str]) -> None:
        """Refuse what would have floors on more axes at a time than workers hold, beside the server's own."""
        if len(axes_of({**self._ways_of, **ways}.values())) > AXES - 1 - len(AXIS_NAMES):
            raise _Full("others have floors on too many other axes here: try again later")

    def _check_order(self, order: Order, workers: Mapping[str, Any]) -> None:
        errand = order.errand
        if errand.name in self._spans:
            raise PersonaTuiError("two requests have the same name")
        if (errand.twin or errand.of) and 2 * len(order.prompt) > workers["tokens"]:
            raise PersonaTuiError(
                f"a guided prompt may have {workers['tokens'] // 2} tokens here; set plausibility to 0"
            )
        for key in [errand.way, *errand.traces]:
            if key and key not in self._ways:
                raise PersonaTuiError("what is to be done to a request is not known here any more: try again")
        if len(errand.traces) > TRACES:
            raise PersonaTuiError(f"tokens are compared with {TRACES} directions at most")
        if len(errand.spans) > workers["places"]:
            raise PersonaTuiError(f"one request can have {workers['places']} sums")
        TEMPERATURE.check("temperature", errand.temperature, GenerationError)
        TOP_P.check("top_p", errand.top_p, GenerationError)
        if any(len(each) != 2 for each in errand.spans):
            raise PersonaTuiError("a span is two positions")
        if not 0 <= errand.scored < len(order.prompt):
            raise PersonaTuiError("what is scored is a position of the prompt")

    async def _admit(self, orders: Sequence[Order], places: int) -> None:
        """Wait until there is room for the sums of requests."""
        needed = {order.errand.name: len(order.errand.spans) for order in orders}
        if sum(needed.values()) > places:
            raise PersonaTuiError(f"there is room for {places} sums: use a smaller batch")

        def fits() -> bool:
            return sum(self._spans.values()) + sum(needed.values()) <= places

        began = time.monotonic()
        while not fits():
            now = time.monotonic()
            if now - began > _PATIENCE:
                raise _Full("others have their replies summed up here: try again later")
            await self._release([name for name, ended in self._ended.items() if now - ended > _FORGOTTEN])
            async with self._freed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait_for(fits), _LOOK)
        self._spans |= needed

    async def _release(self, names: Sequence[str]) -> None:
        """Forget requests."""
        if not names:
            return
        await self._ask("persona_tui_take", list(names), [], False)
        async with self._freed:
            for name in names:
                self._spans.pop(name, None)
                self._ended.pop(name, None)
            self._freed.notify_all()

    async def take(self, asked: Mapping[str, Any]) -> bytes:
        """Give what was summed up for requests; they are forgotten unless they are kept."""
        names, layers, keep = _names(asked), self._layers_of(asked), bool(asked.get("keep"))
        known = [name for name in names if name in self._spans]
        answers = await self._ask("persona_tui_take", known, layers, True)
        found = sums_of(answers, len(layers), self._hidden)
        if not keep:
            await self._release(known)
        return sums_to(found, answers[0]["broken"])

    async def pool(self, asked: Mapping[str, Any]) -> bytes:
        """Give what groups of replies come to."""
        groups, layers = asked.get("groups"), self._layers_of(asked)
        if not isinstance(groups, list):
            raise PersonaTuiError("groups is a list of lists of names")
        known = [[name for name in _names({"names": group}) if name in self._spans] for group in groups]
        answers = await self._ask("persona_tui_pool", known, layers)
        return pools_to(pools_of(answers, layers, self._hidden))

    def _layers_of(self, asked: Mapping[str, Any]) -> list[int]:
        layers = list(asked.get("layers", ()))
        if not all(isinstance(layer, int) and 0 <= layer < self._layers for layer in layers):
            raise PersonaTuiError(f"the layers are 0 to {self._layers - 1}")
        return layers

    async def change(self, asked: Mapping[str, Any]) -> None:
        """Do something else to running requests from their next token on."""
        ways, limits = asked.get("ways"), asked.get("limits", {})
        if not isinstance(ways, dict) or not all(not key or key in self._ways for key in ways.values()):
            raise PersonaTuiError("ways is an object of what is known here, by the names of requests")
        if not isinstance(limits, dict) or not all(isinstance(each, int | float) for each in limits.values()):
            raise PersonaTuiError("limits is an object of numbers, by the names of requests")
        changed = {name: key for name, key in ways.items() if name in self._ways_of}
        self._check_axes(changed)
        self._ways_of |= changed
        await self._ask("persona_tui_change", ways, limits, {})


class _Full(PersonaTuiError):
    """There is no room now."""


def _record(arrival: Arrival, told: dict[str, list[list[float]]], every: set[str]) -> dict[str, Any]:
    """Return an arrival for JSON, with what was found of its tokens, which is taken out of `told`."""
    record = asdict(arrival)
    if (rows := told.get(arrival.name)) is not None:
        count = len(rows) if arrival.name in every else len(arrival.tokens)
        record["told"], told[arrival.name] = rows[:count], rows[count:]
    return record


def _read(body: bytes) -> dict[str, Any]:
    found = json_value(body)
    if not isinstance(found, dict):
        raise PersonaTuiError("the request must be an object")
    return found


def _names(asked: Mapping[str, Any]) -> list[str]:
    names = asked.get("names")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise PersonaTuiError("names is a list of names of requests")
    return names


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
