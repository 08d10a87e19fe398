"""A mix in words: who speaks and how loud, and what has changed between two."""

from __future__ import annotations

from persona_tui.core.mix import Mix

NOBODY = "no persona"


def speaking(mix: Mix) -> dict[str, float]:
    """Return the personas that have any weight."""
    return {name: weight for name, weight in mix.weights.items() if weight}


def short_label(mix: Mix) -> str:
    """Return who speaks and how loud, as a prompt shows it: `sage 0.30`; "" = nobody in particular."""
    return f"{mix.label} {mix.strength:.2f}" if mix.label else ""


def setting_in_words(mix: Mix, capped: bool = True) -> str:
    """A setting in a few words: `sage 0.30, capping on`.

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
    names = speaking(mix)
    whole = sum(abs(weight) for weight in names.values())
    return {name: weight / whole for name, weight in names.items()}


def label(mix: Mix) -> str:
    """Return who speaks and how loud: `sage 0.30`, `sage 62% + trickster 38% · 0.30`, `no persona`."""
    names = speaking(mix)
    if not names:
        return NOBODY
    return f"{who(mix)}{' ·' if len(names) > 1 else ''} {mix.strength:.2f}"


def who(mix: Mix) -> str:
    """Return who speaks, without how loud."""
    names = speaking(mix)
    if len(names) < 2:
        return next((f"{'−' if weight < 0 else ''}{name}" for name, weight in names.items()), NOBODY)
    return " + ".join(f"{name} {share_in_words(share)}" for name, share in shares(mix).items())


def share_in_words(share: float) -> str:
    """Return a share of a blend: `62%`, `−38%` for one that is turned round."""
    return f"{'−' if share < 0 else ''}{abs(share):.0%}"


def difference(before: Mix, after: Mix) -> str:
    """Say what has changed, in a few words: `sage → trickster · strength 0.30 → 0.45`; "" = nothing."""
    changes = []
    if speaking(before) != speaking(after):
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
