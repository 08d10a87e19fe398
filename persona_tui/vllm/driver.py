"""`LocalDriver`: vLLM in this process.

The only module outside vLLM's own processes that imports vllm, and only when a driver is made.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from persona_tui.core.errors import GenerationError, ModelLoadError
from persona_tui.model.pool import Pool
from persona_tui.vllm.orders import (
    Arrival,
    Driver,
    Order,
    Sums,
    arrival_of,
    params_of,
    pools_of,
    prompt_of,
    sums_of,
    told_of,
)
from persona_tui.vllm.wire import ENGINE, WORKER, About, Packed, Slot, pack_slot


class LocalDriver(Driver):
    """vLLM in this process, with workers of its own."""

    def __init__(self, folder: str, hidden_size: int, arguments: Mapping[str, Any]) -> None:
        """Start vLLM; it takes half a minute and more.

        Args:
            folder: of the model.
            hidden_size: of the model.
            arguments: for `vllm.LLM`.

        Raises:
            ModelLoadError: vLLM is not installed, or does not start with this model; says why.
        """
        super().__init__()
        llm = _start(folder, arguments)
        self._engine: Any = llm.llm_engine
        self._hidden = hidden_size
        self._ids: dict[str, str] = {}  # by name, what vLLM calls it
        self._told: dict[str, deque[list[float]]] = {}  # by name, what was found of tokens nobody has seen
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

    def _hold(self, new: Mapping[str, Slot], forgotten: Sequence[str]) -> None:
        self._ask("persona_tui_hold", {key: pack_slot(each) for key, each in new.items()}, list(forgotten))

    def _add(self, order: Order) -> None:
        with self._explained():
            name = order.errand.name
            self._ids[name] = self._engine.add_request(name, prompt_of(order), params_of(order))
        if not order.errand.every:
            self._told[name] = deque()

    def _pass(self) -> list[Arrival]:
        with self._explained():
            outputs = self._engine.step()
        found = [arrival_of(each) for each in outputs]
        for each in found:
            if each.done:
                self._ids.pop(each.name, None)
        return found

    def _abort(self, names: Sequence[str]) -> None:
        ids = [self._ids[name] for name in names if name in self._ids]
        if ids:
            with self._explained():
                self._engine.abort_request(ids, internal=True)
        for name in names:
            self._ids.pop(name, None)

    # What workers found -------------------------------------------------------------------------------------

    def take(
        self, names: Sequence[str], layers: Sequence[int] = (), keep: bool = False
    ) -> tuple[dict[str, Sums], set[str]]:
        """Return what was summed up for requests, which workers forget unless it is kept; and those that have
        lost their twins, which are not to be believed.
        """
        answers: list[Packed] = self._ask("persona_tui_take", list(names), list(layers), keep)
        if not keep:
            for name in names:
                self._told.pop(name, None)
        return sums_of(answers, len(layers), self._hidden), set(answers[0]["broken"])

    def pool(self, groups: Sequence[Sequence[str]], layers: Sequence[int]) -> list[Pool]:
        """See `Driver.pool`."""
        answers = self._ask("persona_tui_pool", [list(names) for names in groups], list(layers))
        return pools_of(answers, layers, self._hidden)

    def change(self, ways: dict[str, str], limits: dict[str, float], twins: dict[str, str]) -> None:
        """Do something else to running requests from their next token on."""
        self._ask("persona_tui_change", ways, limits, twins)

    def traced(self, names: Sequence[str]) -> dict[str, list[list[float]]]:
        """See `Driver.traced`; of a request that is told every token, all that was found since."""
        found = told_of(self._ask("persona_tui_told", list(names)))
        for name in dict.fromkeys(names):
            if (kept := self._told.get(name)) is not None:
                kept += found.get(name, [])
                found[name] = [kept.popleft()] if kept else []
        return found


def _start(folder: str, arguments: Mapping[str, Any]) -> Any:
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
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
    """Return the innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
