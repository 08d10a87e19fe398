"""How loud a persona has to be: which size makes it audible and keeps it fluent.

1. On held-out questions the model answers with the persona's system prompts. What a system prompt does is to
   make its own replies likely, so the first question is how much of that steering recovers:
   `(L_steered − L_plain) / (L_prompted − L_plain)`, with L the mean log-probability per token of those
   replies after the bare question, steered or not, and after the question with the system prompt. No reply
   is sampled for it: one forward pass for each size that is tried. Too much steering lowers it as well, so
   its maximum is a sane size by itself.
2. From that size on, the vectors are fitted to what the system prompts do (`distil.py`). What they recover,
   on the same held-out replies, tells whether they learned anything; if not, the mean difference is used.
3. The model then answers the same questions at a few sizes, with the floor (and the guide, if there is one)
   that is in force by default: multiples of the size that distilled vectors were fitted at, or of a mean
   difference's likeliest size. On straight lines through what they give, the size is read off at which
   the persona is clear and still fluent: that is strength 0.3. At one size it also answers without the
   floor, which shows what the floor takes.

The guide lets the size of a mean difference go to two or three times the maximum of the likelihood; without
it, little more than the maximum itself is fluent (`benchmarks/guide.py`). So a mean difference that is
calibrated with the guide has a second gain, for speaking without it: a fixed multiple of that maximum.

No judge is needed. Expression is the log-likelihood ratio of a reply with and without the persona's system
prompt, under the unsteered model; fluency is its log-likelihood with it. Both are means per token, in nats.
All vectors are added over one band of layers, the same for every persona.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from persona_tui.core.errors import GenerationError
from persona_tui.extraction.bench import RECIPE, Bench
from persona_tui.extraction.distil import distilled, undistilled
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.runner import shuffled
from persona_tui.extraction.sizes import TIE, Point, between, choose, fitted, likeliest, third
from persona_tui.model import Message
from persona_tui.vectors.files import DISTILLED
from persona_tui.vectors.persona import DEFAULT_DOSE, DEFAULT_STRENGTH, Calibration, PersonaVector


@dataclass(frozen=True)
class Multiples:
    """The sizes that a sweep begins with, with the guide and without, and the gain that a persona gets
    without the guide when it was calibrated with it (None: the same); in multiples of the likeliest size, or
    of the one that distilled vectors were fitted at."""

    guided: tuple[float, float]
    unguided: tuple[float, float]
    without: float | None


MULTIPLES = {
    RECIPE: Multiples((2.0, 3.2), (1.0, 1.6), 1.2),
    DISTILLED: Multiples((1.0, 1.4), (1.0, 1.4), None),
}
# Of what the mean difference recovers: distilled vectors that recover less learned nothing of use. They need
# not recover more, since their teacher exaggerates: what is likeliest is not what they were fitted to.
NEARLY = 0.7
FITTED = 1.0  # the size that distilled vectors were fitted at
LIKELIEST = 0.85  # times that, they make prompted replies about as likely as they can; they were taught more
CONTRASTED = (0.5, 1.0, 1.6, 2.5)  # the same where loudness is all that is measured
UNGUIDED = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the usual dose, where nothing says what size is right
QUIETER = 4  # how often half the size is tried where none of these is fluent
CONTRAST_REPLIES = 16  # of each side
LEAST_GAINED = 0.01  # nats per token; where no size makes the high side likelier by more, none is right
CLEAR = 0.5  # an expression below this is weak

# Bands that the search compares, in shares of the depth, beside the default one.
BANDS = ((0.25, 0.5), (0.25, 0.6), (0.3, 0.5), (0.35, 0.65), (0.4, 0.7), (0.25, 0.75))
_BAND_TIE = 0.01  # of what is recovered; the default band is left for more than this only


def calibrated(extractor: ActivationExtractor, persona: PersonaVector) -> PersonaVector:
    """Fit a persona's vectors, and find its gain, on the extractor's questions.

    Everything is measured with the `safe` vectors, at the sampling settings of a chat. The same seed gives
    the same calibration.

    Args:
        extractor: with its questions and, if there are any, the model's axes; its progress and checkpoint
            are used.
        persona: its metadata must have its system prompts (`prompts`).

    Returns:
        The persona with its calibration, which has every point that was tried. When no point is both fluent
        and expressive, it is the best there is; the metadata say whether it is `weak`, and why.

    Raises:
        DatasetError: there are no questions or no system prompts.
        VectorFileError: the persona has no vectors in the band.
    """
    bench, sizes = _fitted(Bench(extractor, undistilled(persona)), persona)
    calibration = _calibration(bench, sizes)
    reason = weakness(calibration)
    metadata = {key: value for key, value in persona.metadata.items() if key != "pending"}
    metadata |= {"weak": reason is not None, "weak_reason": reason}
    return replace(bench.persona, metadata=metadata, calibration=calibration)


def _fitted(bench: Bench, before: PersonaVector) -> tuple[Bench, dict[float, float]]:
    """Return the vectors to use, distilled ones or the mean difference, and what each size recovers."""
    sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    extractor, size = bench.extractor, _best(sizes)
    if not extractor.settings.calibration.distil or not extractor.questions or sizes[size] <= 0:
        return bench, sizes
    if not extractor.model.learns:
        return _kept(bench, before, "this engine computes no gradients.") or (bench, sizes)
    try:
        persona = distilled(bench.course, size)
    except GenerationError as error:  # gradients take more memory than replies
        return _kept(bench, before, str(error)) or (bench, sizes)
    other = bench.with_vectors(persona, DISTILLED)
    found = _of_distilled(other)
    if found[_best(found)] > NEARLY * sizes[size]:
        return other, found
    return bench, sizes


def _kept(bench: Bench, before: PersonaVector, reason: str) -> tuple[Bench, dict[float, float]] | None:
    """Return vectors distilled before, where they cannot be now; None if there are none for the band."""
    calibration, name = before.calibration, before.name
    if before.recipe != DISTILLED or calibration is None or tuple(calibration.layers) != bench.band:
        bench.extractor.say(f"{name} is not distilled, the mean difference is used as it is: {reason}")
        return None
    bench.extractor.say(f"{name} keeps the distilled vectors that it has: {reason}")
    other = bench.with_vectors(before.with_calibration(None), DISTILLED)
    return other, _of_distilled(other)


def _of_distilled(bench: Bench) -> dict[float, float]:
    """Return what distilled vectors recover at about their likeliest size: it is known, so nothing has to be
    searched for."""
    size = FITTED * LIKELIEST
    return {size: bench.recovered([size])[0]}


def _best(sizes: Mapping[float, float]) -> float:
    return max(sizes, key=lambda each: sizes[each])


def _calibration(bench: Bench, sizes: Mapping[float, float]) -> Calibration:
    """Return the gain that makes a persona clear and fluent, and how that was found."""
    settings, size = bench.extractor.settings, _best(sizes)
    margin, guide = settings.calibration.fluency_margin, settings.steering.plausibility
    unit, multiples = FITTED if bench.recipe == DISTILLED else size, MULTIPLES[bench.recipe]
    without = multiples.without if guide else None
    first = [unit * multiple for multiple in (multiples.guided if guide else multiples.unguided)]
    # At the louder one also without the floor.
    points = bench.sweep(first, guide, uncapped=first[-1:] if bench.floor else ())
    uncapped = points.pop() if bench.floor else None
    points += bench.sweep([third(points[0], points[1], margin)], guide)
    chosen = choose(fitted(points), margin)
    return Calibration(
        recipe=bench.recipe,
        layers=bench.band,
        gain=chosen.coefficient / DEFAULT_STRENGTH,
        default_strength=DEFAULT_STRENGTH,
        expression=chosen.expression,
        fluency_drop=chosen.fluency_drop,
        curve=[
            *(bench.record(each, "sweep") for each in sorted(points, key=lambda each: each.coefficient)),
            bench.record(chosen, "fitted", chosen=True),
        ],
        recovered=round(sizes[size], 4),
        recovery=[(round(each, 5), round(sizes[each], 4)) for each in sorted(sizes)],
        floor=bench.floor_name,
        floor_leaves=_share(points[1], uncapped),
        questions=len(bench.trials),
        plausibility=guide,
        unguided_gain=unit * without / DEFAULT_STRENGTH if without else None,
    )


def _share(capped: Point, uncapped: Point | None) -> float | None:
    """Return how much of the expression a floor leaves; None without a floor, or nothing to take from."""
    if uncapped is None or uncapped.expression < TIE:
        return None
    return round(capped.expression / uncapped.expression, 4)


def weakness(calibration: Calibration) -> str | None:
    """Return why a calibrated persona may disappoint, in one line; None if it is clear and fluent."""
    chosen = next((point for point in calibration.curve if point["chosen"]), None)
    if chosen is not None and not chosen["fluent"]:
        repeated = f" and repeats {chosen['repetition']:.0%} more" if chosen.get("repetition", 0) > 0 else ""
        return f"no gain was fluent; this one costs {calibration.fluency_drop:.2f} nats per token{repeated}"
    if calibration.expression < CLEAR:
        return f"it reaches only {calibration.expression:.0%} of what its system prompts achieve"
    return None


def fit_contrast(
    extractor: ActivationExtractor,
    vector: PersonaVector,
    high: Sequence[Sequence[Message]] = (),
    low: Sequence[Sequence[Message]] = (),
) -> PersonaVector:
    """Calibrate something that has no system prompts.

    Its size is the one that makes the replies of its high side likeliest against those of its low side; of
    the multiples of it, the loudest is taken whose replies are as fluent as the model's own; where none is, a
    quieter size. Without replies of two sides, or if no size makes the high ones likelier, the same is done
    with multiples of the usual dose.

    Args:
        extractor: with its questions.
        vector: a trait, or an imported direction.
        high: conversations that end with a reply as the vector points.
        low: conversations that end with a reply of the opposite kind.

    Returns:
        The vector with `gain`, `target_layers` and `loudness` (what was found) in its metadata.

    Raises:
        DatasetError: there are no questions.
        VectorFileError: it has no vectors in the band.
    """
    bench = Bench(extractor, vector, prompted=False)
    margin = extractor.settings.calibration.fluency_margin
    sides = [_some(extractor, side) for side in (high, low)]
    gained: float | None = None
    size, multiples = bench.coefficient(DEFAULT_DOSE), list(UNGUIDED)
    if all(sides):
        before = bench.contrast(sides, 0.0)
        gains = likeliest(lambda sizes: [bench.contrast(sides, each) - before for each in sizes], size)
        gained = max(gains.values())
        if gained >= LEAST_GAINED:
            size, multiples = _best(gains), list(CONTRASTED)
    measured = bench.sweep([size * each for each in multiples])
    for _ in range(QUIETER):
        if measured[0].fluent(margin):
            break
        measured = [*bench.sweep([measured[0].coefficient / 2]), *measured]
    points = between(measured)
    first_bad = next((at for at, each in enumerate(points) if not each.fluent(margin)), len(points))
    chosen = points[max(0, first_bad - 1)]
    found = {
        "strength": DEFAULT_STRENGTH,
        "fluency_drop": round(chosen.fluency_drop, 4),
        "fluent": chosen.fluent(margin),
        "gained": None if gained is None else round(gained, 4),
    }
    placed = {
        "gain": chosen.coefficient / DEFAULT_STRENGTH,
        "unguided_gain": None,  # the same
        "target_layers": list(bench.band),
    }
    return replace(vector, metadata={**vector.metadata, **placed, "loudness": found}, calibration=None)


def _some(extractor: ActivationExtractor, side: Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    return shuffled(list(side), extractor.settings.calibration.seed)[:CONTRAST_REPLIES]


def bands(extractor: ActivationExtractor) -> list[tuple[int, ...]]:
    """Return the bands that a search compares, the extractor's own first."""
    depth = extractor.model.n_layers
    others = [
        tuple(layer for layer in range(round(depth * low), round(depth * high)) if layer in extractor.layers)
        for low, high in BANDS
    ]
    return list(dict.fromkeys([extractor.band, *(band for band in others if band)]))


def find_band(
    extractor: ActivationExtractor, personas: Sequence[PersonaVector]
) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
    """Find the band in which steering recovers most, on average over personas.

    Returns:
        The band, and what every band recovers at each persona's best size.

    Raises:
        DatasetError: there are no questions, or a persona has no system prompts.
    """
    table: dict[tuple[int, ...], list[float]] = {band: [] for band in bands(extractor)}
    for persona in personas:
        first = Bench(extractor, persona, extractor.band, sized=None)
        for band, found in table.items():
            bench = first.in_band(band)
            found.append(max(likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE)).values()))
    means = {band: fmean(found) for band, found in table.items()}
    best = max(means, key=lambda band: means[band])
    if means[extractor.band] >= means[best] - _BAND_TIE:
        best = extractor.band
    return best, means
