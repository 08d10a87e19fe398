"""How probable the tokens of a reply were, against what was told while it was written."""

from __future__ import annotations

import pytest

from persona_tui.core.mix import Mix
from persona_tui.core.workspace import packaged_root
from persona_tui.pictures.choices import token_choices
from persona_tui.project.project import Project

ASKED = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def project() -> Project:
    return Project.open(packaged_root())


@pytest.mark.parametrize("mix", [Mix({"sage": 1.0}, 0.5, plausibility=0.01), Mix(capping=False)])
def test_choices_are_those_of_the_writing(project: Project, mix: Mix) -> None:
    engine = project.engine
    events = [event for event in engine.stream(ASKED, mix=mix) if event.token_id >= 0]
    ids = [event.token_id for event in events]
    found = token_choices(project.model, engine, ASKED, ids, {0: mix})
    assert len(found) == len(ids)
    for choice, event in zip(found, events, strict=True):
        assert choice.logprob == pytest.approx(event.logprob, abs=1e-3)
        assert choice.nats == pytest.approx(event.nats or 0.0, abs=1e-3)
        assert choice.likeliest[0].logprob >= choice.logprob - 1e-6 and choice.rank >= 1
        if choice.rank == 1:
            assert choice.likeliest[0].logprob == pytest.approx(choice.logprob, abs=1e-6)


def test_a_mix_that_changed_is_read_as_it_was_spoken(project: Project) -> None:
    engine, loud = project.engine, Mix({"sage": 1.0}, 0.6)
    ids = [event.token_id for event in engine.stream(ASKED, mix=Mix(capping=False)) if event.token_id >= 0]
    whole = token_choices(project.model, engine, ASKED, ids, {0: Mix(capping=False), 5: loud})
    plain = token_choices(project.model, engine, ASKED, ids)
    assert [each.logprob for each in whole[:5]] == pytest.approx(
        [each.logprob for each in plain[:5]], abs=1e-4
    )
    assert max(abs(each.nats) for each in whole[5:]) > 0.01
