"""How far a run has come: the small, plain state that a checkpoint carries beside the tensors, and its bad ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """How far a run has come.

    epoch           finished epochs
    step            optimizer steps of the run
    best_epoch      the epoch (from 1) of the best test accuracy, `best_accuracy` (fraction of 1)
    stopped         whether the run was ended before its last epoch
    step_in_epoch   steps of the running epoch
    samples         of the running epoch: the first so many of its global order are consumed
    sums            of the running epoch: loss, correct answers and samples; of this rank's part, in a checkpoint of all
    seconds         that the running epoch has taken
    accumulate      micro-batches of a step since memory ran out; 0: as the options say
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    stopped: bool = False
    step_in_epoch: int = 0
    samples: int = 0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0
    accumulate: int = 0

    @property
    def place(self) -> str:
        """Where a run resumes, as text."""
        if self.step_in_epoch == 0:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1}, after step {self.step_in_epoch}"

    def end_epoch(self) -> None:
        """The running epoch is finished."""
        self.epoch += 1
        self.step_in_epoch, self.samples, self.sums, self.seconds = 0, 0, (0.0, 0.0, 0.0), 0.0
