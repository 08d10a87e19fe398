"""Lets vLLM's second model runner run on a CPU: each process that has this folder in PYTHONPATH finds Triton.

The second runner is written in Triton, which has no backend for CPUs; its interpreter runs kernels anyway,
but vLLM looks for a backend before it uses either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import backends
    from triton.runtime import interpreter

    class _Driver:
        @staticmethod
        def is_active() -> bool:
            return False  # else torch would compile for it

    class _Backend:
        driver = _Driver

    def _masked(run: Callable[..., Any], at: int) -> Callable[..., Any]:
        """Return a load or a store that takes a mask of numbers, too, as compiled kernels do."""

        def masked(self: Any, *args: Any) -> Any:
            mask = args[at]
            mask.data = mask.data.astype(bool)
            return run(self, *args)

        return masked

    backends["cpu"] = _Backend
    interpreter.InterpreterOptions.sanitize_overflow = False  # a third of its time
    _builder = interpreter.InterpreterBuilder
    _builder.create_masked_load = _masked(_builder.create_masked_load, 1)
    _builder.create_masked_store = _masked(_builder.create_masked_store, 2)
