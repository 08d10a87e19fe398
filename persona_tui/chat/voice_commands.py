"""Slash commands about who speaks and how: personas, the floor, the guard, sampling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.chat import personas
from persona_tui.chat.command import OFF, Command, number, switch, whole
from persona_tui.chat.personas import there
from persona_tui.chat.voice import label
from persona_tui.core.mix import layers_text, parse_blend, parse_layers

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat


def _persona(chat: Chat, name: str) -> str:
    if not name:
        return _speaking(chat) if chat.mix.label else "No persona. /persona NAME chooses one."
    if name.casefold() in OFF:
        return _none(chat, "")
    personas.load(chat, name)
    chat.change_mix(weights={name: 1.0})
    return f"{_speaking(chat)}{_weakness(chat, name)}"


def _speaking(chat: Chat) -> str:
    return f"Speaking as {label(chat.mix)}."


def _weakness(chat: Chat, name: str) -> str:
    """Return what extraction found wanting, so that nobody wonders why a persona is hardly heard."""
    reason = chat.project.personas.get(name).metadata.get("weak_reason")
    return f" This is a weak persona: {reason}." if reason else ""


def _none(chat: Chat, rest: str) -> str:
    chat.change_mix(weights={})
    return "No persona."


def _strength(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_mix(strength=number(rest, "strength"))
    return f"Strength {chat.mix.strength:.2f}."


def _blend(chat: Chat, rest: str) -> str:
    if not rest:
        example = "/blend sage:0.5,trickster:0.3 (only the proportions count)"
        return _speaking(chat) if chat.mix.label else f"No persona. {example}"
    weights = parse_blend(rest)
    for name in weights:
        chat.project.personas.get(name)
    for name in weights:
        personas.load(chat, name)
    chat.change_mix(weights=weights)
    return _speaking(chat)


def _safety(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_mix(capping=switch(rest, "/safety on|off"))
    return _as_enforced(chat, f"Capping is {'on' if chat.mix.capping else 'off'}.")


def _as_enforced(chat: Chat, said: str) -> str:
    """Return what is said about the floor, or what of it cannot be enforced instead."""
    engine = chat.project.loaded_engine
    return (engine.unenforced(chat.mix) if engine is not None else "") or said


def _guard(chat: Chat, rest: str) -> str:
    if rest:
        chat.set_guard(rest)
    said = f"The guard is {chat.guard.mode}: {_GUARDING[chat.guard.mode]}."
    if chat.guard.mode != "off" and (weakness := chat.guard.weakness):
        return f"{said} But it is {weakness}."
    return said


def _policy(chat: Chat, rest: str) -> str:
    from persona_tui.traits.policy import Policy

    if rest:
        chat.set_policy(None if rest.casefold() in OFF else Policy.read(_rules(rest), chat.project.workspace))
    policy = chat.policy
    if policy is None:
        return "No policy. /policy FILE, or rules: /policy harmful_validation>0.5"
    each = " (here, each reply by itself)" if policy.applies_to == "conversation" else ""
    return f"Policy {policy.name}: replies are measured by {', '.join(policy.traits)}{each}."


def _rules(rest: str) -> list[str]:
    """Return what `/policy` was given: several rules, one by one; or else as it is."""
    if not Path(rest).expanduser().is_file() and any(sign in rest for sign in "<>"):
        return re.split(r"[\s,]+(?=\w+\s*[<>])", rest)
    return [rest]


def _policies(chat: Chat) -> list[str]:
    from persona_tui.traits.definition import list_policies

    return list(list_policies(chat.project.workspace))


_GUARDING = {
    "off": "nothing is judged",
    "warn": "messages and replies get a badge",
    "refuse": "dangerous messages are not answered, dangerous replies are stopped",
    "critique": "the model reads its draft, and answers again if that helps to do harm. "
    "Not every model can tell: `persona-tui monitor critique` tries it",
}


def _floor(chat: Chat, rest: str) -> str:
    if rest:
        value = None if rest.casefold() in ("auto", *OFF) else number(rest.rstrip("%"), "the percentile")
        chat.change_mix(percentile=value)
    percentile = chat.mix.percentile
    if percentile is None:
        percentile = chat.project.settings.steering.safety_floor_percentile
    return _as_enforced(chat, f"The floor lies at percentile {percentile:g} of ordinary replies.")


def _axis(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_mix(capping_axis=None if rest.casefold() in ("auto", *OFF) else rest.casefold())
    axes, engine = chat.project.personas.axes, chat.project.loaded_engine
    axis = engine.capping_axis(chat.mix) if engine is not None else chat.mix.capping_axis
    if axis is None:
        return _as_enforced(chat, "The floor is on the axis from the settings.")
    doubt = axes.doubt(axis) if axes is not None and axis in axes.names else ""
    return _as_enforced(chat, f"The floor is on the {axis} axis.{f' {doubt}' if doubt else ''}")


def _layers(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_mix(layers=parse_layers(rest))
    layers = chat.mix.layers
    if layers is None:
        return "Personas are added at the calibrated layers."
    return f"Personas are added at {layers_text(layers)}."


def _plausibility(chat: Chat, rest: str) -> str:
    if rest:
        value = 0.0 if rest.casefold() in OFF else number(rest, "plausibility")
        chat.change_mix(plausibility=value)
    value = chat.mix.plausibility
    if not value:
        return "The guide is off: any token may be said."
    return f"The guide is at {value:g}: unsteered, a token must have {value:g} of the best one's probability."


def _system(chat: Chat, rest: str) -> str:
    if rest:
        chat.set_system(None if rest.casefold() in OFF else rest)
    return f"System prompt: {chat.system}" if chat.system else "No system prompt."


def _temperature(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_sampling(temperature=number(rest, "temperature"))
    return f"Temperature {chat.sampling.temperature:g}."


def _top_p(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_sampling(top_p=number(rest, "top-p"))
    return f"Top-p {chat.sampling.top_p:g}."


def _max_tokens(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_sampling(max_new_tokens=whole(rest, "max-tokens"))
    return f"Replies of up to {chat.sampling.max_new_tokens} tokens."


def _seed(chat: Chat, rest: str) -> str:
    if rest:
        chat.change_sampling(seed=None if rest.casefold() in OFF else whole(rest, "seed"))
    seed = chat.sampling.seed
    if seed is None:
        return "No seed: a different reply every time."
    return f"Seed {seed}: the same reply every time."


VOICE: tuple[Command, ...] = (
    Command("persona", "/persona NAME", "speak as a persona, loading it if needed", _persona, there),
    Command(
        "strength",
        "/strength NUMBER",
        "strength: 0 = unsteered, 0.3 = clear, 1 = too much",
        _strength,
        lambda _: ("0", "0.15", "0.3", "0.5"),
    ),
    Command("blend", "/blend A:0.5,B:0.3", "speak as several personas", _blend, there),
    Command("none", "/none", "stop speaking as a persona", _none),
    Command(
        "safety",
        "/safety on|off",
        "capping: keep activations above the floor",
        _safety,
        lambda _: ("on", "off"),
    ),
    Command(
        "guard",
        "/guard MODE",
        "judge what is said: off, warn, refuse or critique",
        _guard,
        lambda _: ("off", "warn", "refuse", "critique"),
    ),
    Command(
        "policy",
        "/policy FILE|RULE|off",
        "limits on trait scores; breaches get a badge",
        _policy,
        lambda chat: ("off", *_policies(chat)),
    ),
    Command(
        "floor",
        "/floor PERCENT|auto",
        "the floor's percentile",
        _floor,
        lambda _: ("1", "25", "50", "auto"),
    ),
    Command(
        "axis",
        "/axis NAME|auto",
        "the floor's axis: assistant or safety",
        _axis,
        lambda _: ("assistant", "safety", "auto"),
    ),
    Command(
        "plausibility",
        "/plausibility NUMBER|off",
        "the guide: how plausible a word must be unsteered",
        _plausibility,
        lambda _: ("0.02", "0.1", "off"),
    ),
    Command("layers", "/layers 3-5|auto", "layers where personas are added", _layers, lambda _: ("auto",)),
)

SAMPLING: tuple[Command, ...] = (
    Command(
        "system", "/system TEXT|off", "a system prompt for this conversation", _system, lambda _: ("off",)
    ),
    Command("seed", "/seed NUMBER|off", "fix the seed, or turn it off", _seed, lambda _: ("off",)),
    Command(
        "temperature",
        "/temperature NUMBER",
        "0 = the likeliest token, 1 = as the model has it",
        _temperature,
        lambda _: ("0", "0.7", "1"),
    ),
    Command(
        "top-p",
        "/top-p NUMBER",
        "sample from the likeliest tokens; 1 = from all",
        _top_p,
        lambda _: ("0.9", "0.95", "1"),
    ),
    Command(
        "max-tokens",
        "/max-tokens NUMBER",
        "the longest reply",
        _max_tokens,
        lambda _: ("64", "256", "1024"),
    ),
)
