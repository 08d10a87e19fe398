"""What vLLM's two model runners are about to take through the model, told in one way.

Both keep their requests in tables of their own: the first in `input_batch` and `requests`, the second mostly
on the device, and of what it was asked it keeps only what it samples with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from persona_tui.vllm.wire import ENGINE

Ids = np.ndarray[Any, np.dtype[np.int32]]


class PassRow(NamedTuple):
    """One request's part of a pass.

    Attributes:
        id: of the request, as vLLM calls it.
        extra: what it was asked with, besides what vLLM knows.
        start: its first position in the pass.
        length: how many of its tokens are read in the pass.
        prompt: how many tokens its prompt has.
        chooses: whether its next token is chosen after the pass.
        ids: its tokens, as far as they are known here; at least the prompt.
    """

    id: str
    extra: dict[str, Any]
    start: int
    length: int
    prompt: int
    chooses: bool
    ids: Ids


class FirstRunner:
    """The requests of `vllm.v1.worker.gpu_model_runner`, from which the one for CPUs is made."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def rows(self, scheduled: Any) -> list[PassRow]:
        """Return a pass' requests, in the order of its tokens: after vLLM has prepared its inputs."""
        batch, found = self._runner.input_batch, []
        running = batch.req_ids
        starts = batch.num_computed_tokens_cpu[: len(running)].tolist()
        prompts = batch.num_prompt_tokens[: len(running)].tolist()
        for row, (id, start, prompt) in enumerate(zip(running, starts, prompts, strict=True)):
            request, count = self._runner.requests[id], scheduled.num_scheduled_tokens[id]
            chooses = start + count >= request.num_tokens
            ids = batch.token_ids_cpu[row]
            found.append(PassRow(id, _extra(request.sampling_params), start, count, prompt, chooses, ids))
        return found

    def known(self) -> dict[str, dict[str, Any]]:
        """Return what the requests were asked with that have begun and not ended."""
        return {id: _extra(each.sampling_params) for id, each in self._runner.requests.items()}


@dataclass
class _Asked:
    """A request that the second runner has been given; one that it has put aside comes again."""

    extra: dict[str, Any]
    prompt: int
    ids: Ids
    late: bool  # whether what was chosen is looked at, too


class SecondRunner:
    """The requests of `vllm.v1.worker.gpu.model_runner`."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._asked: dict[str, _Asked] = {}

    def add(self, scheduled: Any) -> None:
        """Keep what requests were asked with; forget those that have ended."""
        for id in scheduled.finished_req_ids:
            self._asked.pop(id, None)
        for new in scheduled.scheduled_new_reqs:
            extra, ids = _extra(new.sampling_params), np.asarray(new.prefill_token_ids, dtype=np.int32)
            late = bool((extra.get(ENGINE) or {}).get("thoughts"))
            self._asked[new.req_id] = _Asked(extra, new.prompt_len, ids, late)

    def rows(self, batch: Any) -> list[PassRow]:
        """Return a pass' requests, in the order of its tokens.

        Args:
            batch: what the runner has prepared.
        """
        self._read_chosen(batch)
        found = []
        columns = (batch.num_computed_tokens_np, batch.num_scheduled_tokens, batch.prefill_len_np)
        numbers = zip(*(each.tolist() for each in columns), strict=True)
        for id, (start, count, known) in zip(batch.req_ids, numbers, strict=True):
            asked = self._asked[id]
            chooses = start + count >= known
            found.append(PassRow(id, asked.extra, start, count, asked.prompt, chooses, asked.ids))
        return found

    def _read_chosen(self, batch: Any) -> None:
        """Fetch the tokens that were chosen after the last pass, where anybody looks at them."""
        late = [
            row
            for row, id in enumerate(batch.req_ids)
            if self._asked[id].late and batch.num_computed_tokens_np[row] >= len(self._asked[id].ids)
        ]
        if not late:
            return
        chosen = self._runner.req_states.last_sampled_tokens[batch.idx_mapping_np[late], 0].tolist()
        for row, token in zip(late, chosen, strict=True):
            asked = self._asked[batch.req_ids[row]]
            asked.ids = np.append(asked.ids, np.int32(token))

    def known(self) -> dict[str, dict[str, Any]]:
        """Return what the requests were asked with that have begun and not ended."""
        return {id: each.extra for id, each in self._asked.items()}


def _extra(params: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(params, "extra_args", None) or {}
    return found
