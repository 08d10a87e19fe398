"""Models side by side: where each tells dangerous requests from harmless ones, and whether one's vectors
serve another.

1. Each model reads the same training queries, test queries and neutral texts, and is then no longer needed.
2. Its content vectors (and the other methods) are fitted as for a monitor: best layer and position by
   cross-validation.
3. Transfer: a ridge regression from one model's activations to another's, of the same neutral texts, at the
   layers of their content vectors. What the second model reads of a query is mapped back, and judged by the
   first one's vectors. No label is used on the second model, so what is compared is how well either ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from persona_tui.core.jobs import JobContext
from persona_tui.core.statistics import Estimate, Numbers, labelled_auc, share
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import read_questions
from persona_tui.model import ModelWrapper
from persona_tui.monitors.amid import read_amid_chat
from persona_tui.monitors.detectors import CONTENT, Detector
from persona_tui.monitors.fitter import FittedMethods, fit
from persona_tui.monitors.query_sets import ADVERSARIAL, STANDARD, QuerySet, load_sets
from persona_tui.monitors.readings import TextReadings, read_queries
from persona_tui.monitors.trade import Trade
from persona_tui.monitors.training_data import TrainingData, load_training

_RIDGE = 0.1  # of the mean squared activation


@dataclass(frozen=True, eq=False)
class Reader:
    """What one model makes of the same texts.

    Attributes:
        name: of the model.
        n_layers, hidden_size: its shape.
        fitted: all methods.
        best: the method with the fewest false alarms.
        neutral: of the neutral texts.
        tests: of each test set.
    """

    name: str
    n_layers: int
    hidden_size: int
    fitted: FittedMethods
    best: str
    neutral: TextReadings
    tests: dict[str, TextReadings]

    @property
    def content(self) -> Detector:
        """The content vectors' detector."""
        return self.fitted.detectors[CONTENT]

    @property
    def magnitude(self) -> float:
        """The length of the content vector at its layer."""
        stacks, at = self.fitted.stacks, self.content
        safe, dangerous = (stacks[f"{CONTENT}.{at.position}.{side}"] for side in ("safe", "dangerous"))
        return float((safe - dangerous)[at.layers[0]].norm())


@dataclass(frozen=True)
class Transfer:
    """One model's content vectors on another model.

    Attributes:
        source, target: whose vectors, and who reads.
        explained: the share of the variance of the neutral texts that the map explains, held out.
        area: of the standard set, with the source's vectors.
        own: the same with the target's own.
    """

    source: str
    target: str
    explained: float
    area: Estimate
    own: Estimate

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        areas = {"area": self.area.as_dict(), "own": self.own.as_dict()}
        return {"source": self.source, "target": self.target, "explained": self.explained, **areas}


def neutral_texts(workspace: Workspace, data: TrainingData) -> list[str]:
    """Harmless texts: the safe training queries and the extraction questions."""
    examples = data.examples
    safe = [query for query, harmless in zip(examples.queries, examples.safe, strict=True) if harmless]
    return [*safe, *(each.question for each in read_questions(workspace))]


def read_model(
    model: ModelWrapper, workspace: Workspace, which: str = "both", context: JobContext | None = None
) -> Reader:
    """Read everything with one model, and fit all methods on it.

    Raises:
        DatasetError: a data set is missing or bad.
        JobCancelled: the context says so.
    """
    data, sets, layers = load_training(workspace, which), load_sets(workspace), range(model.n_layers)
    tone = read_queries(model, data.statements, layers) if data.statements else None
    training = read_queries(model, data.examples.queries, layers, context)
    amid = read_amid_chat(model, data.examples, context)
    fitted = fit(data.examples, replace(training, amid=amid), tone, trade=Trade())
    wanted = sorted({layer for each in fitted.detectors.values() for layer in each.layers})
    tests = {
        each.name: read_queries(model, [query.query for query in each.queries], wanted, context)
        for each in sets
        if each.name in (STANDARD, ADVERSARIAL)
    }
    at = fitted.detectors[CONTENT].layers
    neutral = read_queries(model, neutral_texts(workspace, data), at, context)
    return Reader(model.name, model.n_layers, model.hidden_size, fitted, fitted.best(), neutral, tests)


def side_by_side(readers: Sequence[Reader], sets: Sequence[QuerySet]) -> list[dict[str, Any]]:
    """One row for each model: best layer, separation, magnitude, and accuracy on the test sets."""
    rows = []
    for reader in readers:
        detector = reader.content
        row: dict[str, Any] = {
            "model": reader.name,
            "layers": reader.n_layers,
            "hidden_size": reader.hidden_size,
            "best_layer": detector.layers[0],
            "position": detector.position,
            "separation": detector.fit["separation"],
            "magnitude": reader.magnitude,
            "best_method": reader.best,
        }
        for each in sets:
            if each.name in reader.tests:
                safe = np.array([query.label == "safe" for query in each.queries])
                for method in (CONTENT, reader.best):
                    judge = reader.fitted.detectors[method]
                    called = reader.tests[each.name].scores(judge).numpy() > judge.threshold
                    row[f"{each.name}_{method}"] = share(called == safe).as_dict()
        rows.append(row)
    return rows


def transfer(source: Reader, target: Reader, standard: QuerySet) -> Transfer:
    """Judge what the target reads by the source's content vectors."""
    ours, theirs = source.content, target.content
    here, there = _rows(source), _rows(target)
    half = len(there) // 2
    order = np.random.default_rng(0).permutation(len(there))
    learned, held_out = order[:half], order[half:]
    explained = _explained(_mapped(there, here, learned, there[held_out]), here[held_out], here[learned])
    tests = target.tests[STANDARD]
    read = tests.judged(theirs.position, theirs.layers)[:, 0].double().numpy()
    mapped = torch.from_numpy(_mapped(there, here, order, read)).float()
    scores = tests.most_dangerous(theirs.position, ours.form.scores(mapped.unsqueeze(1)))
    safe = np.array([query.label == "safe" for query in standard.queries])
    return Transfer(
        source.name,
        target.name,
        explained,
        labelled_auc(scores.double().numpy(), safe),
        labelled_auc(tests.scores(theirs).double().numpy(), safe),
    )


def _rows(reader: Reader) -> Numbers:
    """Return the neutral texts where the content vectors are, `[n, hidden]`."""
    at = reader.content
    rows: Numbers = reader.neutral.select(at.position, at.layers)[:, 0].double().numpy()
    return rows


def _mapped(start: Numbers, goal: Numbers, learned: Any, rows: Numbers) -> Numbers:
    """Rows of one model's space in another's, by a ridge regression on some neutral texts."""
    from sklearn.linear_model import Ridge

    strength = _RIDGE * len(learned) * float(start[learned].var(0).sum()) / start.shape[1]
    found: Numbers = Ridge(alpha=strength).fit(start[learned], goal[learned]).predict(rows)
    return found


def _explained(found: Numbers, true: Numbers, known: Numbers) -> float:
    """1 − what is left of the squared distance from the mean of what was known."""
    return float(1 - ((found - true) ** 2).sum() / ((known.mean(0) - true) ** 2).sum())
