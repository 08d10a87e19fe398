"""`SelfMonitor`: a fitted detector of dangerous content, made of a model's own activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from persona_tui.core.errors import MonitorError, PersonaTuiError, VectorFileError, nearest
from persona_tui.core.jobs import JobContext
from persona_tui.extraction.checkpoints import PartialStore
from persona_tui.model import ModelWrapper, Reading, Watch, conversation
from persona_tui.monitors.amid import read_amid_chat
from persona_tui.monitors.detectors import Detector, Harms
from persona_tui.monitors.disguise import plainly
from persona_tui.monitors.fitter import FittedMethods, fit
from persona_tui.monitors.ordinary import passing_ordinary_replies
from persona_tui.monitors.readings import (
    MESSAGE,
    PROMPT_LAST,
    REPLY,
    places_of,
    read_as_replies,
    read_queries,
)
from persona_tui.monitors.spelling import words_of
from persona_tui.monitors.trade import MOST_FLAGGED, WANTED_CATCH, Trade
from persona_tui.monitors.training_data import TrainingData
from persona_tui.monitors.verdict import About, Verdict
from persona_tui.vectors.files import FORMAT_VERSION, check_kind, check_model, load_tensors, save_tensors

KIND = "monitor"
AUTO = "auto"

_LEAST_ACCURACY = 0.5  # of harms in cross-validation; below it, verdicts do not name any


@dataclass(frozen=True, eq=False)
class SelfMonitor:
    """Judges messages and replies by the model's own activations.

    Attributes:
        name: of its file.
        detectors: the fitted methods, by name.
        method: the one that is used.
        reply: the detector for replies.
        harms: what tells harms apart; None if the training data did not.
        stacks: content and tone vectors over all layers, `[layers, hidden]`, as `content.message.safe`.
        metadata: what the file records: the model, the training data, the layer scan and so on.
        model: what `check` reads with; `judge` needs none.
        note: a sentence if it was made on a near copy of that model, else "".
    """

    name: str
    detectors: dict[str, Detector]
    method: str
    reply: Detector
    harms: Harms | None
    stacks: dict[str, Tensor]
    metadata: dict[str, Any]
    model: ModelWrapper | None = None
    note: str = ""

    @classmethod
    def fit(
        cls,
        model: ModelWrapper,
        data: TrainingData,
        name: str = "default",
        method: str = AUTO,
        seed: int = 0,
        context: JobContext | None = None,
        partial: PartialStore | None = None,
        trade: Trade | None = None,
    ) -> SelfMonitor:
        """Fit all methods on one model, and choose one of them.

        Every text is read once as a message and once as a reply, all layers in one pass, and every other one
        again after small talk. Then some of the safe queries are answered, so that the threshold for replies
        passes nearly all ordinary ones.

        Args:
            model: whose activations are read; without steering.
            data: what to fit on. That of another monitor (`training`) transfers it to this model.
            name: of the monitor.
            method: the one to use; "auto" = the consensus, unless another has clearly fewer false alarms in
                cross-validation.
            seed: of the folds.
            trade: what thresholds for messages have to achieve; by default `Trade()`.
            context: where progress goes, and where it can be cancelled.
            partial: keeps what was read, within its jobs. By default nothing is kept.

        Raises:
            DatasetError: there are too few queries of one kind.
            MonitorError: there is no such method.
            JobCancelled: somebody asked for that.
        """
        data.examples.check()
        layers, context, trade = range(model.n_layers), context or JobContext(), trade or Trade()
        statements, queries = data.statements, data.examples.queries
        tone = read_queries(model, statements, layers, partial=partial) if statements else None
        readings = read_queries(model, queries, layers, context, partial)
        amid = read_amid_chat(model, data.examples, context, partial)
        context.progress(0, 0, "fitting")
        found = fit(data.examples, replace(readings, amid=amid), tone, seed, trade)
        replies = read_as_replies(model, queries, layers, context, partial)
        context.progress(0, 0, "fitting")
        of_replies = fit(data.examples, replies, seed=seed)
        reply = of_replies.detectors[of_replies.best()]
        return cls(
            name=name,
            detectors=found.detectors,
            method=_known(method, found.detectors) if method != AUTO else found.best(),
            reply=passing_ordinary_replies(reply, model, data, context, partial or PartialStore()),
            harms=found.harms,
            stacks=found.stacks,
            metadata=_metadata(model, data, found, seed, trade),
            model=model,
        )

    # Judging ------------------------------------------------------------------------------------------------

    def check(self, text: str, method: str | None = None) -> Verdict:
        """Judge a text as a user's message, by one pass up to the last layer that is needed.

        Raises:
            MonitorError: the text is empty, there is no such method, or no model was given.
            GenerationError: the text does not fit the model's context.
        """
        return self.check_many([text], method)[0]

    def check_many(self, texts: Sequence[str], method: str | None = None) -> list[Verdict]:
        """Judge texts as messages, batched by length; errors as `check`."""
        read = self.read(texts, self.layers_of(method))
        return [self.judge(reading, "message", method) for reading in read]

    def read(self, texts: Sequence[str], layers: Sequence[int]) -> list[Reading]:
        """Read texts as messages, each alone and without its disguise, as when the monitor was fitted.

        Raises:
            MonitorError: a text is empty, or no model was given.
            GenerationError: a text does not fit the model's context.
        """
        if self.model is None:
            raise MonitorError(f'the monitor "{self.name}" was loaded without a model, which checking needs')
        if any(not text.strip() for text in texts):
            raise MonitorError("an empty text cannot be checked")
        with self.model.rendered_as(self.metadata.get("rendering")):
            said = [conversation(self.plain(text)) for text in texts]
            return self.model.read_messages(said, layers) if said else []

    def plain(self, text: str) -> str:
        """Return a message as it is read: without its disguise."""
        return plainly(text, words_of(self.model.tokenizer) if self.model is not None else {})

    def judge(self, reading: Reading, about: About, method: str | None = None) -> Verdict:
        """Judge what was read of a message or a reply, at `layers_of` or more layers.

        Raises:
            MonitorError: there is no such method.
        """
        detector = self.reply if about == "reply" else self.detector(method)
        rows = _judged(reading, detector.position)[:, places_of(reading, detector.layers)]
        scores = detector.form.scores(rows)
        worst = int(scores.argmin())
        score, activations = float(scores[worst]), rows[worst]
        safe = score > detector.threshold
        harm, how_likely = (None, None) if safe else self._harm(reading, about, worst)
        return Verdict(
            safe=safe,
            score=score,
            threshold=detector.threshold,
            method=detector.method,
            layers=detector.layers,
            position=detector.position,
            about=about,
            monitor=self.name,
            tokens=reading.n_tokens,
            category=harm,
            category_probability=how_likely,
            agreement=detector.agreement(activations) if len(detector.layers) > 1 else None,
        )

    def _harm(self, reading: Reading, about: About, part: int) -> tuple[str | None, float | None]:
        """Return the harm of a message, read at its most dangerous part."""
        if about == "reply" or not self._names_harms:  # harms were learned from messages
            return None, None
        found = self._harms_at(reading, part)
        likeliest = max(found, key=lambda name: found[name])
        return likeliest, found[likeliest]

    @property
    def _names_harms(self) -> bool:
        """Whether it tells harms apart well enough: a wrong name is worse than none."""
        return self.harms is not None and self.harms.accuracy >= _LEAST_ACCURACY

    def _harms_at(self, reading: Reading, part: int) -> dict[str, float]:
        assert self.harms is not None
        parts = _judged(reading, self.harms.position)
        at = parts[part if part < len(parts) else 0][places_of(reading, [self.harms.layer])]
        return dict(zip(self.harms.names, self.harms.probabilities(at)[0].tolist(), strict=True))

    def harm_probabilities(self, reading: Reading) -> dict[str, float]:
        """Return how likely each harm is if there is one, for what was read of a message, at `layers_of`.

        Empty if the monitor does not tell harms apart.
        """
        if not self._names_harms:
            return {}
        detector = self.detector()
        rows = _judged(reading, detector.position)[:, places_of(reading, detector.layers)]
        return self._harms_at(reading, int(detector.form.scores(rows).argmin()))

    def detector(self, method: str | None = None) -> Detector:
        """One of the methods; None = the one in use.

        Raises:
            MonitorError: there is no such method.
        """
        return self.detectors[_known(method or self.method, self.detectors)]

    def layers_of(self, method: str | None = None) -> tuple[int, ...]:
        """Return where a message has to be read, ascending."""
        harm = () if self.harms is None else (self.harms.layer,)
        return tuple(sorted({*self.detector(method).layers, *harm}))

    @property
    def watch(self) -> Watch:
        """What a stream has to read so that its message and its reply can be judged."""
        reply = tuple(sorted(self.reply.layers))
        return Watch(tuple(sorted({*self.layers_of(), *reply})), reply)

    def with_method(self, method: str, threshold: float | None = None) -> SelfMonitor:
        """Return the same monitor, using another method or threshold.

        Raises:
            MonitorError: there is no such method.
        """
        detector = self.detector(method)
        if threshold is not None:
            detector = replace(detector, threshold=threshold)
        return replace(self, method=method, detectors={**self.detectors, method: detector})

    def with_threshold(self, method: str, threshold: float | None) -> SelfMonitor:
        """Return the same monitor, using a method at a threshold chosen by hand; None = at the fitted one.

        What cross-validation chose is kept as `fit["fitted_threshold"]` as long as it does not hold.

        Raises:
            MonitorError: there is no such method.
        """
        detector = self.detector(method)
        figures = dict(detector.fit)
        fitted = float(figures.pop("fitted_threshold", detector.threshold))
        if threshold is not None and threshold != fitted:
            figures["fitted_threshold"] = fitted
        at = fitted if threshold is None else threshold
        changed = replace(detector, threshold=at, fit=figures)
        return replace(self, method=method, detectors={**self.detectors, method: changed})

    @property
    def training(self) -> TrainingData:
        """What it was fitted on, to fit it on another model.

        Raises:
            VectorFileError: its file does not say.
        """
        return TrainingData.restore(self.metadata.get("training") or {})

    @property
    def caught(self) -> dict[str, Any] | None:
        """The share of direct requests that were not fitted on which it catches, and `on` which ones.

        On the standard set if it was measured there as it is now, else in cross-validation; None = not known.
        """
        return self._known("direct_caught")

    @property
    def weakness(self) -> str:
        """A sentence if it catches too few direct requests, or flags too many everyday questions; else ""."""
        caught, flagged, found = self.caught, self._known("plain_flagged"), []
        if caught is not None and caught["value"] < WANTED_CATCH:
            wanted = f"where {WANTED_CATCH:.2f} are wanted"
            found.append(f"catches {caught['value']:.2f} of plain dangerous requests {wanted}")
        if flagged is not None and flagged["value"] > MOST_FLAGGED:
            found.append(f"flags {flagged['value']:.2f} of everyday questions")
        if not found:
            return ""
        return f'weak: "{self.name}" {" and ".join(found)} ({(caught or flagged or {})["on"]})'

    def _known(self, figure: str) -> dict[str, Any] | None:
        """Return a share that the monitor was measured to have as it is now, and `on` what."""
        detector, measured = self.detector(), self.metadata.get("measured") or {}
        if (measured.get("method"), measured.get("threshold")) == (self.method, detector.threshold):
            return {**measured[figure], "on": "held-out queries"} if measured.get(figure) else None
        if "fitted_threshold" in detector.fit or not (known := detector.fit.get(figure)):
            return None
        return {**known, "on": "cross-validation"}

    def measured_as(self, figures: Mapping[str, Any]) -> SelfMonitor:
        """Return the same monitor, with what it was measured to do on requests that it was not fitted on."""
        now = {"method": self.method, "threshold": self.detector().threshold}
        return replace(self, metadata={**self.metadata, "measured": {**now, **figures}})

    def summary(self) -> dict[str, Any]:
        """Return what `monitor list` and summary.json show."""
        chosen = self.detector()
        return {
            "name": self.name,
            "method": self.method,
            "position": chosen.position,
            "layers": list(chosen.layers),
            "threshold": chosen.threshold,
            "cross_validation": {
                name: {
                    key: value
                    for key, value in each.fit.items()
                    if name == self.method or key not in ("kinds", "missed")
                }
                for name, each in self.detectors.items()
            },
            "trade": self.metadata.get("trade"),
            "measured": self.metadata.get("measured"),
            "caught": self.caught,
            "weakness": self.weakness,
            "reply": self.reply.record(),
            "categories": list(self.harms.names) if self.harms is not None else [],
            "categories_accuracy": self.harms.accuracy if self.harms is not None else None,
            "data": self.metadata.get("training", {}).get("sources", []),
            **{key: self.metadata.get(key) for key in ("model_name", "model_fingerprint", "created")},
        }

    # Files --------------------------------------------------------------------------------------------------

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write everything to one file; see `files.save_tensors` for `inside` and the errors."""
        tensors = {f"stack.{key}": each for key, each in self.stacks.items()}
        for place, detector in (*self.detectors.items(), (REPLY, self.reply)):
            tensors |= {f"{place}.{key}": each for key, each in detector.form.tensors().items()}
        metadata = {
            **self.metadata,
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "method": self.method,
            "detectors": {name: each.record() for name, each in self.detectors.items()},
            "reply": self.reply.record(),
        }
        if self.harms is not None:
            tensors |= {"harms.weights": self.harms.weights, "harms.bias": self.harms.bias}
            metadata["harms"] = {
                "names": list(self.harms.names),
                "position": self.harms.position,
                "layer": self.harms.layer,
                "accuracy": self.harms.accuracy,
            }
        save_tensors(path, tensors, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path, model: ModelWrapper | None = None) -> SelfMonitor:
        """Read a monitor; its name is its file's.

        Args:
            path: the file.
            model: what it judges; None = nothing is checked, and it can be shown but not used.

        Raises:
            VectorFileError: the file is missing, damaged, no monitor, or was made on another model.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, KIND)
        note = ""
        if model is not None:
            note = check_model(path, metadata, model.fingerprint, model.name, model.sketch)
        try:
            return replace(_restored(path.stem, tensors, metadata, model), note=note)
        except (KeyError, ValueError, PersonaTuiError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise VectorFileError(f"{path} cannot be used: {problem}.") from error


def _known(method: str, detectors: dict[str, Detector]) -> str:
    if method in detectors:
        return method
    hint = nearest(method, detectors) or f" There are {', '.join(detectors)}."
    raise MonitorError(f'there is no method "{method}".{hint}')


def _at(reading: Reading, position: str) -> Tensor:
    """Return what a position is called in a reading, `[layers, hidden]`."""
    if position == PROMPT_LAST:
        assert reading.last is not None  # messages have one, and replies are not read there
        return reading.last
    return reading.mean


def _judged(reading: Reading, position: str) -> Tensor:
    """Return what a detector scores, the lowest score being the text's: `[parts, layers, hidden]`."""
    if position == MESSAGE and reading.parts is not None:
        return reading.parts
    return _at(reading, position).unsqueeze(0)


def _metadata(
    model: ModelWrapper, data: TrainingData, found: FittedMethods, seed: int, trade: Trade
) -> dict[str, Any]:
    return {
        "model_name": model.name,
        "model_fingerprint": model.fingerprint,
        "model_source": model.source,
        **model.sketch.record(),
        "rendering": model.rendering.record(),
        "hidden_size": model.hidden_size,
        "layers": list(range(model.n_layers)),
        "training": data.record(),
        "scan": found.scan,
        "seed": seed,
        "trade": trade.record(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _restored(
    name: str, tensors: dict[str, Tensor], metadata: dict[str, Any], model: ModelWrapper | None
) -> SelfMonitor:
    def of(place: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{place}."): each
            for key, each in tensors.items()
            if key.startswith(f"{place}.")
        }

    detectors = {
        method: Detector.restore(record, of(method)) for method, record in metadata["detectors"].items()
    }
    found, reply = metadata.get("harms"), Detector.restore(metadata["reply"], of(REPLY))
    harms = None
    if found is not None:
        place, weights = (
            (found["position"], found["layer"]),
            (tensors["harms.weights"], tensors["harms.bias"]),
        )
        harms = Harms(tuple(found["names"]), *place, *weights, found["accuracy"])
    monitor = SelfMonitor(
        name=name,
        detectors=detectors,
        method=_known(metadata["method"], detectors),
        reply=reply,
        harms=harms,
        stacks=of("stack"),
        metadata=metadata,
        model=model,
    )
    _check_shapes(monitor)
    return monitor


def _check_shapes(monitor: SelfMonitor) -> None:
    """Raise ValueError unless all parts are of one width, and at layers of the model."""
    layers, hidden = monitor.metadata["layers"], next(iter(monitor.reply.form.tensors().values())).shape[-1]
    for detector in (*monitor.detectors.values(), monitor.reply):
        if not set(detector.layers) <= set(layers):
            raise ValueError(
                f"{detector.method} is fitted at the layers {list(detector.layers)}, not all there"
            )
        if detector.form.vectors.shape[-1] != hidden:
            raise ValueError(f"{detector.method} is {detector.form.vectors.shape[-1]} wide, not {hidden}")
    for name, stack in monitor.stacks.items():
        if stack.shape != (len(layers), hidden):
            raise ValueError(f'its "{name}" vectors are {list(stack.shape)}, not {[len(layers), hidden]}')
    pairs = {name.removesuffix(".safe").removesuffix(".dangerous") for name in monitor.stacks}
    if missing := {f"{each}.{side}" for each in pairs for side in ("safe", "dangerous")} - set(
        monitor.stacks
    ):
        raise ValueError(f'its "{min(missing)}" vectors are missing')
    harms = monitor.harms
    if harms is not None:
        if harms.layer not in layers or harms.weights.shape != (len(harms.names), hidden) or not harms.names:
            raise ValueError("its harms do not fit their vectors")
        if harms.bias.shape != (len(harms.names),):
            raise ValueError("its harms do not fit their biases")
