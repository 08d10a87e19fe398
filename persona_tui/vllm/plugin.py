"""The plugin that vLLM loads into each of its processes (`vllm.general_plugins`).

In the process that takes requests, what a request asks for is checked, and its prefix cache gets a salt: the
cache knows tokens, not steering. In the workers, every running request's mix has a slot of the buffers, and
every token of a pass is told its slot before the pass begins. There are as many slots as requests can run at
once, so a slot is always free.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.vllm.bank import KEY, WORKSPACE, Bank

logger = logging.getLogger("vllm.persona_tui")

OLDEST, NEWEST = (0, 32), (0, 32)  # releases that were run


def register() -> None:
    """Change what has to be changed in this process, once.

    Raises:
        RuntimeError: the server is to have personas, and this release of vLLM was not tried: a request for
            one would be answered without it.
    """
    import vllm

    release = tuple(int(part) for part in vllm.__version__.split(".")[:2])
    if not OLDEST <= release <= NEWEST:
        if os.environ.get(WORKSPACE):
            raise RuntimeError(
                f"persona-tui was not tried with vLLM {vllm.__version__}: it knows {NEWEST[0]}.{NEWEST[1]}. "
                f"Unset {WORKSPACE} to serve without personas."
            )
        return
    _check_requests()
    _steer_runner()


def _once(owner: type, name: str) -> Any:
    """A method that has not been changed by us yet; None if it has."""
    method = getattr(owner, name)
    return None if hasattr(method, "_persona_tui") else method


def _set(owner: type, name: str, method: Any, changed: Any) -> None:
    changed = functools.wraps(method)(changed)
    changed._persona_tui = True
    setattr(owner, name, changed)


def _check_requests() -> None:
    """Refuse what cannot be done, before it is queued, and salt the cache of what can."""
    from vllm.v1.engine.input_processor import InputProcessor

    process = _once(InputProcessor, "process_inputs")
    if process is None:
        return

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
        if asked is None:
            return request
        bank = _bank(self)
        if bank is None:
            raise ValueError("this server has no personas: PERSONA_TUI_WORKSPACE is not set")
        try:
            mix = bank.mix_of(asked)
            bank.slot(mix)  # what cannot be read is an error here, not in a worker
            salt = bank.key(mix)
        except PersonaTuiError as error:
            raise ValueError(str(error)) from error
        request.cache_salt = f"{salt}{request.cache_salt or ''}"
        return request

    _set(InputProcessor, "process_inputs", process, process_inputs)


def _bank(owner: Any) -> Bank | None:
    """The bank for the model of a runner or an input processor, made on first use."""
    if not hasattr(owner, "_persona_tui_bank"):
        config = owner.model_config
        text = config.hf_text_config
        name = config.served_model_name if isinstance(config.served_model_name, str) else config.model
        owner._persona_tui_bank = Bank.from_environment(name, text.num_hidden_layers, text.hidden_size)
    found: Bank | None = owner._persona_tui_bank
    return found


def _steer_runner() -> None:
    """Have the runner tell every token its slot, and its blocks call the op."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for runner in (GPUModelRunner, CPUModelRunner):
        load = _once(runner, "load_model")
        if load is not None:
            _set(runner, "load_model", load, _loading(load))
    prepare = _once(GPUModelRunner, "_prepare_inputs")
    if prepare is None:
        return

    def prepare_inputs(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(self, scheduled, *args, **kwargs)  # may reorder the batch
        slots = getattr(self, "_persona_tui_slots", None)
        if slots is not None:
            slots.place(self, scheduled)
        return prepared

    _set(GPUModelRunner, "_prepare_inputs", prepare, prepare_inputs)


def _loading(load: Any) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = load(self, *args, **kwargs)
        bank = _bank(self)
        if bank is not None and not hasattr(self, "_persona_tui_slots"):
            from persona_tui.vllm.op import watch_blocks

            count = watch_blocks(self.model)
            self._persona_tui_slots = _Slots(self, bank)
            logger.info(
                "persona-tui steers %d blocks with the vectors of %s.", count, bank.personas.model_name
            )
        return done

    return load_model


class _Slots:
    """The slots of one worker."""

    def __init__(self, runner: Any, bank: Bank) -> None:
        from persona_tui.vllm.op import SlotBuffers, set_buffers

        text = runner.model_config.hf_text_config
        count = runner.max_num_reqs + 1
        self.bank = bank
        self.buffers = SlotBuffers(
            text.num_hidden_layers, count, text.hidden_size, runner.max_num_tokens, runner.device
        )
        self._held: dict[str, int] = {}
        self._free = list(range(1, count))
        self._mixes: dict[str, tuple[str, Mix]] = {}
        set_buffers(self.buffers)

    def place(self, runner: Any, scheduled: Any) -> None:
        """Tell every token of a pass its slot."""
        from persona_tui.vllm.op import slots_of

        running = runner.input_batch.req_ids
        found = {id: self._mix(runner.requests[id], id) for id in running}
        self._mixes = {id: known for id, known in found.items() if known is not None}
        mixes = dict(self._mixes.values())
        keys = {id: key for id, (key, _) in self._mixes.items()}
        for key in slots_of(keys, self._held, self._free):
            self.buffers.fill(self._held[key], self.bank.slot(mixes[key]))
        counts = [scheduled.num_scheduled_tokens[id] for id in running]
        slots = [self._held[keys[id]] if id in keys else 0 for id in running]
        self.buffers.tell(slots, counts)

    def _mix(self, request: Any, id: str) -> tuple[str, Mix] | None:
        """A request's mix with its key; None if it is plain."""
        if id in self._mixes:
            return self._mixes[id]
        asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
        if asked is None:
            return None
        mix = self.bank.mix_of(asked)
        return self.bank.key(mix), mix
