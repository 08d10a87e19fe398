"""Means of roles: few replies, made once, and gone on with."""

from __future__ import annotations

import pytest
import torch

from persona_tui.core.errors import DatasetError, JobCancelled
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import archetype_prompts
from persona_tui.extraction.roles import REPLIES_PER_ROLE, role_layers, roles_work, save_roles

from .conftest import MakeStudio

ROLES = {"sage": ["Be wise.", "Be very wise."], "cook": ["You cook."] * 9}


def test_a_role_is_the_mean_of_its_replies(make_studio: MakeStudio) -> None:
    studio = make_studio()
    found = save_roles(studio, ROLES)
    assert found.names == ("sage", "cook") and found.layers == role_layers(studio.extractor)
    assert found.means.shape == (2, len(found.layers), studio.extractor.model.hidden_size)
    assert not torch.allclose(found.means[0], found.means[1])
    read = studio.manager.roles
    assert read is not None and torch.equal(read.means, found.means)
    assert studio.manager.list_available() == [], "roles are no personas"


def test_it_asks_few_replies_and_says_so_before(make_studio: MakeStudio) -> None:
    studio = make_studio({"extraction.num_samples_per_prompt": 50, "extraction.max_new_tokens": 256})
    one = roles_work(studio, {"cook": ROLES["cook"]})["roles"]
    two = roles_work(studio, {"cook": ROLES["cook"], "smith": ["You forge."] * 9})["roles"]
    assert (two.tokens - one.tokens) / REPLIES_PER_ROLE < 64 + 200, "short replies, and their prompts"
    small = make_studio({"extraction.num_samples_per_prompt": 1})
    assert roles_work(small, ROLES)["roles"].tokens < roles_work(studio, ROLES)["roles"].tokens / 5


def test_what_is_known_stays(make_studio: MakeStudio) -> None:
    studio = make_studio()
    first = save_roles(studio, ROLES)
    assert roles_work(studio, ROLES) == {}
    before = studio.extractor.tokens
    assert torch.equal(save_roles(studio, ROLES).means, first.means) and studio.extractor.tokens == before
    changed = save_roles(studio, {"sage": ["Be wise, and brief."], "smith": ["You forge."]})
    assert changed.names == ("sage", "cook", "smith")
    assert torch.equal(changed.means[1], first.means[1])
    assert not torch.equal(changed.means[0], first.means[0])
    assert torch.equal(changed.baseline, first.baseline)


def test_an_interrupted_job_goes_on(make_studio: MakeStudio) -> None:
    whole = save_roles(make_studio(), ROLES)
    make_studio().manager.vectors_dir.joinpath("roles.safetensors").unlink()
    calls = 0

    def stop_at_the_last() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise JobCancelled("cancelled")

    interrupted = make_studio(checkpoint=stop_at_the_last)
    with pytest.raises(JobCancelled):
        save_roles(interrupted, ROLES)
    assert interrupted.manager.roles is None
    studio = make_studio()
    assert torch.equal(save_roles(studio, ROLES).means, whole.means)


def test_names_that_nobody_has(workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match='no archetype "saeg"'):
        archetype_prompts(workspace, ["saeg"])
    everybody = archetype_prompts(workspace)
    assert set(everybody) >= {"sage", "trickster", "absent_minded_professor"} and len(everybody) > 100
