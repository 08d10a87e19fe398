"""Means of many roles at three layers, from few and short replies: a map of one model's persona space.

1. A role is asked one question for each of its system prompts, up to five; the Assistant is asked ten
   times as many.
2. What is known of a role with the same prompts stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from persona_tui.core.config import override
from persona_tui.core.processes import processes
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.runner import Work, dataset_hash, persona_requests
from persona_tui.model import Request
from persona_tui.vectors.roles import RoleMeans

if TYPE_CHECKING:
    from persona_tui.extraction.personas import PersonaStudio

REPLIES_PER_ROLE = 5  # at most; fewer if `extraction.num_samples_per_prompt` is smaller
_BASELINE_REPLIES = 50
_TOKENS = 64  # of the longest reply
_DEPTHS = (1 / 3, 1 / 2, 2 / 3)


def role_layers(extractor: ActivationExtractor) -> tuple[int, ...]:
    """Return three layers around the middle, or as many as are read at all."""
    wanted = [round(depth * extractor.model.n_layers) for depth in _DEPTHS]
    return tuple(sorted({min(extractor.layers, key=lambda layer: abs(layer - each)) for each in wanted}))


def roles_work(studio: PersonaStudio, roles: Mapping[str, Sequence[str]]) -> dict[str, Work]:
    """Return how much work `save_roles` is; nothing for what is known."""
    reader = _reader(studio.extractor)
    missing = unknown(studio.extractor, roles, studio.manager.roles)
    if not missing:
        return {}
    asked = [_requests(reader, prompts) for prompts in missing.values()]
    return {"roles": sum((reader.work(each) for each in [*asked, _ordinary(reader)]), Work())}


def save_roles(studio: PersonaStudio, roles: Mapping[str, Sequence[str]]) -> RoleMeans:
    """Find the mean of every role that is not known, and save them all; see `role_means`."""
    known = studio.manager.roles
    if known is not None and not unknown(studio.extractor, roles, known):
        return known
    with studio.job("roles", roles=[[name, list(prompts)] for name, prompts in roles.items()]):
        found = role_means(studio.extractor, roles, known)

        def save() -> None:
            studio.manager.save_roles(found)

        processes().from_main(save)
    return found


def unknown(
    extractor: ActivationExtractor, roles: Mapping[str, Sequence[str]], known: RoleMeans | None
) -> dict[str, Sequence[str]]:
    """Return the roles that there is no mean of yet, or one of other prompts or layers."""
    if known is None or known.layers != role_layers(extractor):
        return dict(roles)
    return {
        name: prompts
        for name, prompts in roles.items()
        if known.prompts.get(name) != dataset_hash(list(prompts))
    }


def role_means(
    extractor: ActivationExtractor, roles: Mapping[str, Sequence[str]], known: RoleMeans | None = None
) -> RoleMeans:
    """Find the mean of every role.

    Args:
        extractor: with its questions; its progress, checkpoint and partial results are used.
        roles: their system prompts, by name.
        known: means from before; those of roles with the same prompts, and of roles that are not asked for,
            stay.

    Raises:
        DatasetError: there are no questions, or a role has no prompts.
        GenerationError: a role said nothing at all.
        JobCancelled: somebody asked for that; the next call goes on.
    """
    reader = _reader(extractor)
    missing = unknown(extractor, roles, known)
    kept = known if known is not None and known.layers == reader.layers else None
    baseline = kept.baseline if kept else _mean(reader, _ordinary(reader), "assistant")
    found: dict[str, Tensor] = dict(zip(kept.names, kept.means, strict=True)) if kept else {}
    prompts = dict(kept.prompts) if kept else {}
    for name, texts in missing.items():
        found[name] = _mean(reader, _requests(reader, texts), name)
        prompts[name] = dataset_hash(list(texts))
    return RoleMeans(
        tuple(found), reader.layers, torch.stack(list(found.values())), baseline, prompts, reader.provenance()
    )


def _reader(extractor: ActivationExtractor) -> ActivationExtractor:
    """Return the same extractor, for shorter replies and fewer layers; its progress goes on from here."""
    reader = copy(extractor)
    reader.layers = role_layers(extractor)
    longest = min(_TOKENS, extractor.settings.extraction.max_new_tokens)
    reader.settings = override(extractor.settings, {"extraction.max_new_tokens": longest})
    return reader


def _requests(reader: ActivationExtractor, prompts: Sequence[str]) -> list[Request]:
    fewest = min(REPLIES_PER_ROLE, reader.settings.extraction.num_samples_per_prompt)
    seed = reader.settings.extraction.seed
    return persona_requests(list(prompts)[:fewest], reader.questions, 1, seed, "role mean")


def _ordinary(reader: ActivationExtractor) -> list[Request]:
    count = min(_BASELINE_REPLIES, 10 * reader.settings.extraction.num_samples_per_prompt)
    return persona_requests([None], reader.questions, count, reader.settings.extraction.seed, "no role")


def _mean(reader: ActivationExtractor, requests: Sequence[Request], name: str) -> Tensor:
    return reader.run(requests, note=f"roles: {name}").mean("response")
