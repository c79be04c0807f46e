"""Options of the run as a whole: its length, seed, device and folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run"""

    epochs: int | None = None
    """Passes over the training set (None: by dataset)."""
    target: float | Literal["auto"] | None = None
    """Test accuracy (fraction of 1) that --preset speedrun sizes the run for; auto: by device."""
    stop_after: int | None = None
    """End after so many epochs of --epochs; a run that is resumed goes on as if it had not been ended."""
    seed: int = 0
    """Seed of the data order, augmentation, initial weights and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA when a GPU is visible."""
    out_dir: str | None = None
    """Run folder for the config, history, curves, checkpoints and logs (None: runs/TIME-MODEL)."""
    resume: str | None = None
    """Continue from a checkpoint file or run folder; auto continues the run in --out-dir, if there is one."""
    save_every: str | int = "5m"
    """A checkpoint every so many steps (500) or so much time (90s, 5m), beside those at the ends of epochs; epoch:
    those alone."""
    reproducible: bool = False
    """The same bits on any number of ranks: slower; see docs/training.md."""
    reproducible_shards: int | None = None
    """Logical shards of a global batch under --reproducible, the same for the whole run (None: 8)."""
    step_timeout: float | None = None
    """Seconds without progress after which a rank is taken to hang: it is named with its step and Python stack, and the
    run ends (None: automatic, at least 300; 0: never)."""
    reproducible_threads: int | None = None
    """Threads of each rank on the CPU under --reproducible, the same for the whole run (None: cores / shards)."""
    log_every: int = 20
    """Steps between progress reports; each report waits for the device once."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""
    tune: Literal["lr", "batch", "loader", "estimate"] | None = None
    """In place of training measure: lr at which rates the loss falls, batch which batches fit and their speed, loader
    how many workers suit, estimate what the run will take."""
    target_utilization: float | None = None
    """--tune batch: recommend the smallest batch that keeps the GPU busy for so many percent of the time (None: by
    throughput)."""
    disable_auto: bool = False
    """Take fixed defaults instead of recommendations from the hardware."""
