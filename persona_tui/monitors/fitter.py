"""From readings and labels to detectors: every choice is made by cross-validation on what is fitted.

1. Folds keep the queries of one template together. Probes also learn from queries amid small talk
   (`monitors.amid`), which is left out with the query itself.
2. Every layer and position gets a score for every query from folds that did not contain it; a message's is
   that of its most dangerous part.
3. The layer with the fewest false alarms where direct requests are caught wins, and the threshold goes where
   the trade asks for (`monitors.trade`). Messages are judged by their parts, which no padding moves.
4. The detector itself is then made from all queries.
5. Of the methods, the consensus of several layers is used unless another one has fewer false alarms by more
   than a standard error: where cross-validation cannot tell them apart, an average is the steadier one.

Nothing here sees a validation, adversarial or test query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona_tui.core.statistics import (
    Flags,
    Numbers,
    balanced_accuracy,
    best_threshold,
    labelled_auc,
    roc_auc,
    separation,
)
from persona_tui.monitors.detectors import (
    CONSENSUS,
    CONTENT,
    METHODS,
    PROBE,
    PROJECTION,
    TONE,
    Cosines,
    Detector,
    Form,
    Harms,
    Linear,
)
from persona_tui.monitors.harms import fit_harms
from persona_tui.monitors.probes import Examples, Fold, make_folds, pipeline, spread
from persona_tui.monitors.readings import MESSAGE, TextReadings
from persona_tui.monitors.trade import Trade, false_alarms, figures, more_alarms
from persona_tui.vectors.maths import normalize

CONSENSUS_LAYERS = 5
_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1)  # C of the regression: the smaller, the simpler the probe
_FIRST_PENALTY = 0.01  # with which the layers are compared


@dataclass(frozen=True, eq=False)
class Candidate:
    """One method at one position and layer, as cross-validation saw it; `scores` are `[n]`."""

    position: str
    layer: int
    scores: Numbers
    alarms: float
    area: float
    effect: float

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """What it is judged by: false alarms, how it ranks and separates queries; then the earlier layer."""
        return (-round(self.alarms, 6), round(self.area, 6), round(self.effect, 6), -self.layer)


@dataclass(eq=False)
class FittedMethods:
    """What a fit has made.

    Attributes:
        detectors: by method.
        harms: what tells harms apart, if the examples do.
        stacks: vectors over all layers, `[layers, hidden]`, as `content.message.safe`.
        scan: how well each layer separates, by method and position: for plots.
        held_out: by method, what cross-validation made of each query, `[n]`.
    """

    detectors: dict[str, Detector] = field(default_factory=dict)
    harms: Harms | None = None
    stacks: dict[str, Tensor] = field(default_factory=dict)
    scan: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Numbers] = field(default_factory=dict)

    def best(self) -> str:
        """Return the consensus, unless another method has fewer false alarms by over a standard error.

        One layer is easily the best of twelve by chance, and its threshold holds less well on other queries
        than one for an average of several. Else the method with the fewest false alarms. Never tone.
        """
        more = self.detectors[CONSENSUS].fit["more_alarms"]
        return CONSENSUS if more["value"] <= more["error"] else self._fewest()

    def _fewest(self) -> str:
        """Return the method with the fewest false alarms, held out; among equals the simplest. Never tone."""
        known = [method for method in METHODS if method in self.detectors and method != TONE]
        return min(known, key=lambda method: self.detectors[method].fit["false_alarms"])

    def compare(self, examples: Examples) -> None:
        """Note in each method's figures how many more false alarms it has than the one with the fewest."""
        fewest = self.held_out[self._fewest()]
        for method, scores in self.held_out.items():
            value, error = more_alarms(scores, fewest, examples.safe, examples.kinds, examples.groups)
            self.detectors[method].fit["more_alarms"] = {"value": round(value, 4), "error": round(error, 4)}


def fit(
    examples: Examples,
    readings: TextReadings,
    tone: TextReadings | None = None,
    seed: int = 0,
    trade: Trade | None = None,
) -> FittedMethods:
    """Fit every method.

    Args:
        examples: labelled queries.
        readings: of them, at any positions.
        tone: of two statements, the safe one first, at the same positions; None = no tone vectors.
        seed: of the folds.
        trade: what thresholds have to achieve; None = the best balanced accuracy.

    Raises:
        DatasetError: there are too few queries of one kind.
    """
    examples.check()
    folds = make_folds(examples, seed)
    found = FittedMethods()
    if tone is not None:
        _fit_tone(found, examples, readings, tone, trade)
    _fit_means(found, examples, readings, folds, trade)
    _fit_probes(found, examples, readings, folds, trade)
    found.compare(examples)
    found.harms = fit_harms(examples, readings, seed)
    return found


def _fit_tone(
    found: FittedMethods,
    examples: Examples,
    readings: TextReadings,
    tone: TextReadings,
    trade: Trade | None,
) -> None:
    """Tone vectors: nothing is learned from the queries but layer, position and threshold."""
    candidates: list[Candidate] = []
    for position in readings.at:
        safe, dangerous = tone.at[position]
        found.stacks |= {f"tone.{position}.safe": safe, f"tone.{position}.dangerous": dangerous}
        scores = _scores(readings, position, Cosines.between(safe, dangerous))
        candidates += _candidates(position, readings.layers, scores, examples)
    _scan(found, TONE, candidates, examples)
    chosen = _best(candidates)
    row = readings.layers.index(chosen.layer)
    form = Cosines.between(*(tone.at[chosen.position][side, row : row + 1] for side in (0, 1)))
    _keep(found, TONE, [chosen], form, chosen.scores, examples, trade)


def _fit_means(
    found: FittedMethods,
    examples: Examples,
    readings: TextReadings,
    folds: Sequence[Fold],
    trade: Trade | None,
) -> None:
    """Content vectors, scored by cosines as well as by projection."""
    makers: dict[str, Callable[[Tensor, Tensor], Form]] = {CONTENT: Cosines.between, PROJECTION: _projection}
    means = {position: _means(activations, examples.safe) for position, activations in readings.at.items()}
    for position, (safe, dangerous) in means.items():
        found.stacks |= {f"content.{position}.safe": safe, f"content.{position}.dangerous": dangerous}
    for method, make in makers.items():
        candidates: list[Candidate] = []
        for position, activations in readings.at.items():
            scores = np.zeros((len(activations), len(readings.layers)))
            for learned, scored in folds:
                form = make(*_means(activations[learned], examples.safe[learned]))
                scores[scored] = _scores(readings, position, form)[scored]
            candidates += _candidates(position, readings.layers, scores, examples)
        _scan(found, method, candidates, examples)
        chosen = _best(candidates)
        row = readings.layers.index(chosen.layer)
        form = make(*(side[row : row + 1] for side in means[chosen.position]))
        _keep(found, method, [chosen], form, chosen.scores, examples, trade)


def _scores(readings: TextReadings, position: str, form: Form) -> Numbers:
    """Return what a form of all layers says of each text, `[texts, layers]`."""
    scores = form.by_layer(readings.judged(position, readings.layers))
    found: Numbers = readings.most_dangerous(position, scores).double().numpy()
    return found


def _means(activations: Tensor, safe: Flags) -> tuple[Tensor, Tensor]:
    """Return the mean over the safe and over the dangerous ones, `[layers, hidden]` each: averaged first."""
    kinds = torch.from_numpy(safe)
    return activations[kinds].mean(0), activations[~kinds].mean(0)


def _projection(safe: Tensor, dangerous: Tensor) -> Linear:
    """Along the direction from dangerous to safe, counted from the middle between them."""
    direction = normalize(safe - dangerous)
    return Linear(direction, -((safe + dangerous) / 2 * direction).sum(-1), probability=False)


def _candidates(
    position: str, layers: Sequence[int], scores: Numbers, examples: Examples
) -> Iterator[Candidate]:
    """One for each column of `[n, layers]`."""
    safe = examples.safe
    for column, layer in enumerate(layers):
        one = scores[:, column]
        alarms, area = false_alarms(one, safe, examples.kinds), roc_auc(one[safe], one[~safe])
        yield Candidate(position, layer, one, alarms, area, _effect(one, safe))


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the best rank, of those that read messages by their parts if any do.

    What is read at the last token of a prompt is moved by whatever is said after a request: of requests that
    were all but caught, thanks and chat hid half (`benchmarks/monitoring.py`). Training queries have no such
    padding, so that cross-validation cannot know.
    """
    by_parts = [each for each in candidates if each.position == MESSAGE]
    return max(by_parts or candidates, key=lambda each: each.rank)


def _difference(scores: Numbers, safe: Flags) -> float:
    """Return the difference of the two kinds' mean scores."""
    return float(scores[safe].mean() - scores[~safe].mean())


def _effect(scores: Numbers, safe: Flags) -> float:
    """Return the difference of the two kinds' mean scores in standard deviations."""
    return separation(scores[safe], scores[~safe])


def _scan(found: FittedMethods, method: str, candidates: Sequence[Candidate], examples: Examples) -> None:
    for each in candidates:
        area = labelled_auc(each.scores, examples.safe, examples.groups)
        difference, effect = _difference(each.scores, examples.safe), _effect(each.scores, examples.safe)
        figures = {"separation": difference, "effect": effect, "auc": area.as_dict()}
        found.scan.append({"method": method, "position": each.position, "layer": each.layer, **figures})


def _keep(
    found: FittedMethods,
    method: str,
    chosen: Sequence[Candidate],
    form: Form,
    scores: Numbers,
    examples: Examples,
    trade: Trade | None,
) -> None:
    """Add the detector of a form whose cross-validated scores are known."""
    safe, kinds = examples.safe, examples.kinds
    if trade is None:
        threshold = best_threshold(scores[safe], scores[~safe])
    else:
        threshold = trade.threshold(scores, safe, kinds)
    area = labelled_auc(scores, safe, examples.groups)
    missed = np.flatnonzero((scores > threshold) & ~safe)
    said = {
        "balanced_accuracy": balanced_accuracy(scores, safe, threshold),
        "accuracy": float(((scores > threshold) == safe).mean()),
        "auc": area.as_dict(),
        "separation": _difference(scores, safe),
        "false_alarms": false_alarms(scores, safe, kinds),
        **figures(scores, safe, kinds, threshold),
        "missed": [examples.queries[place] for place in missed[np.argsort(-scores[missed])]],
    }
    layers = tuple(each.layer for each in chosen)
    found.held_out[method] = scores
    found.detectors[method] = Detector(method, chosen[0].position, layers, form, threshold, said)


# Probes -----------------------------------------------------------------------------------------------------


def _fit_probes(
    found: FittedMethods,
    examples: Examples,
    readings: TextReadings,
    folds: Sequence[Fold],
    trade: Trade | None,
) -> None:
    """A calibrated logistic probe of the best layer, and the consensus of the best few at its position."""
    candidates: list[Candidate] = []
    for position in readings.at:
        for layer in spread(readings.layers):
            scores = _cross_validated(readings, position, layer, examples, folds, _FIRST_PENALTY)
            candidates += _candidates(position, [layer], scores[:, None], examples)
    _scan(found, PROBE, candidates, examples)
    chosen = _best(candidates)
    penalty = _best_penalty(readings, chosen.position, chosen.layer, examples, folds)
    there = [each for each in candidates if each.position == chosen.position]
    several = sorted(there, key=lambda each: each.rank)[-CONSENSUS_LAYERS:]
    for method, those in ((PROBE, [chosen]), (CONSENSUS, sorted(several, key=lambda each: each.layer))):
        layers = [each.layer for each in those]
        probes = [_calibrated(readings, chosen.position, each, examples, folds, penalty) for each in layers]
        form = Linear(
            torch.stack([probe.weights for probe in probes]),
            torch.tensor([probe.bias for probe in probes]),
            probability=True,
        )
        odds = _consensus(readings, chosen.position, probes)
        _keep(found, method, those, form, 1 / (1 + np.exp(-odds)), examples, trade)
    found.detectors[PROBE].fit["penalty"] = penalty


def _held_out(
    readings: TextReadings,
    position: str,
    layer: int,
    examples: Examples,
    folds: Sequence[Fold],
    penalty: float,
) -> Numbers:
    """Return the log-odds of being safe of all that is judged, from probes that have not seen the query."""
    rows = len(examples.queries)
    judged: Numbers = readings.judged(position, [layer])[:, 0].double().numpy()
    counts = readings.counts if len(judged) != rows else (1,) * rows
    owner = np.repeat(np.arange(rows), counts)
    scores = np.zeros(len(judged))
    for learned, scored in folds:
        probe = pipeline(penalty).fit(*_learned_from(readings, position, layer, examples, learned))
        there = np.isin(owner, scored)
        scores[there] = probe.decision_function(judged[there])
    return scores


def _learned_from(
    readings: TextReadings, position: str, layer: int, examples: Examples, places: NDArray[np.intp]
) -> tuple[Numbers, Flags]:
    """Rows and labels of some queries, and of what is known of them amid small talk."""
    rows, safe = readings.rows(position, layer)[places], examples.safe[places]
    amid = readings.amid
    if amid is None or position != MESSAGE or layer not in amid.layers:
        return rows, safe
    known = {examples.groups[place] for place in places}
    there = np.array([known.issuperset(groups) for groups in amid.groups])
    more = amid.rows[torch.from_numpy(there), amid.layers.index(layer)].double().numpy()
    return np.concatenate([rows, more]), np.concatenate([safe, amid.safe[there]])


def _cross_validated(
    readings: TextReadings,
    position: str,
    layer: int,
    examples: Examples,
    folds: Sequence[Fold],
    penalty: float,
) -> Numbers:
    """Return the log-odds of each query's most dangerous part, `[n]`."""
    scores = torch.from_numpy(_held_out(readings, position, layer, examples, folds, penalty))
    found: Numbers = readings.most_dangerous(position, scores).numpy()
    return found


def _best_penalty(
    readings: TextReadings, position: str, layer: int, examples: Examples, folds: Sequence[Fold]
) -> float:
    """Return the penalty whose held-out log-odds are the least surprised by the labels."""
    signs = np.where(examples.safe, 1.0, -1.0)

    def loss(penalty: float) -> float:
        odds = _cross_validated(readings, position, layer, examples, folds, penalty)
        return float(np.logaddexp(0, -signs * odds).mean())

    return min(_PENALTIES, key=loss)


@dataclass(frozen=True, eq=False)
class _Probe:
    """A calibrated probe of one layer: `[hidden]` weights, and held-out log-odds of all that is judged."""

    weights: Tensor
    bias: float
    held_out: Numbers


def _calibrated(
    readings: TextReadings,
    position: str,
    layer: int,
    examples: Examples,
    folds: Sequence[Fold],
    penalty: float,
) -> _Probe:
    """Fit a probe of all queries, with Platt's calibration of held-out log-odds, as one weighted sum."""
    held_out = _held_out(readings, position, layer, examples, folds, penalty)
    lowest = readings.most_dangerous(position, torch.from_numpy(held_out)).numpy()
    slope, offset = _platt(lowest, examples.safe)
    everything = np.arange(len(examples.queries))
    fitted = pipeline(penalty).fit(*_learned_from(readings, position, layer, examples, everything))
    scaler, regression = (step for _, step in fitted.steps)
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    return _Probe(torch.from_numpy(slope * weights).float(), slope * bias + offset, slope * held_out + offset)


def _platt(odds: Numbers, safe: Flags) -> tuple[float, float]:
    """Slope and offset of Platt's calibration, whose targets are a little inside 0 and 1."""
    from sklearn.linear_model import LogisticRegression

    high, low = (safe.sum() + 1) / (safe.sum() + 2), 1 / ((~safe).sum() + 2)
    target = np.where(safe, high, low)
    both, labels = np.concatenate([odds, odds])[:, None], np.repeat([True, False], len(odds))
    weights = np.concatenate([target, 1 - target])
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(both, labels, sample_weight=weights)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _consensus(readings: TextReadings, position: str, probes: Sequence[_Probe]) -> Numbers:
    """Return the held-out log-odds of each query's most dangerous part, layers averaged first, `[n]`."""
    mean = torch.from_numpy(np.mean([probe.held_out for probe in probes], axis=0))
    found: Numbers = readings.most_dangerous(position, mean).numpy()
    return found
