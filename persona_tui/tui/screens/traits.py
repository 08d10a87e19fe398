"""The trait screen: what traits measure, what the conversation scores, thresholds, limits.

Numbers come from `monitoring.traits`. What reads the model is a job, or short work between its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import BindingType
from textual.message import Message
from textual.widget import Widget

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, JobContext
from persona_tui.datasets.transcripts import read_file
from persona_tui.monitors.results import results_folder
from persona_tui.project.requests import extract_request
from persona_tui.traits.definition import find_definition, list_definitions
from persona_tui.traits.policy import Policy
from persona_tui.traits.results import overview, turn_breaches, write_turns
from persona_tui.traits.score import TraitScorer, TurnScore
from persona_tui.traits.thresholds import TEST, fit_threshold, labelled_scores, reference_scores
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.results import ResultsScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.calibration import CalibrationView, Labelled
from persona_tui.tui.views.limits import LimitsView
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.views.traits import TraitTable
from persona_tui.tui.views.turns import TurnsView
from persona_tui.tui.views.view import View
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.slider import FloatSlider

if TYPE_CHECKING:
    from persona_tui.traits.vector import TraitStore, TraitVector

BY_HAND = "by hand"
_NONE = "No trait has been extracted for this model: f5 does that, as a job."
_SILENT = "Nothing has been said yet: what this conversation scores is shown here."
_UNLABELLED = "l finds the best threshold from labels: your own file, or the trait's own test conversations."
_NO_LIMITS = "No policy: p chooses one. No trait has a healthy range of its own."
_ENDS = (-2.0, 2.0)  # of the slider before there are scores


class TraitsScreen(ResultsScreen):
    """Everything about the traits of the model in use."""

    TITLE = "traits"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.TRAITS]

    class Measured(Message):
        """The model's thread has measured the conversation."""

        def __init__(self, turns: Sequence[TurnScore], problem: Exception | None) -> None:
            super().__init__()
            self.turns, self.problem = turns, problem

    def __init__(self) -> None:
        super().__init__()
        self._traits: dict[str, TraitVector] = {}
        self._entries: list[dict[str, Any]] = []
        self._looked_at = ""
        self._turns: Sequence[TurnScore] | None = None
        self._labelled: dict[str, Labelled] = {}
        self._threshold = 0.0

    # --- parts

    def head(self) -> Sequence[Widget]:
        """Return what is chosen above the views."""
        return (Chooser("trait", id="which-trait"),)

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views."""
        return (
            (TurnsView(id="turns"), LimitsView(id="limits")),
            (TraitTable(id="traits"),),
            (CalibrationView(id="calibration"),),
        )

    @property
    def _store(self) -> TraitStore:
        return self.owner.project.traits

    @property
    def _trait(self) -> TraitVector | None:
        return self._traits.get(self._looked_at)

    def on_mount(self) -> None:
        """Begin with the first trait, and measure the conversation."""
        self.place_views()
        self.open()
        self.set_focus(self.query_one("#which-trait"))
        self._measure()

    # --- opening

    def open(self) -> None:
        """Read the traits, and show them."""
        store = self._store
        self._entries = overview(self.owner.project.workspace, store)
        self._traits = {}
        for entry in self._entries:
            if entry["extracted"] and "error" not in entry:
                self._traits[entry["name"]] = store.get(entry["name"])
        self._choose(self._looked_at if self._looked_at in self._known else (self._known or [""])[0])

    @property
    def _known(self) -> list[str]:
        """The traits that can be looked at: those that are extracted first."""
        rest = [entry["name"] for entry in self._entries if entry["name"] not in self._traits]
        return [*self._traits, *rest]

    def _choose(self, name: str) -> None:
        self._looked_at = name
        chooser = self.query_one("#which-trait", Chooser)
        chooser.values, chooser.value = self._known, name
        chooser.refresh()
        self._threshold = self._trait.reading.threshold if self._trait is not None else 0.0
        self._fit_slider()
        self._show_all()

    def _fit_slider(self) -> None:
        slider = self.query_one(ThresholdSlider)
        labelled = self._labelled.get(self._looked_at)
        if self._trait is None:
            slider.disabled = True
            return
        low, high = labelled.ends(self._threshold) if labelled is not None else _ENDS
        slider.fit(min(low, self._threshold), max(high, self._threshold), self._threshold)

    # --- showing

    def _show_all(self) -> None:
        trait = self._trait
        self.query_one(TraitTable).show(
            self._entries, self._looked_at, trait.reading if trait is not None else None
        )
        self._show_threshold()
        self._show_turns()

    def _show_threshold(self) -> None:
        view, trait = self.query_one(CalibrationView), self._trait
        labelled = self._labelled.get(self._looked_at)
        if trait is None:
            view.empty(_NONE)
        elif labelled is None:
            reading = trait.reading
            view.empty(_UNLABELLED, f"in use {reading.threshold:.4g}, from {reading.threshold_source}")
        else:
            reading = trait.reading
            view.show(labelled, self._threshold, reading.threshold, reading.threshold_source)

    def _show_turns(self) -> None:
        view, limits = self.query_one(TurnsView), self.query_one(LimitsView)
        policy, turns = self._policy, self._turns or ()
        names = list(turns[0].scores) if turns else []
        breaches = turn_breaches(policy, turns) if policy is not None and turns else []
        if self._looked_at in names:
            broken = {(breach.turn, breach.trait) for breach in breaches}
            view.show(turns, self._looked_at, names, broken)
        elif not self._traits:
            view.empty(_NONE)
        else:
            view.empty("Measuring …" if self._turns is None else _SILENT)
        if policy is None:
            limits.empty(_NO_LIMITS)
        else:
            limits.show(policy, breaches, sum(turn.role == "assistant" for turn in turns))

    @property
    def _policy(self) -> Policy | None:
        """The chat's policy, else the healthy ranges of the traits."""
        traits, chosen = self._traits.values(), self.owner.chat.policy
        return Policy.healthy(traits) if chosen is None else chosen.on_model(traits)

    # --- choosing

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Look at another trait."""
        self._choose(message.value)

    @on(FloatSlider.Changed)
    def _threshold_moved(self, message: FloatSlider.Changed) -> None:
        self._threshold = message.value
        self._show_threshold()

    def action_save(self) -> None:
        """Keep the threshold where the slider stands."""
        trait, labelled = self._trait, self._labelled.get(self._looked_at)
        if trait is None:
            self.say(_NONE)
            return
        fitted = labelled is not None and self._threshold == labelled.fit.threshold
        source = labelled.source if labelled is not None and fitted else BY_HAND
        try:
            path = self._store.save(trait.calibrated(self._threshold, source))
        except PersonaTuiError as error:
            self.fail(error)
            return
        self.open()
        self.say(f"{trait.name}: replies count as high from {self._threshold:.4g} on ({source}). {path}")

    def action_reset(self) -> None:
        """Put the slider back to the threshold in use."""
        self._choose(self._looked_at)

    def action_policy(self) -> None:
        """Choose what is allowed, here and in the chat."""

        def answered(text: str | None) -> None:
            if text:
                self.owner.command(f"/policy {text}")
                self._show_turns()

        question = "A policy's file or name, rules like harmful_validation>0.5, or off."
        self.app.push_screen(AskScreen("policy", question, example="supportive"), answered)

    def action_write(self) -> None:
        """Write what the conversation scores as JSON and CSV."""
        if not self._turns:
            self.say(_SILENT)
            return
        project = self.owner.project
        name = self.owner.chat.session_id or "conversation"
        try:
            folder = results_folder(project.workspace, project.slug, "traits", name)
            measured = [trait for each, trait in self._traits.items() if each in self._turns[0].scores]
            files = write_turns(folder, measured, self._turns, self._policy)
        except PersonaTuiError as error:
            self.fail(error)
        else:
            self.say(f"Wrote {', '.join(path.name for path in files)} to {folder}")

    # --- what needs the model

    def _measure(self) -> None:
        """Measure the conversation, as soon as the model has time."""
        conversation, project = self.owner.chat.conversation, self.owner.project
        messages = conversation.messages()
        if conversation.system:
            messages = [{"role": "system", "content": conversation.system}, *messages]
        traits = list(self._traits.values())
        self._turns = None

        steps = TraitScorer(project.model, traits).turns_by_steps(messages)
        worker = self.owner.worker

        def step() -> None:
            """One pass of the model; the next one waits behind whatever else it was asked for."""
            if not self.is_attached:
                return
            try:
                next(steps)
                worker.submit_turn(step)
            except StopIteration as end:
                self.post_message(self.Measured(end.value, None))
            except Exception as error:  # the model's thread lives on, and the screen says what it was
                self.post_message(self.Measured((), error))

        worker.submit_turn(step)

    @on(Measured)
    def _measured(self, message: Measured) -> None:
        self._turns = message.turns
        if message.problem is not None:
            self.fail(message.problem)
        self._show_turns()

    def action_extract(self) -> None:
        """Ask which traits to extract, and do it as a job."""

        def answered(text: str | None) -> None:
            if text:
                self._extract(text)

        question = (
            "Which trait? A name, a file (.jsonl, .json, .yaml), or all. With the word prompts after it, "
            "the model writes the replies itself, under opposed system prompts."
        )
        self.app.push_screen(AskScreen("extract", question, self._looked_at, self._extract_problem), answered)

    def _asked_traits(self, text: str) -> tuple[list[str], str | None]:
        """Return the traits that were asked for, and by which recipe."""
        first, _, last = text.rpartition(" ")
        text, recipe = (first.strip(), "prompts") if first and last == "prompts" else (text, None)
        workspace = self.owner.project.workspace
        return (list(list_definitions(workspace)) if text == "all" else [text]), recipe

    def _extract_problem(self, text: str) -> str | None:
        try:
            for name in self._asked_traits(text)[0]:
                find_definition(self.owner.project.workspace, _path_or_name(name))
        except PersonaTuiError as error:
            return str(error)
        return None if text else "Name a trait, or say all."

    def _extract(self, text: str) -> None:
        names, recipe = self._asked_traits(text)
        request = extract_request(self.owner.project, [_path_or_name(name) for name in names], recipe)

        def done(job: Job[Any]) -> None:
            self._labelled.clear()
            self._looked_at = job.result[0].name if job.result else self._looked_at
            self.open()
            self._measure()

        self.follow(self.owner.jobs.submit_request(request, lambda job: self._ended(job, done)))

    def action_calibrate(self) -> None:
        """Ask for labelled conversations, and find the best threshold for them."""
        if self._trait is None:
            self.say(_NONE)
            return

        def answered(text: str | None) -> None:
            if text is not None:
                self._calibrate(Path(text).expanduser() if text else None)

        question = (
            f"Labelled conversations for {self._looked_at}: JSON Lines with messages and a label, high or "
            "low. Empty: the trait's own test conversations."
        )
        self.app.push_screen(AskScreen("calibrate", question, "", _file_problem, "labelled.jsonl"), answered)

    def _calibrate(self, file: Path | None) -> None:
        trait, project = self._trait, self.owner.project
        assert trait is not None

        def work(context: JobContext) -> Labelled:
            scorer = TraitScorer(project.model, [trait])
            if file is None:
                high, low = reference_scores(scorer, find_definition(project.workspace, trait.name))
                bad, source = 0, TEST
            else:
                high, low, lines = labelled_scores(trait.name, scorer.stream(read_file(file)))
                bad, source = len(lines), file.name
            return Labelled(trait.name, source, high, low, fit_threshold(trait, high, low), bad)

        def done(job: Job[Labelled]) -> None:
            assert job.result is not None
            self._labelled[job.result.trait] = job.result
            self._choose(job.result.trait)
            self._threshold = job.result.fit.threshold
            self._fit_slider()
            self._show_threshold()
            self.action_view(3)
            self.say(f"The best threshold is {self._threshold:.4g}: ctrl+s keeps it, r goes back.")

        board = self.owner.jobs
        self.follow(board.submit(f"calibrate {trait.name}", work, lambda job: self._ended(job, done)))

    def _ended(self, job: Job[Any], done: Callable[[Job[Any]], None]) -> None:
        """Take in a job's end, if the screen is still there."""
        self.owner.show_personas()
        if not self.is_attached:
            self.owner.job_ended(job)
        elif job.state == "done":
            self.say(f"{job.name}: done.")
            done(job)
        elif job.error is not None:
            self.fail(job.error)
        else:
            self.say(f"{job.name}: {job.state}.")


def _path_or_name(text: str) -> str:
    """Return what was typed: a file's whole path, or a name as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.suffix else text


def _file_problem(text: str) -> str | None:
    if not text:
        return None
    try:
        exists = Path(text).expanduser().is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that names cannot have
        exists = False
    return None if exists else f"{text[:60]} does not exist."
