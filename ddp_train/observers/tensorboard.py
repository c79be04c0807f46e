"""TensorBoard event files of a run; tensorboard itself is imported when the run starts."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ddp_core.errors import UserError
from ddp_train.observers.records import EpochRecord, Observer, RunFacts, StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TAGS = {
    "loss/train": "train_loss",
    "accuracy/train": "train_accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}
_NAME = "events.out.tfevents."
"""How TensorBoard names a file of events; the second of its creation follows, then host, process and a counter."""


def open_writer(folder: Path, purge_step: int) -> SummaryWriter:
    """A writer into `folder` whose x-axis continues at `purge_step`; later points of older files are dropped.

    TensorBoard reads a folder's files by name and never goes back to an earlier one. A file of the same second, or
    of a clock that has been set back since, could sort after the new one: then the older files are renamed.
    Raises OSError when the folder cannot be written.
    """
    # TensorBoard's documented switch for its own file layer: else it imports TensorFlow where that is installed.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    older = sorted(folder.glob(f"{_NAME}*"))
    now = f"{_NAME}{int(time.time()):010d}"  # noqa: TID251 - the clock that TensorBoard names its files by
    if older and older[-1].name >= now:
        for number, file in enumerate(older):
            file.rename(folder / f"{_NAME}{number:010d}.{file.name.removeprefix(_NAME)}")
    return SummaryWriter(str(folder), purge_step=purge_step)


class TensorBoardObserver(Observer):
    """Writes event files: epoch curves over the epoch in `folder`/epochs, step curves over the step in `folder`/steps.

    Two folders, since a resumed run gives TensorBoard the x-axis position from which older events are
    dropped (`purge_step`), which applies to every curve of a folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._epochs: SummaryWriter | None = None
        self._steps: SummaryWriter | None = None

    def on_start(self, facts: RunFacts) -> None:
        """Open the event files. Raises UserError when they cannot be written."""
        try:
            self._epochs = open_writer(self._folder / "epochs", facts.start_epoch)
            self._steps = open_writer(self._folder / "steps", facts.steps_before + 1)
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error

    def on_step(self, report: StepReport) -> None:
        """Loss and learning rate over the optimizer step of the run, from 1."""
        if self._steps is not None:
            for name, value in {"loss": report.loss, "learning_rate": report.learning_rate, **report.extra}.items():
                self._steps.add_scalar(f"step/{name}", value, report.run_step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Every number of the record over the epoch; flushed, so that a killed run keeps its finished epochs."""
        evaluated = {f"loss/{record.split}": record.loss, f"accuracy/{record.split}": record.accuracy}
        evaluated |= {f"accuracy/{record.split}_balanced": record.balanced_accuracy}
        known = {tag: getattr(record, name) for tag, name in _TAGS.items()}
        for tag, value in (known | evaluated | dict(record.columns)).items():
            if self._epochs is not None and math.isfinite(value):
                self._epochs.add_scalar(tag, value, record.epoch)
        self.on_save()

    def on_save(self) -> None:
        """Flush: a run that resumes from here must find no gap."""
        for writer in (self._epochs, self._steps):
            if writer is not None:
                writer.flush()

    def close(self) -> None:
        """Flush and close the event files."""
        for writer in (self._epochs, self._steps):
            if writer is not None:
                writer.close()
        self._epochs = self._steps = None

    leave = close
