"""`ServedModel`: a model that a vLLM server runs, on another machine or another day: `--engine URL`.

The server gives its tokenizer and configuration, which are kept in the user's cache, and says what tells its
weights from others'. What is done to requests goes there as numbers; sums and tokens come back (`door`).
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from persona_tui.core.connection import KEY_VARIABLE, Connection, NotThere
from persona_tui.core.errors import EndpointError, GenerationError, ModelLoadError
from persona_tui.core.files import atomic_write_bytes
from persona_tui.core.identity import ModelSketch
from persona_tui.model.pool import Pool
from persona_tui.vllm.asgi import OURS, PROTOCOL
from persona_tui.vllm.engine import VllmModel
from persona_tui.vllm.orders import Arrival, Driver, Order, Sums, pools_from, sums_from
from persona_tui.vllm.wire import About, Slot, slots_to

_PIECE = 2**24  # bytes of ways that are sent at once, about
_Told = list[list[float]]
_Come = list[dict[str, Any]] | Exception


@dataclass(frozen=True)
class ServedAbout:
    """What a server says of its model.

    Attributes:
        name: what its vectors lie under.
        source: where its weights came from.
        fingerprint: see `ModelWrapper`.
        sketch: the record of one.
        dtype: of the weights.
        files: of the model, without weights, and their SHA-256.
        about: what there is room for.
    """

    name: str
    source: str
    fingerprint: str
    sketch: Mapping[str, Any]
    dtype: str
    files: Mapping[str, str]
    about: About


def connect(url: str) -> tuple[Connection, ServedAbout]:
    """Ask a server which model it lends.

    Raises:
        ConfigError: this is not an address.
        EndpointError: one line that says why nothing can be had there.
    """
    connection = Connection(url, os.environ.get(KEY_VARIABLE))
    try:
        told = connection.get(OURS)
    except NotThere as error:
        raise EndpointError(
            f"{connection.url} lends no model: start it with `persona-tui --engine vllm serve --lend`"
        ) from error
    if not isinstance(told, dict) or told.get("protocol") != PROTOCOL:
        raise EndpointError(f"{connection.url} is of another version: use the same here and there")
    fields = {name: told[name] for name in ("name", "source", "fingerprint", "sketch", "dtype", "files")}
    return connection, ServedAbout(**fields, about=About(**told["about"]))


class ServedDriver(Driver):
    """vLLM on another machine.

    A thread for each group of requests reads what comes; `step` waits for it.
    """

    joins = False
    held_at_most = 256  # the server may keep no more for us
    ahead_at_most = 0.125  # others need room, too

    def __init__(self, connection: Connection, about: About) -> None:
        super().__init__()
        self.about = about
        self._connection = connection
        self._waiting: list[Order] = []
        self._inbox: queue.SimpleQueue[_Come] = queue.SimpleQueue()
        self._told: dict[str, deque[_Told]] = {}  # by name, of each token that nobody has asked about
        self._lost = False

    def shut_down(self) -> None:
        """Nothing: the server goes on."""

    def _hold(self, new: Mapping[str, Slot], forgotten: Sequence[str]) -> None:
        piece: dict[str, Slot] = {}
        size = 0
        for key, slot in new.items():
            piece[key] = slot
            size += sum(4 * vector.numel() for vector in slot.added.values()) + sum(
                4 * cap.axis.numel() for cap in slot.caps.values()
            )
            if size > _PIECE:
                self._send(piece)
                piece, size = {}, 0
        if piece:
            self._send(piece)

    def _send(self, slots: Mapping[str, Slot]) -> None:
        with _going_on_later():
            self._connection.send(f"{OURS}/ways", slots_to(slots))

    def _add(self, order: Order) -> None:
        self._lost = False
        self._waiting.append(order)

    def _pass(self) -> list[Arrival]:
        """Wait for what comes.

        Raises:
            GenerationError: the server does not answer any more, or cannot do this.
        """
        if self._waiting:
            orders, self._waiting = self._waiting, []
            # A daemon: a server that says nothing keeps nobody from leaving.
            reader = threading.Thread(target=self._read, args=(orders, self._inbox), daemon=True)
            reader.start()
        come = self._inbox.get()
        if isinstance(come, Exception):
            self._forget()
            with _going_on_later():
                raise come
        found = [each for record in come for each in _one_by_one(record)]
        for arrival, told in found:
            if arrival.name in self._open:
                self._told.setdefault(arrival.name, deque()).append(told)
        return [arrival for arrival, _ in found]

    def _read(self, orders: Sequence[Order], come: queue.SimpleQueue[_Come]) -> None:
        """Read what comes for a group of requests."""
        body = [{**asdict(order), "ends": sorted(order.ends)} for order in orders]
        try:
            with closing(self._connection.events(f"{OURS}/orders", body)) as events:
                for name, value in events:
                    if name == "end":
                        return
                    if name == "error":
                        raise EndpointError(f"the server says: {value['error']['message']}")
                    come.put(value)
            raise EndpointError(f"{self._connection.url} has stopped in the middle of replies")
        except Exception as error:
            come.put(error)

    def _forget(self) -> None:
        """Know of no request any more."""
        self._close(list(self._come))
        self._told.clear()
        self._waiting.clear()
        self._inbox = queue.SimpleQueue()
        self._lost = True

    def _abort(self, names: Sequence[str]) -> None:
        unsent = {order.errand.name for order in self._waiting}
        self._waiting = [order for order in self._waiting if order.errand.name not in names]
        sent = [name for name in names if name not in unsent]
        if sent:
            with _going_on_later():
                self._connection.post(f"{OURS}/abort", {"names": sent})

    def take(
        self, names: Sequence[str], layers: Sequence[int] = (), keep: bool = False
    ) -> tuple[dict[str, Sums], set[str]]:
        """Return what was summed up for requests, which the server forgets unless it is kept: nothing once it
        has stopped answering.
        """
        if self._lost or not names:
            return {}, set()
        if not keep:
            for name in names:
                self._told.pop(name, None)
        body = {"names": list(names), "layers": list(layers), "keep": keep}
        with _going_on_later():
            data = self._connection.exchange(f"{OURS}/sums", body)
        try:
            return sums_from(data)
        except SafetensorError as error:
            raise EndpointError(f"what {self._connection.url} has summed up cannot be read") from error

    def pool(self, groups: Sequence[Sequence[str]], layers: Sequence[int]) -> list[Pool]:
        """See `Driver.pool`. Once the server has stopped answering, there is nothing."""
        if self._lost:
            return [Pool(tuple(layers)) for _ in groups]
        body = {"groups": [list(names) for names in groups], "layers": list(layers)}
        with _going_on_later():
            data = self._connection.exchange(f"{OURS}/pools", body)
        try:
            return pools_from(data, layers)
        except (SafetensorError, KeyError) as error:
            raise EndpointError(f"what {self._connection.url} has summed up cannot be read") from error

    def change(self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]) -> None:
        """Do something else to running requests from their next token on."""
        with _going_on_later():
            self._connection.post(f"{OURS}/change", {"ways": ways, "limits": limits})

    def traced(self, names: Sequence[str]) -> dict[str, _Told]:
        """See `Driver.traced`."""
        found = {name: kept.popleft() if (kept := self._told.get(name)) else [] for name in names}
        if any(each != each for rows in found.values() for row in rows for each in row):
            raise GenerationError("The server compares tokens with too many directions at once: try again.")
        return found


@contextmanager
def _going_on_later() -> Generator[None, None, None]:
    """Within, a server that fails in the middle of work is said in one line, with how to go on."""
    try:
        yield
    except EndpointError as error:
        raise GenerationError(
            f"{error}. What is finished is kept; run the command again to go on."
        ) from error


def _one_by_one(record: dict[str, Any]) -> list[tuple[Arrival, _Told]]:
    """Return what has come for one request, a token at a time, with what was found of it."""
    told: _Told = record.pop("told", [])
    logprobs = [{int(token): value for token, value in each.items()} for each in record["logprobs"]]
    tokens, done = record["tokens"], record["done"]
    if len(tokens) < 2:
        return [(Arrival(**{**record, "logprobs": logprobs}), told)]
    last = len(tokens) - 1
    return [
        (
            Arrival(record["name"], [token], logprobs[at : at + 1], done and at == last),
            told[at : at + 1],
        )
        for at, token in enumerate(tokens)
    ]


class ServedModel(VllmModel):
    """A causal language model inside a vLLM server."""

    @classmethod
    def connect(cls, connection: Connection, about: ServedAbout) -> ServedModel:
        """Use the model that a server lends.

        Raises:
            ModelLoadError: its tokenizer or its configuration cannot be used here.
            EndpointError: they cannot be had.
        """
        folder = _files(connection, about)
        try:
            config = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                make: Any = AutoModelForCausalLM.from_config
                model = make(config, dtype=getattr(torch, about.dtype))
            if "generation_config.json" in about.files:
                model.generation_config = GenerationConfig.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelLoadError(f"{about.name} cannot be used here: {error}") from error
        found = cls(model, tokenizer, about.name, about.source)
        found._served = about
        found.driver = ServedDriver(connection, about.about)
        # A reply that may fill the context is read to its end by one more step.
        found.context_length = about.about.context - 1
        return found

    _served: ServedAbout

    @property
    def fingerprint(self) -> str:
        """Tells this model from others: as the server says."""
        return self._served.fingerprint

    @property
    def sketch(self) -> ModelSketch:
        """Tells near copies of this model from others: as the server says."""
        found = ModelSketch.from_metadata(self._served.sketch)
        if found is None:
            raise EndpointError("what the server says of its model cannot be read")
        return found


def _files(connection: Connection, about: ServedAbout) -> Path:
    """Return the folder with a model's files, without its weights; what has changed is fetched."""
    folder = Path(user_cache_dir("persona-tui", appauthor=False)) / "served" / about.fingerprint[:32]
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in about.files.items():
        if Path(name).name != name:
            raise EndpointError(f"{connection.url} offers a file that is not known here: {name[:80]!r}")
        path = folder / name
        if path.is_file() and sha256(path.read_bytes()).hexdigest() == digest:
            continue
        atomic_write_bytes(path, connection.file(f"{OURS}/files/{name}"), inside=folder)
    return folder
