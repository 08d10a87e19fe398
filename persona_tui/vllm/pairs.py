"""Guided requests and their twins begin in the same pass of vLLM's scheduler, and stay in step.

A guided reply and its twin choose their tokens together, so both prompts have to be read to their end in one
pass. On a server others' requests come and go: a pair waits until there is room for both, and from then on
has its tokens first in every pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from persona_tui.vllm.wire import ENGINE


class Pairs:
    """The pairs of one scheduler.

    Attributes:
        held: by the name of a guided request, what has come of it and its twin and may not begin yet.
        begun: ids of those that were let in.
    """

    def __init__(self, scheduler: Any) -> None:
        self.held: dict[str, list[Any]] = {}
        self.begun: set[str] = set()
        self._scheduler = scheduler

    def takes(self, request: Any) -> bool:
        """Keep a request if it is one of a pair; whether it is."""
        asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(ENGINE) or {}
        key = asked.get("of") or (asked["name"] if asked.get("twin") else "")
        if key:
            self.held.setdefault(key, []).append(request)
        return bool(key)

    def ready(self) -> list[Any]:
        """Return the requests that begin now, pair by pair."""
        found: list[Any] = []
        for key, both in list(self.held.items()):
            if len(both) == 2 and self._fits([*found, *both]):
                found += self.held.pop(key)
        self.begun |= {each.request_id for each in found}
        return found

    def _fits(self, new: list[Any]) -> bool:
        """Return whether one pass has room for what runs and for all of these."""
        scheduler = self._scheduler
        running = scheduler.running
        new = [*(each for each in scheduler.waiting if each.request_id in self.begun), *new]
        if not running and len(new) == 2:
            return True  # more room there will never be
        tokens = sum(each.num_tokens - each.num_computed_tokens for each in running)
        size = scheduler.cache_config.block_size
        blocks = len(running) + sum(-(-each.num_tokens // size) + 1 for each in new)
        return bool(
            tokens + sum(each.num_tokens for each in new) <= scheduler.max_num_scheduled_tokens
            and len(running) + len(new) <= scheduler.max_num_running_reqs
            and blocks <= scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        )

    def forget(self, ids: Iterable[str] | None) -> None:
        """Requests that have ended; None = all."""
        gone = None if ids is None else set(ids)
        for key, both in list(self.held.items()):
            self.held[key] = [] if gone is None else [each for each in both if each.request_id not in gone]
            if not self.held[key]:
                del self.held[key]
        self.begun = set() if gone is None else self.begun - gone

    def put_first(self) -> None:
        """Have pairs that run served before others."""
        self.begun &= self._scheduler.requests.keys()
        if self.begun:
            self._scheduler.running.sort(key=lambda each: each.request_id not in self.begun)
