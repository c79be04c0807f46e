"""The records of a run in Weights & Biases (`--wandb`); the package wandb is imported when the run starts.

wandb reads WANDB_MODE, WANDB_API_KEY and its other variables itself: WANDB_MODE=offline needs no account, and
`wandb sync` sends the run later.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.observers.records import Best, EpochRecord, Observer, RunFacts, StepReport

NAMES = ("train_loss", "train_accuracy", "learning_rate", "images_per_second", "seconds")


class WandbObserver(Observer):
    """Logs step numbers over "step" and epoch numbers over "epoch"; a resumed run continues the same W&B run.

    `config`: every option of the run, by name. The run's id is kept in `folder`/wandb_id.txt.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, object]) -> None:
        self._folder, self._project, self._config = folder, project, config
        self._run: Any = None
        self._finished = False

    def on_start(self, facts: RunFacts) -> None:
        """Start the W&B run. Errors: UserError, one line, where wandb cannot."""
        import wandb

        kept = self._folder / "wandb_id.txt"
        resumed = facts.steps_before > 0 and kept.is_file()
        name = kept.read_text(encoding="utf-8").strip() if resumed else secrets.token_hex(4)
        write_text(kept, name + "\n")
        about = {"parameters": facts.parameters, "device": facts.device, "world_size": facts.world_size}
        where = {"project": self._project, "name": facts.name, "id": name, "dir": str(self._folder)}
        try:
            self._run = wandb.init(**where, resume="allow", config={**self._config, **about})
        except Exception as error:  # wandb has its own kinds, which differ between its versions
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--wandb: could not start ({reason}); WANDB_MODE=offline needs no account") from None
        for part in ("step", "epoch"):
            self._run.define_metric(f"{part}/*", step_metric=part)

    def on_step(self, report: StepReport) -> None:
        """Loss, learning rate and what techniques report, over the optimizer step of the run, from 1."""
        numbers = {"loss": report.loss, "learning_rate": report.learning_rate, **report.extra}
        self._log("step", report.run_step, numbers)

    def on_epoch(self, record: EpochRecord) -> None:
        """Every number of the record, over the epoch."""
        evaluated = {f"{record.split}_loss": record.loss, f"{record.split}_accuracy": record.accuracy}
        numbers = {name: getattr(record, name) for name in NAMES}
        self._log("epoch", record.epoch, {**numbers, **evaluated, **record.columns, **record.extra})

    def _log(self, part: str, at: int, numbers: Mapping[str, float]) -> None:
        """Log the finite numbers."""
        if self._run is not None:
            finite = {f"{part}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
            self._run.log({part: at, **finite})

    def on_end(self, best: Best) -> None:
        """Put the best epoch into the W&B summary."""
        self._finished = True
        if self._run is not None and best.epoch is not None:
            self._run.summary["best_epoch"] = best.epoch
            self._run.summary[f"best_{best.split}_accuracy"] = best.accuracy

    def close(self) -> None:
        """End the W&B run, as failed where the run was."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._finished else 1)
            self._run = None
