"""What is fitted: by hand, against scikit-learn, and on activations whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from torch import Tensor

from persona_tui.core.errors import DatasetError
from persona_tui.monitors import fitter
from persona_tui.monitors.detectors import CONSENSUS, CONTENT, PROBE, PROJECTION, TONE, Cosines, Linear
from persona_tui.monitors.fitter import fit
from persona_tui.monitors.probes import Examples, make_folds, pipeline
from persona_tui.monitors.readings import TextReadings

LAYERS, HIDDEN, SIDE = (0, 1, 2, 3), 16, 30
HARMS = ("violence", "cyber", "fraud")
GENERATOR = torch.Generator().manual_seed(3)


def examples(templates: int = 0) -> Examples:
    """30 a side; with templates, that many on each side."""
    safe = np.array([True] * SIDE + [False] * SIDE)
    names = [f"{int(flag)}/{place % templates if templates else place}" for place, flag in enumerate(safe)]
    harms = tuple(None if flag else HARMS[place % 3] for place, flag in enumerate(safe))
    return Examples(tuple(map(str, range(2 * SIDE))), safe, tuple(names), harms)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.fixture(scope="module")
def readings() -> TextReadings:
    """Noise around a common mean; layer 2 of `message` knows what is safe, and which harm it is."""
    at = {name: noise(2 * SIDE, len(LAYERS), HIDDEN) + 5 for name in ("message", "prompt_last")}
    at["message"][:SIDE, 2, 0] += 4
    for place in range(SIDE, 2 * SIDE):
        at["message"][place, 2, 1 + place % 3] += 6
    return TextReadings(LAYERS, at)


@pytest.fixture(scope="module")
def fitted(readings: TextReadings) -> fitter.FittedMethods:
    tone = TextReadings(LAYERS, {name: noise(2, len(LAYERS), HIDDEN) for name in readings.at})
    return fit(examples(), readings, tone)


@pytest.mark.parametrize("method", [CONTENT, PROJECTION, PROBE])
def test_the_layer_that_knows_is_found(fitted: fitter.FittedMethods, method: str) -> None:
    detector = fitted.detectors[method]
    assert (detector.position, detector.layers) == ("message", (2,))
    assert detector.fit["auc"]["value"] > 0.95


def test_the_scan_has_every_layer_and_position(fitted: fitter.FittedMethods) -> None:
    points = {(point["method"], point["position"], point["layer"]): point for point in fitted.scan}
    assert len(points) == len(fitted.scan) == 4 * 2 * len(LAYERS)
    assert points[CONTENT, "message", 2]["effect"] > 2 > abs(points[CONTENT, "prompt_last", 0]["effect"])
    area = points[CONTENT, "message", 2]["auc"]
    assert area["low"] <= area["value"] <= area["high"]


def test_content_is_the_cosine_to_either_mean(fitted: fitter.FittedMethods, readings: TextReadings) -> None:
    form = fitted.detectors[CONTENT].form
    assert isinstance(form, Cosines)
    rows = readings.at["message"][:, 2]
    safe, dangerous = rows[:SIDE].mean(0), rows[SIDE:].mean(0)
    by_hand = torch.cosine_similarity(rows, safe) - torch.cosine_similarity(rows, dangerous)
    torch.testing.assert_close(form.scores(rows.unsqueeze(1)), by_hand)
    torch.testing.assert_close(fitted.stacks["content.message.safe"][2], safe)


def test_projection_is_counted_from_the_middle(fitted: fitter.FittedMethods, readings: TextReadings) -> None:
    form = fitted.detectors[PROJECTION].form
    rows = readings.at["message"][:, 2]
    safe, dangerous = rows[:SIDE].mean(0), rows[SIDE:].mean(0)
    middle = form.scores(((safe + dangerous) / 2).view(1, 1, -1))
    assert middle.item() == pytest.approx(0, abs=1e-4)
    assert form.scores(safe.view(1, 1, -1)).item() == pytest.approx(
        (safe - dangerous).norm().item() / 2, rel=1e-4
    )


def test_a_probe_in_tensors_is_scikit_learns(fitted: fitter.FittedMethods, readings: TextReadings) -> None:
    detector, known = fitted.detectors[PROBE], examples()
    rows = readings.at["message"][:, 2].double().numpy()
    probe = pipeline(detector.fit["penalty"])
    reference = CalibratedClassifierCV(probe, method="sigmoid", cv=make_folds(known), ensemble=False)
    expected = reference.fit(rows, known.safe).predict_proba(rows)[:, 1]
    found = detector.form.scores(readings.at["message"][:, 2:3])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_consensus_is_the_mean_of_its_layers_log_odds(
    fitted: fitter.FittedMethods, readings: TextReadings
) -> None:
    detector = fitted.detectors[CONSENSUS]
    assert 2 in detector.layers and len(detector.layers) > 1
    assert isinstance(detector.form, Linear)
    rows = readings.select("message", detector.layers)
    by_layer = detector.form.by_layer(rows)
    torch.testing.assert_close(detector.form.scores(rows), by_layer.mean(-1).sigmoid())
    assert 0 < detector.agreement(rows[0]) <= 1


def test_harms_are_told_apart(fitted: fitter.FittedMethods, readings: TextReadings) -> None:
    assert fitted.harms is not None and set(fitted.harms.names) == set(HARMS)
    rows = readings.at["message"][SIDE:, fitted.harms.layer]
    found = [fitted.harms.likeliest(row)[0] for row in rows]
    assert found == [HARMS[place % 3] for place in range(SIDE, 2 * SIDE)]
    assert fitted.harms.probabilities(rows).sum(-1).numpy() == pytest.approx(np.ones(SIDE), abs=1e-5)


def test_tone_learns_no_vector_from_the_queries(fitted: fitter.FittedMethods, readings: TextReadings) -> None:
    tone = fitted.detectors[TONE]
    assert tone.fit["auc"]["value"] < fitted.detectors[CONTENT].fit["auc"]["value"]
    assert fitted.best() != TONE


def alike(noise: float, seed: int) -> Tensor:
    """Twelve layers that know the same, each with a little noise of its own, `[n, 12, hidden]`."""
    shared, own = (
        torch.randn(2 * SIDE, count, HIDDEN, generator=torch.Generator().manual_seed(seed + count))
        for count in (1, 12)
    )
    rows = shared + noise * own
    rows[:SIDE, :, 0] += 2
    return rows


def test_several_layers_are_used_where_one_is_only_luckier() -> None:
    """One of twelve layers has the fewest false alarms, but by less than a standard error."""
    found = fit(examples(), TextReadings(tuple(range(12)), {"message": alike(0.75, 0)}))
    alarms = {method: detector.fit["false_alarms"] for method, detector in found.detectors.items()}
    assert min(alarms.values()) < alarms[CONSENSUS]
    assert found.best() == CONSENSUS


def test_one_layer_is_used_where_it_is_clearly_better() -> None:
    rows = alike(1.0, 0)
    rows[:SIDE, 3, 0] += 9
    found = fit(examples(), TextReadings(tuple(range(12)), {"message": rows}))
    assert found.best() != CONSENSUS and found.detectors[found.best()].layers == (3,)


def test_folds_keep_templates_together() -> None:
    known = examples(templates=6)
    for learned, scored in make_folds(known):
        assert not {known.groups[place] for place in learned} & {known.groups[place] for place in scored}


def test_leaks_would_show() -> None:
    """Activations that only repeat within a template have nothing to say about others."""
    known = examples(templates=6)
    labels = {name: noise(1, HIDDEN) for name in sorted(set(known.groups))}
    rows = torch.stack([labels[name] for name in known.groups])
    found = fit(known, TextReadings((0,), {"message": rows}))
    assert found.detectors[PROBE].fit["auc"]["value"] < 0.95


@pytest.mark.parametrize("safe", [3, 57])
def test_too_few_of_a_kind(readings: TextReadings, safe: int) -> None:
    few = examples()
    flags = np.arange(2 * SIDE) < safe
    with pytest.raises(DatasetError, match="too few to fit on"):
        fit(Examples(few.queries, flags, few.groups, few.harms), readings)
