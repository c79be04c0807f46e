"""What a run leaves on disk: its folder, config, plan, history, curves, checkpoints, best model.

The folder holds `config.yaml`, `plan.json`, `training_history.json`, `training_curves.png`,
`best_model.pth`, `checkpoint-latest.pt`, `tensorboard/`, `logs/`. Rank 0 alone writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ddp_core.files import write_text
from ddp_train.config.options import Config
from ddp_train.config.parse import dump, with_values
from ddp_train.config.recommend import Recommendation
from ddp_train.config.validation import LATEST
from ddp_train.observers.records import EpochRecord, History, Observer


class RunFolder:
    """The files of one run under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.latest = path / LATEST
        self.best_model = path / "best_model.pth"
        self.history = path / "training_history.json"
        self.curves = path / "training_curves.png"
        self.tensorboard = path / "tensorboard"

    def write_config(self, resolved: Config) -> None:
        """Write every option, with the values that the run decided, as YAML that --config reads."""
        once = {"resume": None, "stop_after": None, "changed_data": "stop"}
        shown = with_values(resolved, once)
        write_text(self.path / "config.yaml", dump(shown))

    def write_plan(self, facts: Mapping[str, object], recommendations: Iterable[Recommendation]) -> None:
        """plan.json for a run that no launcher planned; a launcher's own plan is left as it is."""
        path = self.path / "plan.json"
        if not path.exists():
            training = [dataclasses.asdict(r) for r in recommendations]
            write_text(path, json.dumps({**facts, "recommendations": training}, indent=2) + "\n")

    def open_history(self, environment: Mapping[str, object], finished_epochs: int, resumed: Path | None) -> History:
        """A new history, or the one beside the checkpoint `resumed`, up to the epoch that the run continues from."""
        history = History(self.history, environment)
        if resumed is not None and (earlier := resumed.parent / self.history.name).exists():
            history.epochs = [epoch for epoch in History.load(earlier).epochs if epoch.epoch <= finished_epochs]
        return history


class HistoryObserver(Observer):
    """Writes the history after every epoch and the curves at the end, also of a run that failed."""

    def __init__(self, history: History, curves: Path) -> None:
        self._history = history
        self._curves = curves

    def on_epoch(self, record: EpochRecord) -> None:
        """See Observer: append the epoch."""
        self._history.append(record)

    def close(self) -> None:
        """See Observer: draw the curves."""
        if self._history.epochs:
            from ddp_train.plots.history import history_figure
            from ddp_train.plots.style import save_if_possible

            save_if_possible(lambda: history_figure(self._history.to_dict()), self._curves)
