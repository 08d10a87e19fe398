"""The plugin that vLLM loads into each of its processes (`vllm.general_plugins`).

In the process that takes requests, what a request asks for is checked, and its prefix cache gets a salt: the
cache knows tokens, not steering. In the workers, every running request's mix has a slot of the buffers, and
every token of a pass is told its slot before the pass begins (`worker`). There are as many slots as requests
can run at once, so a slot is always free.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.vllm.bank import Bank
from persona_tui.vllm.pairs import Pairs
from persona_tui.vllm.passes import FirstRunner, SecondRunner
from persona_tui.vllm.wire import CHANGES, ENGINE, KEY, LEND, PASS, TRACE, WORKSPACE, Errand, door_pass

logger = logging.getLogger("vllm.persona_tui")

OP = "persona_tui_op"  # in vLLM's additional configuration: what is compiled has our op in it

OLDEST, NEWEST = (0, 32), (0, 32)  # releases that were run


def register() -> None:
    """Change what has to be changed in this process, once.

    Raises:
        RuntimeError: the server is to have personas, and this release of vLLM was not tried: a request for
            one would be answered without it.
    """
    if reason := untried():
        if os.environ.get(WORKSPACE):
            raise RuntimeError(f"{reason} Unset {WORKSPACE} to serve without personas.")
        return
    _check_requests()
    _refuse_unread()
    _steer_first_runner()
    _steer_second_runner()
    _read_what_counts()
    _guide_first_sampler()
    _guide_second_sampler()
    _pair_requests()


def untried() -> str:
    """Return why this release of vLLM is not used; "" if it is one that was tried."""
    import vllm

    release = tuple(int(part) for part in vllm.__version__.split(".")[:2])
    if OLDEST <= release <= NEWEST:
        return ""
    return f"persona-tui was not tried with vLLM {vllm.__version__}: it knows {NEWEST[0]}.{NEWEST[1]}."


def _once(owner: type, name: str) -> Any:
    """Return a method that has not been changed by us yet; None if it has."""
    method = getattr(owner, name)
    return None if hasattr(method, "_persona_tui") else method


def _set(owner: type, name: str, method: Any, changed: Any) -> None:
    changed = functools.wraps(method)(changed)
    changed._persona_tui = True
    setattr(owner, name, changed)


def refusal(message: str) -> Exception:
    """Return what vLLM answers with 400 and a message; anything else is a failure of its own to it."""
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=KEY)  # type: ignore[no-any-return]


def _check_requests() -> None:
    """Refuse what cannot be done, before it is queued, and salt the cache of what can."""
    from vllm.v1.engine.input_processor import InputProcessor

    process = _once(InputProcessor, "process_inputs")
    if process is None:
        return

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        asked = extra.get(KEY)
        if ENGINE in extra and not _drives(self) and extra.pop(PASS, None) != door_pass():
            raise refusal(f'"{ENGINE}" is not for requests')
        if asked is None:
            return request
        try:
            bank = bank_of(self)
            if bank is None:
                raise PersonaTuiError("this server has no personas: PERSONA_TUI_WORKSPACE is not set")
            mix = bank.mix_of(asked)
            bank.slot(mix)  # what cannot be read is an error here, not in a worker
            salt = bank.key(mix) + (str(extra.get(TRACE)) if extra.get(CHANGES) else "")
        except PersonaTuiError as error:
            raise refusal(str(error)) from error
        request.cache_salt = f"{salt}{request.cache_salt or ''}"
        return request

    _set(InputProcessor, "process_inputs", process, process_inputs)


def _refuse_unread() -> None:
    """Refuse a request whose field `persona_tui` `http` has not read: vLLM ignores what it does not know."""
    if not os.environ.get(WORKSPACE):
        return
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        make = _once(kind, "to_sampling_params")
        if make is not None:
            _set(kind, "to_sampling_params", make, _reading(make))


def _reading(make: Any) -> Any:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if KEY in (self.model_extra or {}):
            raise refusal(
                f'"{KEY}" is read only where VLLM_PLUGINS={KEY} is set; else give it in "vllm_xargs", as text'
            )
        return make(self, *args, **kwargs)

    return to_sampling_params


def _drives(owner: Any) -> bool:
    """Return whether our own engine drives this vLLM."""
    return ENGINE in (owner.vllm_config.additional_config or {})


def lends() -> bool:
    """Return whether engines on other machines may drive this server."""
    return os.environ.get(LEND) == "1"


def bank_of(owner: Any) -> Bank | None:
    """Return the bank for the model of a runner or an input processor; None if our engine drives it."""
    if _drives(owner):
        return None
    if not hasattr(owner, "_persona_tui_bank"):
        config = owner.model_config
        text = config.hf_text_config
        name = config.served_model_name if isinstance(config.served_model_name, str) else config.model
        owner._persona_tui_bank = Bank.from_environment(name, text.num_hidden_layers, text.hidden_size)
    found: Bank | None = owner._persona_tui_bank
    return found


def _steer_first_runner() -> None:
    """Have the first runner, and the one for CPUs, tell every token its slot, and its blocks call the op."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for runner in (GPUModelRunner, CPUModelRunner):
        load = _once(runner, "load_model")
        if load is not None:
            _set(runner, "load_model", load, _loading(load, FirstRunner))
    prepare = _once(GPUModelRunner, "_prepare_inputs")
    if prepare is None:
        return

    def prepare_inputs(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(self, scheduled, *args, **kwargs)  # may reorder the batch
        if slots := _slots_in(self):
            slots.place(slots.requests.rows(scheduled))
        return prepared

    _set(GPUModelRunner, "_prepare_inputs", prepare, prepare_inputs)
    told = _once(GPUModelRunner, "_get_prompt_logprobs_dict")

    def get_prompt_logprobs(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if slots := _slots_in(self):
            slots.score(hidden, self.model.compute_logits)
        return told(self, hidden, *args, **kwargs)

    _set(GPUModelRunner, "_get_prompt_logprobs_dict", told, get_prompt_logprobs)


def _steer_second_runner() -> None:
    """The same for the second runner; the one for CPUs is made from it."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    load, add, prepare, sample = (
        _once(GPUModelRunner, name) for name in ("load_model", "add_requests", "prepare_inputs", "sample")
    )
    if load is None:
        return

    def add_requests(self: Any, scheduled: Any) -> Any:
        if slots := _slots_in(self):
            slots.requests.add(scheduled)
        return add(self, scheduled)

    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = prepare(self, *args, **kwargs)
        if slots := _slots_in(self):
            slots.place(slots.requests.rows(batch))
        return batch

    def sample_all(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        slots = _slots_in(self)
        if slots is None:
            return sample(self, hidden, *args, **kwargs)
        slots.score(hidden, self.model.compute_logits)
        sampled = sample(self, hidden, *args, **kwargs)
        slots.end()
        return sampled

    _set(GPUModelRunner, "load_model", load, _loading(load, SecondRunner))
    _set(GPUModelRunner, "add_requests", add, add_requests)
    _set(GPUModelRunner, "prepare_inputs", prepare, prepare_inputs)
    _set(GPUModelRunner, "sample", sample, sample_all)


def _slots_in(runner: Any) -> Any:
    """Return a runner's `WorkerSlots`; None if it has no personas."""
    return getattr(runner, "_persona_tui_slots", None)


def _loading(load: Any, requests: type[FirstRunner | SecondRunner]) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        bank = bank_of(self)
        steers = bank is not None or _drives(self)
        if steers:
            _check_whole_passes(self.vllm_config)
            # Else what was compiled for this model without us would be used, and say nothing.
            self.vllm_config.additional_config[OP] = True
        done = load(self, *args, **kwargs)
        if steers and _slots_in(self) is None:
            from persona_tui.vllm.op import watch_blocks
            from persona_tui.vllm.worker import WorkerSlots

            count = watch_blocks(self.model)
            self._persona_tui_slots = WorkerSlots(self, requests(self), bank, _drives(self) or lends())
            whose = "our engine" if bank is None else f"the vectors of {bank.personas.model_name}"
            logger.info("persona-tui steers %d blocks for %s.", count, whose)
        return done

    return load_model


def _check_whole_passes(config: Any) -> None:
    """Raise a RuntimeError if blocks are to be given only some of a pass' tokens, or a process some of its
    rows: a token would be taken for another.
    """
    parallel, drafts = config.parallel_config, config.speculative_config
    for option, divides in (
        ("--enable-dbo and --ubatch-size", parallel.use_ubatching),
        ("--prefill-context-parallel-size", parallel.prefill_context_parallel_size > 1),
        ("--enable-batch-sharded-sampling", parallel.enable_batch_sharded_sampling),
        ("--kv-sharing-fast-prefill", config.cache_config.kv_sharing_fast_prefill),
        ("enable_adaptive_verification", drafts is not None and drafts.enable_adaptive_verification),
    ):
        if divides:
            raise RuntimeError(
                f"{option}: personas need whole passes. Leave it out, or unset {WORKSPACE} to serve without "
                "personas."
            )


def _pair_requests() -> None:
    """Have guided requests and their twins begin together."""
    from vllm.v1.core.sched.scheduler import Scheduler

    add, finish, schedule = (
        _once(Scheduler, name) for name in ("add_request", "finish_requests", "schedule")
    )
    if add is None or finish is None or schedule is None:
        return

    def pairs(scheduler: Any) -> Pairs:
        if not hasattr(scheduler, "_persona_tui_pairs"):
            scheduler._persona_tui_pairs = Pairs(scheduler)
        found: Pairs = scheduler._persona_tui_pairs
        return found

    def begin(scheduler: Any) -> None:
        for request in pairs(scheduler).ready():
            add(scheduler, request)
            scheduler.waiting.remove_request(request)
            scheduler.waiting.prepend_request(request)

    def add_request(self: Any, request: Any) -> None:
        if pairs(self).takes(request):
            begin(self)
        else:
            add(self, request)

    def finish_requests(self: Any, request_ids: Any, *args: Any) -> Any:
        pairs(self).forget([request_ids] if isinstance(request_ids, str) else request_ids)
        return finish(self, request_ids, *args)

    def schedule_all(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin(self)
        pairs(self).put_first()
        return schedule(self, *args, **kwargs)

    _set(Scheduler, "add_request", add, add_request)
    _set(Scheduler, "finish_requests", finish, finish_requests)
    _set(Scheduler, "schedule", schedule, schedule_all)


def _read_what_counts() -> None:
    """Have what our engine reads of a text pass through the model, and only what comes before it taken from
    the cache. vLLM by itself knows all or nothing.
    """
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    get = _once(KVCacheManager, "get_computed_blocks")
    if get is None:
        return

    def get_computed_blocks(self: Any, request: Any) -> Any:
        errand = (getattr(request.sampling_params, "extra_args", None) or {}).get(ENGINE)
        first = None if errand is None else Errand(**errand).first
        if not first:
            return get(self, request)
        find = self.coordinator.find_longest_cache_hit
        self.coordinator.find_longest_cache_hit = lambda hashes, most: find(hashes, min(most, first))
        request.skip_reading_prefix_cache = False
        try:
            return get(self, request)
        finally:
            request.skip_reading_prefix_cache = True
            del self.coordinator.find_longest_cache_hit

    _set(KVCacheManager, "get_computed_blocks", get, get_computed_blocks)


def _guide_first_sampler() -> None:
    """Draw the tokens of our engine's rows as it does itself, let twins limit those of guided ones, and have
    them read what those have chosen.

    vLLM's own drawing sorts the vocabulary of each row on a CPU, at the cost of a small model's whole pass.
    """
    from vllm.v1.sample.sampler import Sampler

    from persona_tui.vllm import worker

    limit, choose = _once(Sampler, "apply_logits_processors"), _once(Sampler, "sample")
    if limit is None or choose is None:
        return

    def apply_logits_processors(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        done = limit(self, logits, *args, **kwargs)
        return done if worker.present is None else worker.present.guide(done)

    def sample(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        drawn = None if worker.present is None else worker.present.draw(logits)
        tokens, processed = choose(self, logits, *args, **kwargs)  # may change the logits
        if worker.present is not None:
            worker.present.follow(tokens, drawn)
            worker.present.end()
        return tokens, processed

    _set(Sampler, "apply_logits_processors", limit, apply_logits_processors)
    _set(Sampler, "sample", choose, sample)


def _guide_second_sampler() -> None:
    """The same for the second runner, which tells log-probabilities from the logits it was given."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from persona_tui.vllm import worker

    choose = _once(Sampler, "sample")
    if choose is None:
        return

    def sample(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        present = worker.present
        if present is None:
            return choose(self, logits, *args, **kwargs)
        limited = present.guide(logits.clone() if present.pairs else logits)
        drawn = present.draw(limited)
        tokens, processed = choose(self, limited, *args, **kwargs)
        present.follow(tokens, drawn)
        return tokens, processed

    _set(Sampler, "sample", choose, sample)
