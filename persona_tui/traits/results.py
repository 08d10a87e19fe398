"""What is looked at in traits: an overview of them, breaches by turn, and results as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.files import atomic_write_text
from persona_tui.core.workspace import Workspace
from persona_tui.traits.definition import find_definition, list_definitions
from persona_tui.traits.policy import Breach, Policy
from persona_tui.traits.score import TurnScore, drift_of
from persona_tui.traits.vector import TraitStore, TraitVector, summary

ROLES = ("user", "assistant")


def overview(workspace: Workspace, store: TraitStore) -> list[dict[str, Any]]:
    """Return all traits, extracted or only described, by name; one that cannot be read has an `error`."""
    made, files = store.names(), list_definitions(workspace)
    entries = []
    for name in sorted({*made, *files}):
        entry: dict[str, Any] = {"name": name, "extracted": name in made, "file": str(files.get(name, ""))}
        try:
            entry |= _details(workspace, store, name, name in made)
        except PersonaTuiError as error:
            entry["error"] = str(error)
        entries.append(entry)
    return entries


def _details(workspace: Workspace, store: TraitStore, name: str, made: bool) -> dict[str, Any]:
    if not made:
        definition = find_definition(workspace, name)
        return {"description": definition.description, "healthy": definition.healthy.model_dump()}
    trait = store.get(name)
    return {"description": trait.vector.metadata.get("description"), **summary(trait)}


def turn_breaches(policy: Policy, turns: Sequence[TurnScore]) -> list[Breach]:
    """Return the limits that the replies of a conversation do not keep, in their order.

    A policy for whole conversations is kept or broken by the means over the replies.
    """
    replies = [turn for turn in turns if turn.role == "assistant"]
    if not replies:
        return []
    if policy.applies_to == "conversation":
        users = "\n".join(turn.text for turn in turns if turn.role == "user")
        return policy.breaches(policy.means(replies), users)
    found: list[Breach] = []
    for reply in replies:
        before = [turn for turn in turns if turn.message < reply.message]
        user = before[-1].text if before and before[-1].role == "user" else ""
        found += policy.breaches(reply.scores, user, reply.turn, reply.outside)
    return found


def write_turns(
    folder: Path, traits: Sequence[TraitVector], turns: Sequence[TurnScore], policy: Policy | None
) -> list[Path]:
    """Write a conversation's scores: `turns.json` with drift and breaches, `turns.csv`, and `traits.csv`.

    Raises:
        WorkspaceError: the folder cannot be written to.
    """
    document = {
        "traits": {trait.name: summary(trait) for trait in traits},
        "turns": [_turn(turn) for turn in turns],
        "drift": {role: drift_of(turns, role) for role in ROLES},
        "policy": policy.name if policy is not None else None,
        "breaches": [breach.as_dict() for breach in turn_breaches(policy, turns)] if policy else [],
    }
    texts = {
        "turns.json": json.dumps(document, ensure_ascii=False, indent=1) + "\n",
        "turns.csv": _turns_csv([trait.name for trait in traits], turns),
        "traits.csv": _traits_csv(traits),
    }
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    return [folder / name for name in texts]


def _turn(turn: TurnScore) -> dict[str, Any]:
    return {
        "turn": turn.turn,
        "role": turn.role,
        "tokens": turn.n_tokens,
        "scores": {name: round(score, 4) for name, score in turn.scores.items()},
        "not_applicable": sorted(turn.outside),
        "text": turn.text,
    }


def _turns_csv(names: Sequence[str], turns: Sequence[TurnScore]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["turn", "role", "tokens", *names, "text"])
    for turn in turns:
        scores = [round(turn.scores[name], 4) for name in names]
        writer.writerow([turn.turn, turn.role, turn.n_tokens, *scores, turn.text])
    return out.getvalue()


def _traits_csv(traits: Sequence[TraitVector]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["trait", "layer", "strength", "separation", "auc", "held_out_auc", "threshold", "source"]
    )
    for trait in traits:
        reading = trait.reading
        held_out = "" if reading.held_out is None else round(reading.held_out.auc.value, 4)
        figures = [round(each, 4) for each in (reading.strength, reading.separation, reading.auc.value)]
        row = [trait.name, reading.layer, *figures, held_out]
        writer.writerow([*row, round(reading.threshold, 4), reading.threshold_source])
    return out.getvalue()
