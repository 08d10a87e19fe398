"""Ordinary replies: what the model answers to harmless queries, which a detector of replies lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from persona_tui.core.jobs import JobContext
from persona_tui.extraction.checkpoints import PartialStore, Tally
from persona_tui.model import ModelWrapper, Request, Sampling, Watch, conversation
from persona_tui.monitors.detectors import Detector
from persona_tui.monitors.readings import places_of
from persona_tui.monitors.training_data import TrainingData

MIN_REPLY = 4  # tokens of a reply before anything is said of it

_ORDINARY_QUESTIONS = 40  # at most so many are answered to see what ordinary replies score
_ORDINARY_TOKENS = 32
_ORDINARY_FLAGGED = 0.01  # the share of ordinary replies below the threshold, if it has to be lowered


def passing_ordinary_replies(
    reply: Detector, model: ModelWrapper, data: TrainingData, context: JobContext, partial: PartialStore
) -> Detector:
    """Lower the threshold of the detector of replies to where the model's own ordinary replies pass.

    It was fitted on queries that were read as replies. The model's answers to safe queries are what it will
    meet most, and calling them dangerous would make a guard useless.
    """
    safe = [
        query for query, is_safe in zip(data.examples.queries, data.examples.safe, strict=True) if is_safe
    ]
    step = max(1, len(safe) // _ORDINARY_QUESTIONS)
    asked = safe[::step][:_ORDINARY_QUESTIONS]
    recipe = ["ordinary replies", list(model.identity), list(reply.layers), asked]
    stage = partial.stage([*recipe, *reply.form.tensors().values()])

    def score(items: Sequence[int]) -> Tally:
        return Tally(frozenset(items), values={0: _ordinary_scores(reply, model, asked, context)})

    lowest = stage.finish(1, 1, score).values[0]
    if not lowest:
        return reply
    passing = float(np.quantile(lowest, _ORDINARY_FLAGGED)) - 1e-6
    figures = {**reply.fit, "ordinary_replies": len(lowest), "fitted_threshold": reply.threshold}
    return replace(reply, threshold=min(reply.threshold, passing), fit=figures)


def _ordinary_scores(
    reply: Detector, model: ModelWrapper, safe: Sequence[str], context: JobContext
) -> list[float]:
    """Return the lowest score that each of the model's likeliest answers to safe queries has on its way."""
    asked = [Request(conversation(query)) for query in safe]
    context.checkpoint()
    context.progress(0, _ORDINARY_TOKENS, "answering safe queries")
    lowest: dict[int, float] = {}
    sampling = Sampling(max_new_tokens=_ORDINARY_TOKENS, temperature=0)
    for event in model.stream(asked, sampling, watch=Watch(tuple(sorted(reply.layers)))):
        context.raise_if_cancelled()
        if event.reading is None or event.token_id < 0 or event.reading.n_tokens < MIN_REPLY:
            continue
        rows = event.reading.mean[places_of(event.reading, reply.layers)]
        score = float(reply.form.scores(rows.unsqueeze(0))[0])
        lowest[event.row] = min(score, lowest.get(event.row, score))
        context.progress(event.index, _ORDINARY_TOKENS, "answering safe queries")
    return list(lowest.values())
