"""A mix in words: who speaks and how loud, what has changed between two, and how a setting is typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.core.mix import Mix, parse_blend

NOBODY = "no persona"


def short_label(mix: Mix) -> str:
    """Return who speaks and how loud, as a prompt shows it: `sage 0.30`; "" = nobody in particular."""
    return f"{mix.label} {mix.strength:.2f}" if mix.label else ""


def setting_in_words(mix: Mix, capped: bool = True) -> str:
    """Return a setting in a few words: `sage 0.30, capping on`.

    Args:
        mix: the setting.
        capped: whether a floor is enforced, if the setting asks for one.
    """
    guide = f", guide {mix.plausibility:g}" if mix.label and mix.plausibility else ""
    return f"{short_label(mix) or NOBODY}, {capping_in_words(mix.capping, capped)}{guide}"


def capping_in_words(asked: bool, capped: bool) -> str:
    """Say whether activations are held above a floor: what is done, and what was asked for if it is not."""
    if not asked:
        return "capping off"
    return "capping on" if capped else "no floor to cap at"


def shares(mix: Mix) -> dict[str, float]:
    """Return each speaking persona's share of a blend: the sizes add up to 1, what is turned round is < 0."""
    names = mix.speaking
    whole = sum(abs(weight) for weight in names.values())
    return {name: weight / whole for name, weight in names.items()}


def label(mix: Mix) -> str:
    """Return who speaks and how loud: `sage 0.30`, `sage 62% + trickster 38% · 0.30`, `no persona`."""
    names = mix.speaking
    if not names:
        return NOBODY
    return f"{who(mix)}{' ·' if len(names) > 1 else ''} {mix.strength:.2f}"


def who(mix: Mix) -> str:
    """Return who speaks, without how loud."""
    names = mix.speaking
    if len(names) < 2:
        return next((f"{'−' if weight < 0 else ''}{name}" for name, weight in names.items()), NOBODY)
    return " + ".join(f"{name} {share_in_words(share)}" for name, share in shares(mix).items())


def share_in_words(share: float) -> str:
    """Return a share of a blend: `62%`, `−38%` for one that is turned round."""
    return f"{'−' if share < 0 else ''}{abs(share):.0%}"


def difference(before: Mix, after: Mix) -> str:
    """Say what has changed, in a few words: `sage → trickster · strength 0.30 → 0.45`; "" = nothing."""
    changes = []
    if before.speaking != after.speaking:
        changes.append(f"{who(before)} → {who(after)}")
    if before.strength != after.strength:
        changes.append(f"strength {before.strength:.2f} → {after.strength:.2f}")
    if before.capping != after.capping:
        changes.append(f"capping {'on' if after.capping else 'off'}")
    if before.capping_axis != after.capping_axis:
        changes.append(f"floor on the {after.capping_axis or 'default'} axis")
    if before.percentile != after.percentile:
        where = (
            "as configured" if after.percentile is None else f"at the {ordinal(after.percentile)} percentile"
        )
        changes.append(f"floor {where}")
    if before.layers != after.layers:
        changes.append(f"layers {', '.join(map(str, after.layers)) if after.layers else 'as calibrated'}")
    if before.plausibility != after.plausibility:
        changes.append(f"guide {f'{after.plausibility:g}' if after.plausibility else 'off'}")
    if before.safe != after.safe:
        changes.append(f"{'safe' if after.safe else 'raw'} vectors")
    return " · ".join(changes)


def ordinal(number: float) -> str:
    """Return `25th` for 25; a fraction stays one."""
    if number != int(number):
        return f"{number:g}th"
    last = int(number) % 100
    ending = "th" if 10 < last < 20 else {1: "st", 2: "nd", 3: "rd"}.get(last % 10, "th")
    return f"{int(number)}{ending}"


_ON = {"on": True, "yes": True, "off": False, "no": False}
_KEYS = ("persona", "blend", "strength", "capping", "plausibility")
_USAGE = "persona=sage,strength=0.3,capping=on"


def counterpart(mix: Mix, loaded: Sequence[str]) -> Mix:
    """Return what a mix is compared with unless somebody says: no persona, else a loaded one, else another
    floor.
    """
    if mix.label:
        return replace(mix, weights={})
    if loaded:
        return replace(mix, weights={loaded[0]: 1.0})
    return replace(mix, capping=not mix.capping)


def parse_settings(text: str, default: Mix, loaded: Sequence[str]) -> tuple[list[Mix], str | None]:
    """Read `[SETTING vs SETTING] [QUESTION]`: the two mixes, and the question, None if there is none.

    Without settings, the default and its counterpart are compared.

    Raises:
        PersonaTuiError: a setting is not understood.
    """
    words = text.split(maxsplit=3)
    if len(words) < 3 or words[1] != "vs":
        return [default, counterpart(default, loaded)], text.strip() or None
    mixes = [parse_setting(word, default) for word in (words[0], words[2])]
    return mixes, words[3].strip() if words[3:] else None


def parse_setting(text: str, default: Mix) -> Mix:
    """Read `persona=sage,strength=0.3,capping=on`; what is left out is as in `default`.

    `persona=none` is nobody in particular. A blend is written `blend=sage:0.5+trickster:0.3`.

    Raises:
        PersonaTuiError: a part is not understood: says what would be.
    """
    mix = default
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key not in _KEYS:
            hint = nearest(key, _KEYS) if equals else ""
            raise PersonaTuiError(f'"{part}" is not part of a setting, which looks like {_USAGE}.{hint}')
        mix = replace(mix, **_part(key, value))
    return mix


def _part(key: str, value: str) -> dict[str, Any]:
    if key == "persona":
        return {"weights": {} if value.casefold() == "none" else {value: 1.0}}
    if key == "blend":
        return {"weights": parse_blend(value.replace("+", ","))}
    if key == "capping":
        if value.casefold() not in _ON:
            raise PersonaTuiError(f'capping is "on" or "off", not "{value}"')
        return {"capping": _ON[value.casefold()]}
    try:
        return {key: float(value)}
    except ValueError as error:
        raise PersonaTuiError(f'{key} must be a number, not "{value}"') from error


def setting_as_text(mix: Mix) -> str:
    """Return a setting as it can be typed: `persona=sage,strength=0.3,capping=on`; see `parse_setting`."""
    active = mix.speaking
    if not active:
        who = "persona=none"
    elif list(active.values()) == [1.0]:
        who = f"persona={next(iter(active))}"
    else:
        who = f"blend={'+'.join(f'{name}:{weight:g}' for name, weight in active.items())}"
    return (
        f"{who},strength={mix.strength:g},capping={'on' if mix.capping else 'off'}"
        f",plausibility={mix.plausibility:g}"
    )
