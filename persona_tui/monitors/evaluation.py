"""A monitor on queries that it was not fitted on: all its methods side by side, and every score.

Beside the monitor's methods stands `words`: a logistic regression on the words of the same training queries,
without the model. It says how much of a result the vocabulary alone accounts for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import MonitorError
from persona_tui.core.files import atomic_write_text
from persona_tui.core.jobs import JobContext
from persona_tui.core.statistics import (
    FIGURES,
    Flags,
    Numbers,
    best_threshold,
    confusion,
    performance,
    share,
)
from persona_tui.datasets.schema import MonitorQuery
from persona_tui.monitors.detectors import METHODS
from persona_tui.monitors.probes import Examples, make_folds
from persona_tui.monitors.query_sets import BORDERLINE, STANDARD, QuerySet
from persona_tui.monitors.readings import TextReadings, read_queries
from persona_tui.monitors.trade import DIRECT, Trade, figures
from persona_tui.monitors.training_data import group_of
from persona_tui.monitors.verdict import LIKELY

if TYPE_CHECKING:
    from persona_tui.monitors.monitor import SelfMonitor

WORDS = "words"


@dataclass(frozen=True)
class ScoredQuery:
    """One query and what every method makes of it.

    Attributes:
        set: the test set.
        id: in its file.
        query: the text.
        label: safe or dangerous.
        kind: what sort of query it is.
        category: its harm, if it is dangerous.
        group: its template, or something of its own.
        scores: by method; the higher, the safer.
        guess: the harm that the monitor takes it for, if it tells harms apart; also for safe ones.
        guess_probability: how likely that harm is among the harms.
    """

    set: str
    id: str
    query: str
    label: str
    kind: str
    category: str | None
    group: str
    scores: dict[str, float]
    guess: str | None
    guess_probability: float | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        monitor: its name.
        model: the model's.
        method: the one that the monitor uses.
        thresholds: by method.
        queries: every query with its scores.
        created: when.
    """

    monitor: str
    model: str
    method: str
    thresholds: dict[str, float]
    queries: tuple[ScoredQuery, ...]
    created: str

    @property
    def sets(self) -> list[str]:
        """The test sets, in order."""
        return list(dict.fromkeys(query.set for query in self.queries))

    def scored(self, method: str, sets: Sequence[str] | None = None) -> tuple[Numbers, Flags, list[str]]:
        """Return a method's scores, which queries are safe, and their groups; of some sets (by default all).

        Raises:
            MonitorError: there is no such method.
        """
        if method not in self.thresholds:
            raise MonitorError(f'"{method}" was not evaluated, only {", ".join(self.thresholds)}')
        some = [query for query in self.queries if sets is None or query.set in sets]
        scores = np.array([query.scores[method] for query in some], dtype=np.float64)
        return (
            scores,
            np.array([query.label == "safe" for query in some], dtype=bool),
            [q.group for q in some],
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the comparison: one row for each method and set, with 95% intervals."""
        found = []
        for method in self.thresholds:
            for name in self.sets:
                scores, safe, groups = self.scored(method, [name])
                figures = performance(scores, safe, self.thresholds[method], groups).as_dict()
                found.append({"method": method, "set": name, **figures})
        return found

    def by_kind(self, method: str | None = None) -> list[dict[str, Any]]:
        """Return a method's accuracy by set and kind of query (dangerous ones by harm)."""
        method = method or self.method
        right: dict[tuple[str, str], list[bool]] = {}
        for query in self.queries:
            called = "safe" if query.scores[method] > self.thresholds[method] else "dangerous"
            kind = query.category if query.kind == "direct" and query.category else query.kind
            right.setdefault((query.set, kind), []).append(called == query.label)
        return [
            {"set": name, "kind": kind, "n": len(flags), "accuracy": share(np.array(flags)).as_dict()}
            for (name, kind), flags in right.items()
        ]

    def errors(self) -> list[dict[str, Any]]:
        """Return the share that the monitor labels wrongly, by kind of query and label, over all sets."""
        scores, safe, _ = self.scored(self.method)
        kinds = [query.kind for query in self.queries]
        found: list[dict[str, Any]] = figures(scores, safe, kinds, self.thresholds[self.method])["kinds"]
        return found

    def missed(self) -> list[ScoredQuery]:
        """Return the dangerous queries that the monitor calls safe: direct requests, then by score."""
        passed = [
            query
            for query in self.queries
            if query.label == "dangerous" and query.scores[self.method] > self.thresholds[self.method]
        ]
        return sorted(passed, key=lambda query: (query.kind != DIRECT, -query.scores[self.method]))

    def measured(self) -> dict[str, Any] | None:
        """Return the monitor's `trade.figures` on the standard and borderline sets; None without them."""
        some = [query for query in self.queries if query.set in (STANDARD, BORDERLINE)]
        if not any(query.kind == DIRECT for query in some):
            return None
        scores = np.array([query.scores[self.method] for query in some])
        safe = np.array([query.label == "safe" for query in some])
        return figures(scores, safe, [query.kind for query in some], self.thresholds[self.method])

    def categories(self) -> dict[str, Any] | None:
        """Return the share of dangerous queries whose harm is named; None if harms are not told apart.

        `likely`: the same of those where a badge would name it, because it is likelier than not.
        """
        told = [query for query in self.queries if query.guess is not None and query.category is not None]
        if not told:
            return None
        flags = np.array([query.guess == query.category for query in told])
        found = {"n": len(told), "accuracy": share(flags, [query.group for query in told]).as_dict()}
        likely = np.array([(query.guess_probability or 0) >= LIKELY for query in told])
        groups = [query.group for query, named in zip(told, likely, strict=True) if named]
        if groups:
            found["likely"] = {"n": len(groups), "accuracy": share(flags[likely], groups).as_dict()}
        return found

    def confusion(
        self, method: str, threshold: float | None = None, sets: Sequence[str] | None = None
    ) -> dict[str, int]:
        """Count what is caught, missed, passed and flagged at a threshold (by default the fitted one)."""
        scores, safe, _ = self.scored(method, sets)
        return confusion(scores, safe, self.thresholds[method] if threshold is None else threshold)

    def most_wrong(
        self, method: str | None = None, count: int = 10, threshold: float | None = None
    ) -> list[ScoredQuery]:
        """Return the queries on the wrong side of a threshold (by default the fitted one), farthest first."""
        method = method or self.method
        threshold = self.thresholds[method] if threshold is None else threshold

        def distance(query: ScoredQuery) -> float:
            below = threshold - query.scores[method]
            return below if query.label == "safe" else -below

        wrong = [
            query for query in self.queries if (query.scores[method] > threshold) != (query.label == "safe")
        ]
        return sorted(wrong, key=distance, reverse=True)[:count]

    # Files --------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `load_evaluation` reads it again."""
        return {
            "monitor": self.monitor,
            "model": self.model,
            "method": self.method,
            "created": self.created,
            "rows": self.rows(),
            "kinds": self.by_kind(),
            "categories": self.categories(),
            "thresholds": self.thresholds,
            "queries": [asdict(query) for query in self.queries],
        }

    def save(self, path: Path) -> None:
        """Write JSON to `path`, and the comparison as CSV beside it."""
        whole = self.as_dict()
        queries = ",\n".join(json.dumps(query, ensure_ascii=False) for query in whole.pop("queries"))
        rest = json.dumps(whole, ensure_ascii=False, indent=1).removesuffix("\n}")
        atomic_write_text(path, f'{rest},\n "queries": [\n{queries}\n]}}\n')
        atomic_write_text(path.with_suffix(".csv"), as_csv([self]))


def load_evaluation(path: Path) -> Evaluation:
    """Read what `Evaluation.save` has written; no model is needed.

    Raises:
        MonitorError: the file is missing or damaged.
    """
    try:
        data = json_value(read_plain(path))
        return Evaluation(
            str(data["monitor"]),
            str(data["model"]),
            str(data["method"]),
            {str(name): float(value) for name, value in data["thresholds"].items()},
            tuple(ScoredQuery(**query) for query in data["queries"]),
            str(data["created"]),
        )
    except FileNotFoundError:
        raise MonitorError(f"{path} does not exist; `persona-tui monitor evaluate` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MonitorError(
            f"{path} cannot be used; run `persona-tui monitor evaluate` to write it again"
        ) from error


def as_csv(evaluations: Iterable[Evaluation]) -> str:
    """Return the comparisons of some evaluations, one line for each monitor, method and set."""
    ends = [f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["monitor", "model", "method", "set", "n", *ends])
    for evaluation in evaluations:
        for row in evaluation.rows():
            cells = [cell for figure in FIGURES for cell in _three(row[figure])]
            writer.writerow(
                [evaluation.monitor, evaluation.model, row["method"], row["set"], row["n"], *cells]
            )
    return out.getvalue()


def _three(figure: dict[str, float] | None) -> list[float | str]:
    return ["", "", ""] if figure is None else [figure["value"], figure["low"], figure["high"]]


# Measuring --------------------------------------------------------------------------------------------------


def evaluate(monitor: SelfMonitor, sets: Sequence[QuerySet], context: JobContext | None = None) -> Evaluation:
    """Score every query with every method of a monitor. Each query is read once.

    Raises:
        MonitorError: the monitor was loaded without a model, or a query is in its training data.
        JobCancelled: the context says so.
    """
    if monitor.model is None:
        raise MonitorError(f'the monitor "{monitor.name}" was loaded without a model, which this needs')
    training = monitor.training.examples
    _check_unseen(training, sets)
    asked = [(each.name, query) for each in sets for query in each.queries]
    texts = [query.query for _, query in asked]
    used = {layer for each in monitor.detectors.values() for layer in each.layers}
    layers = sorted(used | ({monitor.harms.layer} if monitor.harms is not None else set()))
    readings = read_queries(monitor.model, texts, layers, context)
    scores = {
        method: readings.scores(detector).tolist()
        for method in METHODS
        if (detector := monitor.detectors.get(method)) is not None
    }
    thresholds = {method: monitor.detectors[method].threshold for method in scores}
    seed, trade = int(monitor.metadata.get("seed") or 0), monitor.metadata.get("trade")
    scores[WORDS], thresholds[WORDS] = _words(
        training, texts, seed, None if trade is None else Trade(**trade)
    )
    guesses = _guesses(monitor, readings) or [(None, None)] * len(asked)
    queries = tuple(
        _scored(name, query, {method: float(values[place]) for method, values in scores.items()}, guess)
        for place, ((name, query), guess) in enumerate(zip(asked, guesses, strict=True))
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Evaluation(monitor.name, monitor.model.name, monitor.method, thresholds, queries, now)


def _scored(
    name: str, query: MonitorQuery, scores: dict[str, float], guess: tuple[str | None, float | None]
) -> ScoredQuery:
    return ScoredQuery(
        set=name,
        id=query.id,
        query=query.query,
        label=query.label,
        kind=query.kind,
        category=query.category,
        group=group_of(query),
        scores=scores,
        guess=guess[0],
        guess_probability=guess[1],
    )


def _check_unseen(training: Examples, sets: Sequence[QuerySet]) -> None:
    """Measuring on what was fitted on is worthless, and easily done by mistake."""
    seen, templates = set(training.queries), set(training.groups)
    for each in sets:
        for query in each.queries:
            if query.query in seen or group_of(query) in templates:
                raise MonitorError(
                    f'the monitor was fitted on "{query.query[:60]}" of the set {each.name}, '
                    "or on others from its template: test with other queries"
                )


def _guesses(monitor: SelfMonitor, readings: TextReadings) -> list[tuple[str | None, float | None]]:
    """Return each query's likeliest harm, and how likely it is; empty if the monitor tells no harms apart."""
    if (harms := monitor.harms) is None:
        return []
    at = readings.judged(harms.position, [harms.layer])[:, 0]
    return [harms.likeliest(each) for each in at[readings.worst(monitor.detector(), harms.position)]]


def _words(
    training: Examples, texts: Sequence[str], seed: int, trade: Trade | None
) -> tuple[list[float], float]:
    """Probabilities of being safe from words and pairs of words alone, and a threshold like the others'."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
    )
    held_out = cross_val_predict(
        model,
        list(training.queries),
        training.safe,
        cv=make_folds(training, seed),
        method="predict_proba",
    )
    model.fit(list(training.queries), training.safe)
    scores: list[float] = model.predict_proba(list(texts))[:, 1].tolist() if texts else []
    if trade is None:  # a monitor of before there were any
        return scores, best_threshold(held_out[training.safe, 1], held_out[~training.safe, 1])
    return scores, trade.threshold(held_out[:, 1], training.safe, training.kinds)
