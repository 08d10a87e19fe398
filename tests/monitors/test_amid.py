"""Training queries amid small talk: which, what is learned of them, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persona_tui.model import ModelWrapper
from persona_tui.monitors.amid import amid_chat, read_amid_chat
from persona_tui.monitors.fitter import PROBE, fit
from persona_tui.monitors.probes import Examples
from persona_tui.monitors.readings import MESSAGE, Amid, TextReadings, read_queries
from persona_tui.monitors.training_data import TrainingData

CHAT = ("I baked bread this morning.", "Ok.", "do re mi fa so la")  # only the first is a line of small talk


def with_chat(data: TrainingData) -> Examples:
    """The small set, and some small talk."""
    small = data.examples
    return Examples(
        (*small.queries, *CHAT),
        np.concatenate([small.safe, [True] * len(CHAT)]),
        (*small.groups, *CHAT),
        (*small.harms, *[None] * len(CHAT)),
        (*small.kinds, *["chat"] * len(CHAT)),
    )


def test_every_other_query_comes_after_a_line_of_small_talk(data: TrainingData) -> None:
    examples = with_chat(data)
    pairs = amid_chat(examples)
    assert [asked for _, asked in pairs] == [*range(0, len(data.examples.queries), 2)]
    assert {examples.queries[chat] for chat, _ in pairs} == {CHAT[0]}
    assert not amid_chat(data.examples)


def test_of_a_request_its_own_part_is_learned_and_of_a_question_every_part(
    model: ModelWrapper, data: TrainingData
) -> None:
    examples = with_chat(data)
    amid = read_amid_chat(model, examples)
    assert amid is not None and amid.rows.shape[1:] == (len(amid.layers), model.hidden_size)
    assert len(amid.rows) == len(amid.safe) == len(amid.groups)
    assert int((~amid.safe).sum()) == sum(not examples.safe[asked] for _, asked in amid_chat(examples))
    chat, asked = next(pair for pair in amid_chat(examples) if not examples.safe[pair[1]])
    read = read_queries(model, [f"{examples.queries[chat]} {examples.queries[asked]}"], amid.layers)
    assert read.parts is not None
    torch.testing.assert_close(amid.rows[np.flatnonzero(~amid.safe)[0]], read.parts[-1], atol=1e-4, rtol=1e-4)
    assert read_amid_chat(model, data.examples) is None


def test_what_a_query_was_made_into_is_left_out_with_it() -> None:
    """Rows amid small talk that give every label away would, were they not left out with their query."""
    numbers = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 1, 64, generator=numbers)
    safe = np.array([True, False] * 20)
    names = tuple(map(str, range(40)))
    examples = Examples(tuple(f"query {name}" for name in names), safe, names, (None,) * 40)
    plain = TextReadings((0,), {MESSAGE: rows})
    own = Amid((0,), 5 * rows, safe, tuple((name, name) for name in names))
    others = replace(own, groups=tuple(("0", "0") for _ in names))
    areas = [
        fit(examples, replace(plain, amid=amid)).detectors[PROBE].fit["auc"]["value"]
        for amid in (None, own, others)
    ]
    assert abs(areas[1] - 0.5) < 0.2 and areas[2] > 0.8 > areas[0]
