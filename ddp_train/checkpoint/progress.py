"""How far a run has come, and whether a checkpoint fits this run: the data, their order, and the machine.

A checkpoint from within an epoch marks a position in the global order of that epoch's samples. A run resumes from it
only where that order and the global batches are the same; a checkpoint from an epoch's end also fits other ones.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddp_train.config.options import to_dict
from ddp_train.distributed.process_group import device_name
from ddp_train.technique import Context


@dataclass
class Progress:
    """How far a run has come.

    epoch           finished epochs
    step            optimizer steps of the run
    best_epoch      the best epoch (from 1), by `best_accuracy` (fraction of 1), and among equals by `best_loss`
    best_balanced   balanced accuracy of the best epoch; below 0: unknown
    stopped         whether the run was ended before its last epoch
    step_in_epoch   steps of the running epoch
    samples         consumed samples of the running epoch: the first ones of its global order
    sums            loss, correct answers and samples of the running epoch: on this rank, or in a checkpoint on all
    seconds         time in seconds that the running epoch has taken
    total_seconds   time in seconds that the finished epochs have taken
    accumulate      micro-batches per step since memory ran out; 0: as set by the options
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    best_balanced: float = -1.0
    stopped: bool = False
    step_in_epoch: int = 0
    samples: int = 0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0
    total_seconds: float = 0.0
    accumulate: int = 0

    @property
    def place(self) -> str:
        """Where a run resumes, as text."""
        if self.step_in_epoch == 0:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1}, after step {self.step_in_epoch}"

    def end_epoch(self) -> None:
        """Count the running epoch as finished."""
        self.epoch += 1
        self.step_in_epoch, self.samples, self.sums, self.seconds = 0, 0, (0.0, 0.0, 0.0), 0.0


@dataclass(frozen=True)
class Advice:
    """Advice in messages to the user, in terms of the trainer's options or of a user's own training loop.

    resume, restart   how to get to a step again, with a checkpoint and without
    remedy            what to try when a run has diverged
    saved             how a run that was stopped and saved continues
    option            the option that names the checkpoint to continue from
    """

    resume: str
    restart: str = "the same command"
    remedy: str = "try a lower --lr, more --warmup-epochs, or --clip-grad 1"
    saved: str = "--resume continues from there"
    option: str = "--resume"


# Facts that must be the same to resume within an epoch -> their names in messages.
FIXED = {
    "seed": "--seed",
    "global_batch": "a global batch (--batch-size)",
    "train_samples": "training images",
    "steps_per_epoch": "steps an epoch",
    "balanced_sampling": "--balanced-sampling",
}


def describe_run(context: Context, train_samples: int, shares: Sequence[float]) -> dict[str, Any]:
    """Plain values for a checkpoint. `shares`: weights of the ranks' parts of a global batch."""
    return {
        "seed": context.config.run.seed,
        "global_batch": context.global_batch,
        "train_samples": train_samples,
        "steps_per_epoch": context.steps_per_epoch,
        "balanced_sampling": context.config.data.balanced_sampling,
        "world_size": context.ranks.world_size,
        "shares": list(shares),
        "config": to_dict(context.config),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda},
        "device": device_name(context.device),
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        },
    }


def why_not_resumed(saved: Mapping[str, Any], own: Mapping[str, Any], progress: Progress) -> str | None:
    """Why a run described by `own` cannot resume at `progress` of the run described by `saved`; None: it can."""
    if "config" in saved and (then := _shards(saved)) != (now := _shards(own)):
        return f"its global batches were cut {then}, and those of this run are cut {now}: the bits would be others"
    if "config" in saved and (why := _other_validation_images(saved["config"], own["config"])) is not None:
        return why
    if progress.step_in_epoch == 0:
        return None
    for name, words in FIXED.items():
        if saved.get(name, False) != own[name]:
            return (
                f"it was saved at step {progress.step_in_epoch} of epoch {progress.epoch + 1} of a run with {words} "
                f"{saved.get(name)}, and this one has {own[name]}"
            )
    return None


def machine_differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Differences that may change the bits of a resumed run although its options are the same."""
    facts = [
        {**run.get("versions", {}), "device": run.get("device"), **run.get("determinism", {})} for run in (saved, own)
    ]
    then, now = facts
    changed = [name for name in now if name != "python" and then.get(name) != now[name]]
    return [f"{name} {then.get(name)} -> {now[name]}" for name in changed]


def _other_validation_images(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Why the validation images would be others than in the saved run, some of them trained on; None: they are not.

    Where changed data were accepted, they are drawn anew in any case.
    """
    if own["val_split"] is None or own["changed_data"] == "accept":
        return None
    then, now = ((options.get("val_split"), options.get("seed")) for options in (saved, own))
    if then == now:
        return None
    return (
        f"its --val-split and --seed were {then[0]} and {then[1]}, those of this run are {now[0]} and {now[1]}: "
        "the validation images would include images that were trained on"
    )


def _shards(description: Mapping[str, Any]) -> str:
    """How a run divides its batches, for a message."""
    options = description["config"]
    if not options.get("reproducible"):
        return "by the number of ranks (no --reproducible)"
    return f"into {options['reproducible_shards']} logical shards (--reproducible-shards)"
