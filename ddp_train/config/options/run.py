"""Options of the run as a whole (its length, seed, device and folder), and of diagnostics and records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run"""

    epochs: int | None = option(None, "Passes over the training set (default: by dataset).", Range(1, 10**6))
    target: float | Literal["auto"] | None = option(
        None,
        "Test accuracy on CIFAR-10 (fraction of 1) that --preset speedrun sizes the run for, in the mean of many runs: "
        "plain; with test-time augmentation above 0.94 and on a GPU. auto: by device.",
        Range(0, 0.96, exclusive=True),
        excludes={When("disable_auto"): "the size of the run follows from the target"},
    )
    stop_after: int | None = option(
        None,
        "Stop after this many of the --epochs; a resumed run continues as if it had not been stopped.",
        Range(1, 10**6),
    )
    seed: int = option(0, "Seed of the data order, augmentation, initial weights and dropout.", Range(0, 2**63 - 1))
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to train; auto: CUDA when a GPU is visible.")
    out_dir: str | None = option(
        None, "Run folder for config, history, curves, checkpoints and logs (default: runs/TIME-MODEL)."
    )
    resume: str | None = option(
        None, "Continue from a checkpoint file or run folder; auto: continue the run in --out-dir, if there is one."
    )
    save_every: str | int = option(
        "5m",
        "Save a checkpoint every N steps (500) or every so much time (90s, 5m), and after each epoch; epoch: only "
        "after each epoch.",
    )
    reproducible: bool = option(
        False,
        "The same bits on any number of ranks: slower; see docs/training.md.",
        excludes={
            When("batch_size_per_rank"): "the global batch would depend on the number of ranks; use --batch-size",
            When("sync_batch_norm"): "batch norm takes its statistics from one logical shard",
            When("shares", "measured"): "the samples of a rank would depend on its speed",
            When("compile"): "compiled kernels are chosen by timing, which changes the order of their sums",
        },
    )
    reproducible_shards: int | None = option(
        None,
        "Logical shards of a global batch, the same for the whole run (default: 8).",
        Range(1, 1024),
        only_with=When("reproducible"),
    )
    step_timeout: float | None = option(
        None,
        "Seconds without progress after which a rank counts as hung: its step and Python stack are printed, and the "
        "run ends (default: automatic, at least 300; 0: never).",
        Range(0, 10**7),
    )
    reproducible_threads: int | None = option(
        None,
        "CPU threads of each rank, the same for the whole run (default: cores / shards).",
        Range(1, 4096),
        only_with=When("reproducible"),
    )
    log_every: int | None = option(
        None,
        "Steps between progress reports, which wait for the device once, and between lines in a log or pipe (default: "
        "20, and a line every 30 s).",
        Range(1, 10**9),
    )
    tensorboard: bool = option(True, "Write TensorBoard event files into the run folder.")
    tune: Literal["lr", "batch", "loader", "estimate"] | None = option(
        None,
        "Measure instead of training. lr: the rates at which the loss falls; batch: which batches fit and how fast "
        "they are; loader: how many workers to use; estimate: what the run will take.",
    )
    target_utilization: float | None = option(
        None,
        "Recommend the smallest batch that keeps the GPU busy for this percentage of the time (default: by "
        "throughput).",
        Range(1, 100),
        only_with=When("tune", "batch"),
    )
    disable_auto: bool = option(False, "Use fixed defaults instead of recommendations from the hardware.")


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions:
    """Diagnostics and records"""

    gradient_flow: bool = option(
        False, "Record the mean and largest |gradient| of each layer at the progress reports; plotted at the end."
    )
    histograms: bool = option(False, "Histograms of weights and activations in TensorBoard, once an epoch.")
    profile: bool = option(
        False, "Profile five steps after warm-up: a trace and a table of the most expensive operations."
    )
    watch_numbers: bool = option(
        False, "Check every step; a non-finite loss or gradient ends the run and names the layer, step and rank."
    )
    overfit_one_batch: int | None = option(
        None,
        "Instead of training: up to this many steps on one batch, whose loss must fall to near zero (else status 1).",
        Range(1, 10**6),
        excludes={When("tune"): "each replaces the training"},
    )
    initial_loss_check: bool = option(True, "Warn when the loss of the first step is far from ln(classes).")
    memory_growth_check: bool = option(
        True, "Warn when the memory of a process grows evenly from epoch to epoch: which, and by how much."
    )
    memory_report: bool = option(
        False,
        "Peak memory of forward pass, backward pass, optimizer step and evaluation, as a table at the end and as JSON.",
    )
    examine: bool = option(
        True, "At the end of the run: confusion matrix and worst-classified images of the best model."
    )
    tta: Literal["none", "flip", "flip+shifts"] = option(
        "none", "At the end of the run: the best model's accuracy with test-time augmentation as well."
    )
    tta_below: float | None = option(
        None,
        "Augment only test images whose highest probability is below this (default: all).",
        Range(0, 1, exclusive=True),
        only_with=When("tta", "flip", "flip+shifts"),
    )
    wandb: bool = option(
        False, "Also log to Weights & Biases (needs the package wandb; WANDB_MODE=offline needs no account)."
    )
    wandb_project: str = option("ddp-train", "wandb: the project.", only_with=When("wandb"))
