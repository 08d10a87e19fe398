"""What an answer is spoken with, as it is typed: `persona=sage,strength=0.3,capping=on`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.core.mix import Mix, parse_blend

_ON = {"on": True, "yes": True, "off": False, "no": False}
_KEYS = ("persona", "blend", "strength", "capping", "plausibility")
_USAGE = "persona=sage,strength=0.3,capping=on"


def counterpart(mix: Mix, loaded: Sequence[str]) -> Mix:
    """What a mix is compared with unless somebody says: no persona, else a loaded one, else another floor."""
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
            raise PersonaTuiError(f'"{part}" is no part of a setting, which looks like {_USAGE}.{hint}')
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
    """A setting as it can be typed: `persona=sage,strength=0.3,capping=on`; see `parse_setting`."""
    active = {name: weight for name, weight in mix.weights.items() if weight}
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
