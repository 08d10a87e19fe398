"""How probable the tokens of given text are, told from the pass that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Logits that are computed at once. On a CPU, more than 32 MiB would be fetched from the system and given back
# every time.
_LOGITS, _LOGITS_ON_CPU = 2**26, 2**22


class PassScores:
    """The tokens of one pass that are scored.

    vLLM's own way takes all tokens of a prompt through the head, and finds the rank of each as well.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[list[float], range, Any]] = []  # where to, places in the pass, and tokens

    def clear(self) -> None:
        """Begin with another pass."""
        self._asked = []

    def ask(self, found: list[float], scored: range, start: int, place: int, ids: Any) -> None:
        """Have some of a request's tokens scored.

        Args:
            found: gets their log-probabilities.
            scored: their positions; the token before each is read in this pass.
            start: the request's first position in this pass.
            place: where that is in the pass.
            ids: the request's tokens.
        """
        if scored:  # what follows a token is told where that token is read
            first = place + scored.start - 1 - start
            self._asked.append(
                (found, range(first, first + len(scored)), ids[scored.start : scored.stop].copy())
            )

    def find(self, hidden: Tensor, head: Callable[[Tensor], Tensor | None], vocabulary: int) -> None:
        """Score them.

        Args:
            hidden: what the last layer has made of the pass, `[tokens, hidden]`.
            head: gives the logits of some of them; None in a process that does not choose tokens.
            vocabulary: how many logits a token has.
        """
        asked, self._asked = self._asked, []
        if not asked:
            return
        rows = torch.tensor([at for _, places, _ in asked for at in places], device=hidden.device)
        wanted = torch.from_numpy(np.concatenate([ids for _, _, ids in asked])).long().to(hidden.device)
        most = max(64, (_LOGITS_ON_CPU if hidden.device.type == "cpu" else _LOGITS) // vocabulary)
        told: list[float] = []
        for at in range(0, len(rows), most):
            logits = head(hidden[rows[at : at + most]])
            if logits is not None:
                apart = cross_entropy(logits.float(), wanted[at : at + most], reduction="none")
                told += (-apart).tolist()
        for found, places, _ in asked if told else ():
            found += told[: len(places)]
            told = told[len(places) :]
