"""The thread that owns the model: rows that fail, and what is left of a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from persona_tui.core.mix import Mix
from persona_tui.model import Interventions, Request, Sampling, TokenEvent, Watch, conversation
from persona_tui.model.architecture import Overflow
from persona_tui.project.project import Project
from persona_tui.server.limits import Capacity, Unavailable
from persona_tui.server.worker import Worker
from persona_tui.steering import SteeringEngine
from persona_tui.steering.rows import VoicedRow


class Deafening(VoicedRow):
    """A row whose numbers overflow; nothing that a client can ask for does that in float32."""

    loudest = torch.empty(0)

    def take_change(self, token: int) -> Interventions | None:
        return Interventions({4: self.loudest}) if token == 0 else None


@dataclass
class Heard:
    """A row and what came of it."""

    voiced: VoicedRow
    tokens: dict[int, int] = field(default_factory=dict)
    error: Exception | None = None
    watch: Watch | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def take(self, event: TokenEvent) -> None:
        self.tokens[event.index] = event.token_id
        if event.finish is not None:
            self.ended.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.ended.set()


@pytest.fixture
def worker(project: Project) -> Iterator[Worker]:
    worker = Worker(project.engine, Capacity())
    yield worker
    worker.close()


def heard(engine: SteeringEngine, text: str, kind: type[VoicedRow] = VoicedRow) -> Heard:
    return Heard(kind(engine, Request(conversation(text), 1, Sampling(8, 0.0)), Mix(capping=False)))


def test_one_reply_that_overflows_leaves_its_neighbours_alone(project: Project, worker: Worker) -> None:
    engine = project.engine
    Deafening.loudest = torch.full((engine.model.hidden_size,), 1e38)
    alone = heard(engine, "Who are you?")
    worker.submit([alone])
    assert alone.ended.wait(60)
    batch = [
        heard(engine, "Who are you?"),
        heard(engine, "Why?", Deafening),
        heard(engine, "Tell me a long story about bread, please."),
    ]
    worker.submit(batch)
    assert all(each.ended.wait(60) for each in batch)
    assert isinstance(batch[1].error, Overflow) and "strength" in str(batch[1].error)
    assert batch[0].tokens == alone.tokens and batch[0].error is None and batch[2].error is None


def test_what_waits_is_told_when_the_worker_closes(project: Project) -> None:
    worker = Worker(project.engine, Capacity(rows=1))
    first, second = heard(project.engine, "Who are you?"), heard(project.engine, "Why?")
    began = threading.Event()
    worker.on_batch = lambda rows: began.set()
    worker.submit([first, second])
    assert began.wait(60)
    worker.close()
    assert second.ended.is_set() and isinstance(second.error, Unavailable)
    assert first.ended.is_set()
    with pytest.raises(Unavailable):
        worker.submit([first])
