"""The monitor screen: a monitor's layers, scores, methods and vectors, and where its threshold lies.

Numbers come from `monitoring.lab`. Reading files takes milliseconds and happens here; what needs the model is
a job, or short work between two batches of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import BindingType
from textual.message import Message
from textual.widget import Widget

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job
from persona_tui.monitors.evaluation import WORDS, Evaluation, load_evaluation
from persona_tui.monitors.figures import (
    check_all,
    curves,
    dimensions,
    judged_by,
    rows_at,
    score_range,
    vector_layers,
)
from persona_tui.monitors.results import fitted_threshold, results_folder, write_results
from persona_tui.project.requests import JobRequest, evaluate_request, fit_request
from persona_tui.tui.screens.fit_monitor import FitScreen, NewMonitor
from persona_tui.tui.screens.results import ResultsScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.check import Checked, CheckView
from persona_tui.tui.views.compare import CompareView
from persona_tui.tui.views.dimensions import DimensionsView
from persona_tui.tui.views.layers import LayersView
from persona_tui.tui.views.scores import Looked, ScoresView
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.views.view import View
from persona_tui.tui.views.wrong import COUNT, WrongView
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.slider import FloatSlider

if TYPE_CHECKING:
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.monitors.store import MonitorStore

ALL = "all"
_NONE = "This model has no monitor yet: f fits one."
_NOT_EVALUATED = "This monitor has not been measured yet: f5 does that, as a job."


class MonitorsScreen(ResultsScreen):
    """Everything about the monitors of the model in use."""

    TITLE = "monitors"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.MONITORS]

    class Judged(Message):
        """The model's thread has judged a text."""

        def __init__(self, checked: Checked) -> None:
            super().__init__()
            self.checked = checked

    def __init__(self) -> None:
        super().__init__()
        self._monitor: SelfMonitor | None = None
        self._evaluation: Evaluation | None = None
        self._rows: list[dict[str, Any]] = []  # the comparison, at the thresholds in use
        self._method = ""
        self._threshold: float | None = None

    # --- parts

    def head(self) -> Sequence[Widget]:
        """Return what is chosen above the views."""
        return (
            Chooser("monitor", id="which-monitor"),
            Chooser("method", id="which-method"),
            Chooser("queries", id="which-sets"),
        )

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views."""
        return (
            (ScoresView(id="scores"), CheckView(id="check")),
            (LayersView(id="layers"), DimensionsView(id="vector")),
            (CompareView(id="methods"), WrongView(id="most-wrong")),
        )

    @property
    def _store(self) -> MonitorStore:
        return self.owner.project.monitors

    def on_mount(self) -> None:
        """Begin with the monitor that chats use."""
        self.place_views()
        names = self._store.names()
        used = self.owner.project.settings.monitoring.monitor
        self.open(used if used in names or not names else names[0])
        self.set_focus(self.query_one(ThresholdSlider) if self._evaluation else self._chooser("monitor"))

    def _chooser(self, what: str) -> Chooser:
        return self.query_one(f"#which-{what}", Chooser)

    def _offer(self, what: str, values: Sequence[str], value: str) -> None:
        chooser = self._chooser(what)
        chooser.values, chooser.value = list(values), value
        chooser.refresh()

    # --- opening

    def open(self, name: str) -> None:
        """Read a monitor and its evaluation, and show them."""
        self._monitor = self._evaluation = None
        self._offer("monitor", self._store.names(), name)
        try:
            if self._store.names():
                self._monitor = self._store.load(name, self.owner.project.model)
                if self._monitor.weakness:
                    self.say(f"This monitor is {self._monitor.weakness}.")
            self._evaluation = self._evaluated()
        except PersonaTuiError as error:
            self.fail(error)
        self._rows = self._evaluation.rows() if self._evaluation is not None else []
        self._choose_method(self._monitor.method if self._monitor is not None else "")

    def _evaluated(self) -> Evaluation | None:
        monitor = self._monitor
        path = self._store.evaluation_path(monitor.name) if monitor is not None else None
        if monitor is None or path is None or not path.is_file():
            return None
        return judged_by(load_evaluation(path), monitor)

    def _choose_method(self, method: str) -> None:
        """Look at a method, at the threshold that it has."""
        monitor, evaluation = self._monitor, self._evaluation
        methods = list(monitor.detectors) if monitor is not None else []
        if evaluation is not None:
            methods += [name for name in evaluation.thresholds if name not in methods]
        self._method, self._threshold = method, self._own_threshold(method)
        self._offer("method", methods, method)
        sets = self._chooser("sets").value
        known = [ALL, *(evaluation.sets if evaluation is not None else ())]
        self._offer("sets", known, sets if sets in known else ALL)
        self._fit_slider()
        self._show_all()

    def _own_threshold(self, method: str) -> float | None:
        if self._monitor is not None and method in self._monitor.detectors:
            return self._monitor.detectors[method].threshold
        return self._evaluation.thresholds.get(method) if self._evaluation is not None else None

    def _fit_slider(self) -> None:
        if self._evaluation is None or self._threshold is None:
            return
        ends = score_range(self._evaluation, self._method, [self._threshold])
        self.query_one(ThresholdSlider).fit(*ends, self._threshold)

    # --- showing

    def _show_all(self) -> None:
        self._show_vector()
        self._show_layers()
        self._show_scores()
        self._show_methods()

    def _show_layers(self) -> None:
        monitor, view = self._monitor, self.query_one(LayersView)
        if monitor is None or self._method not in monitor.detectors:
            view.show([], "", ())
            return
        detector = monitor.detectors[self._method]
        view.show(curves(monitor, self._method), detector.position, detector.layers)

    def _show_vector(self, layer: int | None = None) -> None:
        monitor, view = self._monitor, self.query_one(DimensionsView)
        if monitor is None or self._method not in monitor.detectors:
            view.empty("The words method has no vector." if self._method == WORDS else _NONE)
        else:
            view.show(dimensions(monitor, self._method, layer), vector_layers(monitor, self._method))

    def _show_scores(self) -> None:
        """Show what follows the threshold: histograms, confusion, what is most wrong."""
        scores, wrong = self.query_one(ScoresView), self.query_one(WrongView)
        looked = self._looked()
        if looked is None:
            why = _NONE if self._monitor is None else _NOT_EVALUATED
            scores.empty(why)
            wrong.empty(why)
            return
        scores.show(looked)
        found = self._of_sets(looked.evaluation).most_wrong(looked.method, COUNT, looked.threshold)
        wrong.show(found, looked.method)

    def _show_methods(self) -> None:
        view, evaluation = self.query_one(CompareView), self._evaluation
        if evaluation is None or self._monitor is None:
            view.empty(_NONE if self._monitor is None else _NOT_EVALUATED)
        else:
            rows = self._rows
            if self._threshold is not None:
                rows = rows_at(evaluation, rows, self._method, self._threshold)
            view.show(rows, self._method, self._monitor.method)

    def _of_sets(self, evaluation: Evaluation) -> Evaluation:
        sets = self._sets
        if sets is None:
            return evaluation
        return replace(evaluation, queries=tuple(each for each in evaluation.queries if each.set in sets))

    @property
    def _sets(self) -> list[str] | None:
        chosen = self._chooser("sets").value
        return None if chosen in (ALL, "") else [chosen]

    def _looked(self) -> Looked | None:
        monitor, evaluation, threshold = self._monitor, self._evaluation, self._threshold
        if monitor is None or evaluation is None or threshold is None:
            return None
        fitted = fitted_threshold(monitor, self._method)
        return Looked(
            evaluation,
            self._method,
            threshold,
            evaluation.thresholds[self._method] if fitted is None else fitted,
            self._own_threshold(self._method) if self._method == monitor.method else None,
            self._sets,
        )

    # --- choosing

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Look at another monitor, method or set."""
        message.chooser.value = message.value
        if message.chooser.id == "which-monitor":
            self.say("")
            self.open(message.value)
        elif message.chooser.id == "which-method":
            self._choose_method(message.value)
        else:
            self._show_scores()

    @on(FloatSlider.Changed)
    def _threshold_moved(self, message: FloatSlider.Changed) -> None:
        self._threshold = message.value
        self._show_scores()
        self._show_methods()

    @on(DimensionsView.LayerChosen)
    def _layer_chosen(self, message: DimensionsView.LayerChosen) -> None:
        self._show_vector(message.layer)

    def action_save(self) -> None:
        """Use this method at this threshold from now on, also in chats."""
        if self._monitor is None or self._threshold is None:
            self.say(_NONE)
        elif self._method not in self._monitor.detectors:
            self.say("The words method cannot guard: it is only there for comparison.")
        else:
            self._set_threshold(self._threshold)

    def action_reset(self) -> None:
        """Go back to the threshold that was fitted; saved only if another one is in use."""
        monitor = self._monitor
        fitted = fitted_threshold(monitor, self._method) if monitor is not None else None
        if fitted is None:
            return
        if self._own_threshold(self._method) != fitted:
            self._set_threshold(None)
        else:
            self._choose_method(self._method)

    def _set_threshold(self, value: float | None) -> None:
        assert self._monitor is not None
        name, method = self._monitor.name, self._method
        try:
            self._store.set_threshold(name, method, value)
        except PersonaTuiError as error:
            self.fail(error)
            return
        self.owner.project.forget_monitor()
        self.open(name)
        self.say(f"{name} now uses {method}, threshold {self._threshold:.4g}. {self._store.path_of(name)}")

    def action_write(self) -> None:
        """Write all results as JSON and CSV."""
        looked = self._looked()
        if looked is None or self._monitor is None:
            self.say(_NOT_EVALUATED)
            return
        project = self.owner.project
        folder = results_folder(project.workspace, project.slug, "monitors", self._monitor.name)
        try:
            files = write_results(folder, self._monitor, looked.evaluation, looked.method, looked.threshold)
        except PersonaTuiError as error:
            self.fail(error)
        else:
            self.say(f"Wrote {', '.join(path.name for path in files)} to {folder}")

    # --- what needs the model

    @on(CheckView.Asked)
    def _check(self, message: CheckView.Asked) -> None:
        monitor, view = self._monitor, self.query_one(CheckView)
        if monitor is None:
            self.say(_NONE)
            return
        method = self._method if self._method in monitor.detectors else monitor.method
        if self._threshold is not None and method == self._method:
            monitor = monitor.with_method(method, self._threshold)
        text = message.text
        view.wait(text)

        def work() -> None:
            try:
                checked = Checked(text, check_all(monitor, text), method)
            except Exception as error:  # the model's thread lives on, and the screen says what it was
                known = isinstance(error, PersonaTuiError)
                problem = str(error) if known else f"{type(error).__name__}: {error}"
                checked = Checked(text, {}, method, problem)
            self.post_message(self.Judged(checked))

        self.owner.worker.submit_turn(work)

    @on(Judged)
    def _judged(self, message: Judged) -> None:
        self.query_one(CheckView).add(message.checked)

    def action_evaluate(self) -> None:
        """Measure the monitor on the test sets, as a job."""
        if self._monitor is None:
            self.say(_NONE)
        else:
            self._submit(self._monitor.name, evaluate_request(self.owner.project, self._monitor.name))

    def action_fit(self) -> None:
        """Ask what to fit, and do it as a job, with an evaluation after it."""

        def answered(wanted: NewMonitor | None) -> None:
            if wanted is not None:
                file = Path(wanted.file).absolute() if wanted.file is not None else None
                request = fit_request(self.owner.project, wanted.name, wanted.data, file, wanted.method)
                self._submit(wanted.name, request)

        names = self._store.names()
        self.app.push_screen(FitScreen("default" if not names else "", names), answered)

    def _submit(self, name: str, request: JobRequest) -> None:
        def ended(job: Job[Any]) -> None:
            self.owner.project.forget_monitor()
            if not self.is_attached:
                self.owner.job_ended(job)
            elif job.state == "done":
                self.open(name)
                self.say(f"{job.name}: done.")
            elif job.error is not None:
                self.fail(job.error)
            else:
                self.say(f"{job.name}: {job.state}.")

        self.follow(self.owner.jobs.submit_request(request, ended))
