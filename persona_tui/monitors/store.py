"""The monitors of one model: `vectors/<model>/monitors/`, a file each, and a summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import MonitorError
from persona_tui.core.files import change, safe_name
from persona_tui.core.workspace import Workspace
from persona_tui.vectors.files import SUMMARY_FILE, VectorStore

if TYPE_CHECKING:
    from persona_tui.model import ModelWrapper
    from persona_tui.monitors.evaluation import Evaluation
    from persona_tui.monitors.monitor import SelfMonitor


class MonitorStore(VectorStore):
    """Lists, loads and saves the monitors of one model."""

    word = "monitor"
    missing = MonitorError

    def __init__(
        self,
        workspace: Workspace,
        slug: str,
        model_name: str,
        on_copy: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            workspace: has the folder of vectors.
            slug: of the model.
            model_name: what to call the model in errors.
            on_copy: told, in one sentence, when a monitor is used that was made on a near copy of the model.
        """
        super().__init__(workspace.model_dir(slug) / "monitors", None, model_name, on_copy=on_copy)

    def _advice(self, name: str, others: bool) -> str:
        return f" `persona-tui monitor fit{'' if name == 'default' else ' ' + name}` makes it."

    def evaluation_path(self, name: str, suffix: str = ".json") -> Path:
        """Return where a monitor's evaluation is, or would be.

        Raises:
            WorkspaceError: the name cannot be a file name.
        """
        return self.folder / f"{safe_name(name)}.evaluation{suffix}"

    def check_exists(self, name: str) -> None:
        """Raise a MonitorError if there is no such monitor; nothing is read."""
        self.find(name)

    def load(self, name: str, model: ModelWrapper | None = None) -> SelfMonitor:
        """Read a monitor.

        Args:
            name: the monitor.
            model: what it judges; without one it can be shown but not used.

        Raises:
            MonitorError: no monitor has this name.
            VectorFileError: its file is damaged, or was made on another model.
        """
        from persona_tui.monitors.monitor import SelfMonitor

        monitor = SelfMonitor.load(self.find(name), model)
        if monitor.note:
            self.on_copy(monitor.note)
        return monitor

    def save(self, monitor: SelfMonitor) -> Path:
        """Write a monitor, and the summary again. An evaluation of what it replaces is removed."""
        path = self.path_of(monitor.name)
        monitor.save(path, inside=self.folder)
        for suffix in (".json", ".csv"):
            self.evaluation_path(monitor.name, suffix).unlink(missing_ok=True)
        self.write_summary()
        return path

    def keep_evaluation(self, evaluation: Evaluation) -> None:
        """Write an evaluation on the shipped sets beside its monitor, and what it found into the monitor."""
        name = evaluation.monitor
        evaluation.save(self.evaluation_path(name))
        if (measured := evaluation.measured()) is not None:
            self.load(name).measured_as(measured).save(self.path_of(name), inside=self.folder)
        self.write_summary()

    def set_threshold(self, name: str, method: str, threshold: float | None = None) -> SelfMonitor:
        """Have a monitor use a method, at a threshold that somebody chose; None = the fitted one again.

        The file keeps the fitted threshold beside it. An evaluation stays: its scores are what they were, and
        its tables are made again.

        Raises:
            MonitorError: no such monitor or method, the threshold is not a number, or the evaluation is
                damaged. Nothing is changed then.
            VectorFileError: the monitor's file is damaged.
        """
        from persona_tui.monitors.evaluation import load_evaluation
        from persona_tui.monitors.figures import judged_by

        if threshold is not None and not math.isfinite(threshold):
            raise MonitorError("a threshold must be a number")
        monitor = self.load(name).with_threshold(method, threshold)
        path = self.evaluation_path(name)
        evaluation = load_evaluation(path) if path.is_file() else None
        if evaluation is not None:
            evaluation = judged_by(evaluation, monitor)
            if (measured := evaluation.measured()) is not None:
                monitor = monitor.measured_as(measured)
        monitor.save(self.path_of(name), inside=self.folder)
        if evaluation is not None:
            evaluation.save(path)
        self.write_summary()
        return monitor

    def summaries(self) -> list[dict[str, Any]]:
        """Return each monitor's summary and evaluation; a file that cannot be read has an `error`."""
        found = self.described(lambda name: {**self.load(name).summary(), "evaluation": self._rows(name)})
        return [{"name": name, **each} for name, each in found.items()]

    def _rows(self, name: str) -> list[dict[str, Any]] | None:
        """Return the table of a monitor's last evaluation, if there was one that can be read."""
        try:
            rows = json_value(read_plain(self.evaluation_path(name)))["rows"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it can be made again at any time
        return rows if isinstance(rows, list) else None

    def write_summary(self) -> None:
        """Write summary.json from what is there."""
        with change(self.folder, SUMMARY_FILE):
            self.save_summary(self.summaries())
