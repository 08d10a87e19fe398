"""`Driver`: vLLM as our engine uses it: token ids in, token ids out, and the sums that its workers took.

The only module outside vLLM's own processes that imports vllm, and only when a driver is made.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError, ModelLoadError
from persona_tui.vllm.bank import Slot
from persona_tui.vllm.http import WORKER
from persona_tui.vllm.wire import ENGINE, About, Errand, Packed, pack, pack_slot, slot_key

_HELD = 4096  # ways that workers keep
_names = itertools.count()


@dataclass(frozen=True)
class Order:
    """One request.

    Attributes:
        prompt: token ids.
        errand: what the workers do for it.
        tokens: how many are written at most.
        temperature: 0 = always the likeliest token.
        top_p: choose among the likeliest tokens that have this probability together.
        seed: its own.
        ends: ids that end it.
        likeliest: how many of the likeliest tokens are told with each one; None = no log-probabilities are.
        scored: whether the prompt's log-probabilities are told.
        salt: what its part of the cache is kept apart by, besides what is done to it.
        fresh: whether all of the prompt is read, though it is in the cache.
    """

    prompt: Sequence[int]
    errand: Errand
    tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    ends: frozenset[int] = frozenset()
    likeliest: int | None = None
    scored: bool = False
    salt: str = ""
    fresh: bool = False


@dataclass(frozen=True)
class Arrival:
    """What a step has brought for one request.

    Attributes:
        name: of its errand.
        tokens: new ones.
        logprobs: of each, those that are told, by token.
        done: whether it has ended.
        scores: the prompt's log-probabilities from its second token on; None = not asked for, or not yet.
    """

    name: str
    tokens: list[int]
    logprobs: list[dict[int, float]] = field(default_factory=list)
    done: bool = False
    scores: list[float] | None = None


@dataclass(frozen=True)
class Sums:
    """What was summed up for one request.

    Attributes:
        counts: tokens, by span.
        sums: `[spans, layers, hidden]` float32; None = there are no spans.
    """

    counts: list[int]
    sums: Tensor | None


class Driver:
    """vLLM in this process, with workers of its own.

    Attributes:
        about: see `About`.
    """

    def __init__(self, folder: str, hidden_size: int, arguments: Mapping[str, Any]) -> None:
        """Start vLLM; it takes half a minute and more.

        Args:
            folder: of the model.
            hidden_size: of the model.
            arguments: for `vllm.LLM`.

        Raises:
            ModelLoadError: vLLM is not installed, or does not start with this model; says why.
        """
        llm = _start(folder, arguments)
        self._engine: Any = llm.llm_engine
        self._hidden = hidden_size
        self._held: dict[str, None] = {}
        self._ids: dict[str, str] = {}  # by name, what vLLM calls it
        about = self._ask("persona_tui_about")[0]
        self.about = About(**about)

    def shut_down(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker; their answers, without those that only repeat another's."""
        with self._explained():
            answers = self._engine.collective_rpc(method, args=arguments)
        return [each for each in answers if each is not None]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Within, what vLLM raises is our own error in one line."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except (ValueError, VLLMClientError) as error:
            raise GenerationError(f"vLLM refuses this: {_first_line(error)}") from error
        except (EngineDeadError, RuntimeError, AssertionError, TimeoutError) as error:
            executor = getattr(self._engine, "model_executor", None)
            if not isinstance(error, EngineDeadError) and not getattr(executor, "is_failed", False):
                raise
            raise GenerationError(
                "vLLM has stopped working: one of its processes was killed or failed. What is finished is "
                "kept; run the command again to go on."
            ) from error

    # Requests -----------------------------------------------------------------------------------------------

    @staticmethod
    def new_name() -> str:
        """A name that no errand had before."""
        return str(next(_names))

    def hold(self, slots: Sequence[Slot]) -> list[str]:
        """Have the workers keep what is done to requests; the key of each, "" for nothing."""
        keys = [slot_key(each) for each in slots]
        new = {key: pack_slot(each) for key, each in zip(keys, slots, strict=True) if key not in self._held}
        new.pop("", None)
        if new:
            unused = [key for key in self._held if key not in keys] if len(self._held) > _HELD else []
            self._ask("persona_tui_hold", new, unused)
            self._held = {key: None for key in self._held if key not in unused} | dict.fromkeys(new)
        return keys

    def add(self, order: Order) -> None:
        """Have a request answered, beside those that are."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        errand = order.errand
        params = SamplingParams(
            temperature=order.temperature,
            top_p=order.top_p,
            seed=None if order.seed is None else order.seed % 2**63,
            max_tokens=order.tokens,
            stop_token_ids=sorted(order.ends),
            ignore_eos=True,  # what ends a turn is among them
            logprobs=order.likeliest,
            prompt_logprobs=0 if order.scored else None,
            detokenize=False,
            skip_reading_prefix_cache=order.fresh or order.scored,
            output_kind=RequestOutputKind.DELTA,
            extra_args={ENGINE: errand.packed()},
        )
        prompt = TokensPrompt(prompt_token_ids=list(order.prompt))
        if salt := f"{errand.way}{order.salt}":
            prompt["cache_salt"] = salt
        with self._explained():
            self._ids[errand.name] = self._engine.add_request(errand.name, prompt, params)

    def step(self) -> list[Arrival]:
        """One pass."""
        with self._explained():
            outputs = self._engine.step()
        return [self._written(each) for each in outputs]

    def _written(self, output: Any) -> Arrival:
        name, best = str(output.request_id), output.outputs[0]
        logprobs = [{token: each.logprob for token, each in told.items()} for told in best.logprobs or ()]
        scores = None
        if output.prompt_logprobs is not None:
            told = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            scores = [each[token].logprob for token, each in told]
        if output.finished:
            self._ids.pop(name, None)
        return Arrival(name, list(best.token_ids), logprobs, bool(output.finished), scores)

    def abort(self, names: Sequence[str]) -> None:
        """Have requests answered no further."""
        ids = [self._ids[name] for name in names if name in self._ids]
        if ids:
            with self._explained():
                self._engine.abort_request(ids, internal=True)
        for name in names:
            self._ids.pop(name, None)

    def check_idle(self) -> None:
        """Raise a GenerationError if a reply is being written: what a pass brings would be lost to it."""
        if self._ids:
            raise GenerationError("vLLM is in the middle of another reply: let it end first.")

    def run(self, orders: Sequence[Order]) -> Iterator[list[Arrival]]:
        """Have requests answered, and yield what each pass brings until all are; what is left is aborted."""
        self.check_idle()
        for order in orders:
            self.add(order)
        left = {order.errand.name for order in orders}
        try:
            while left:
                written = self.step()
                left -= {each.name for each in written if each.done}
                yield written
                left &= self._ids.keys()
        finally:
            self.abort(sorted(left))

    # What workers found -------------------------------------------------------------------------------------

    def take(
        self, names: Sequence[str], layers: Sequence[int] = (), keep: bool = False
    ) -> tuple[dict[str, Sums], set[str]]:
        """What was summed up for requests, which workers forget unless it is kept; and those that have lost
        their twins, which are not to be believed."""
        answers: list[Packed] = self._ask("persona_tui_take", list(names), list(layers), keep)
        counts: dict[str, list[int]] = answers[0]["counts"]
        found = {}
        for name, count in counts.items():
            sums = None
            for each in answers:  # where others hold other layers, their sums are zero
                if name in each["sums"]:
                    numbers = torch.from_numpy(np.frombuffer(each["sums"][name], dtype=np.float32).copy())
                    shaped = numbers.view(len(count), len(layers), self._hidden)
                    sums = shaped if sums is None else sums + shaped
            found[name] = Sums(list(count), sums)
        return found, set(answers[0]["broken"])

    def change(self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]) -> None:
        """Do something else to running requests from their next token on."""
        self._ask("persona_tui_change", ways, limits, twins)

    def traced(self, names: Sequence[str]) -> dict[str, list[list[float]]]:
        """What was found of the tokens of requests since this was last asked for: entropy, lift,
        projections."""
        answers: list[dict[str, list[list[float]]]] = self._ask("persona_tui_told", list(names))
        found = answers[-1]  # the last stage chooses the tokens
        for each in answers[:-1]:  # others have other layers
            for name, rows in each.items():
                for own, more in zip(found[name], rows, strict=True):
                    own[1:] = [one + other for one, other in zip(own[1:], more[1:], strict=True)]
        return found


def _start(folder: str, arguments: Mapping[str, Any]) -> Any:
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the one that we know
    # The scheduler runs in this process, so that no pass begins before all of its requests are there, and
    # none before a mix has changed.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        with _quiet():
            from vllm import LLM
    except ImportError as error:
        raise ModelLoadError("--engine vllm needs vLLM: pip install 'persona-tui[vllm]'.") from error
    _check_plugin()
    try:
        with _quiet():
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                generation_config="vllm",
                async_scheduling=False,  # else the token that ends a reply is read, and summed up
                worker_extension_cls=WORKER,
                additional_config={ENGINE: True},
                **arguments,
            )
    except Exception as error:  # whatever does not start is said in a line
        raise ModelLoadError(f"vLLM does not start with {folder}: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, libraries do not warn of their own affairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_plugin() -> None:
    """Change what has to be changed here; workers do it by themselves, as the plugin is installed."""
    from importlib.metadata import entry_points

    from persona_tui.vllm.plugin import register, untried

    if reason := untried():
        raise ModelLoadError(reason)
    if not any(each.name == "persona_tui" for each in entry_points(group="vllm.general_plugins")):
        raise ModelLoadError("persona-tui is not installed beside vLLM, so that its workers cannot find it.")
    register()


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
