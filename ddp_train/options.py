"""What a training run can be told: one dataclass per subject, each field with its meaning.

A field whose default is None is left to the machine: `auto.py` fills it in from the hardware and
the data, and says why. `config.py` turns these classes into command line options and YAML keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DataOptions", "ModelOptions", "OptimOptions", "RunOptions", "UserError"]


class UserError(Exception):
    """A mistake the user can mend: one line naming the option or file, its value and what is accepted."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run"""

    epochs: int | None = None
    """Passes over the training set (None: by dataset)."""
    seed: int = 0
    """Seed of the data order, augmentation, initial weights and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA when a GPU is visible."""
    out_dir: str | None = None
    """Run folder for the config, history, curves, checkpoints and logs (None: runs/DATASET-MODEL-TIME)."""
    resume: str | None = None
    """Continue from a checkpoint file or run folder; auto continues the run in --out-dir and starts afresh where there is none."""
    log_every: int = 20
    """Steps between progress reports; each report waits for the device once."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""
    disable_auto: bool = False
    """Take fixed defaults instead of recommendations from the hardware."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data"""

    dataset: Literal["cifar10", "folder", "digits", "synthetic"] | None = None
    """Dataset; None is CIFAR-10 from --data-dir or by download, and the bundled digits where neither is possible."""
    data_dir: str = "data"
    """Folder with cifar-10-batches-py, or with train/<class>/* and test/<class>/* images."""
    batch_size: int | None = None
    """GLOBAL batch: images per optimizer step over all ranks (None: by hardware)."""
    batch_size_per_rank: int | None = None
    """Images per step and rank, for those who want the global batch to grow with the ranks."""
    accumulate: int = 1
    """Micro-batches per optimizer step; the global batch is divided, so the mathematics does not change."""
    augment: Literal["none", "minimal", "balanced", "heavy"] | None = None
    """Augmentation level: minimal = flip; balanced = crop and flip; heavy = crop, flip and random erasing (None: by dataset)."""
    pipeline: Literal["auto", "resident", "loader"] = "auto"
    """resident keeps decoded images in the device's memory; loader reads them with worker processes; auto takes resident when they fit."""
    num_workers: int | None = None
    """Loader worker processes per rank (None: by cores)."""
    prefetch_factor: int = 4
    """Batches that each loader worker prepares ahead."""
    image_size: int | None = None
    """Side in pixels to which folder images are scaled and cropped (None: their own size where all are alike, else 224)."""
    drop_last: bool = False
    """Leave out the last, partial global batch of an epoch."""
    synthetic_samples: int = 2048
    """Training images of --dataset synthetic (32 x 32, 10 classes)."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str | None = None
    """small, power, or the name of a torchvision classification model (None: by hardware)."""
    width_mult: float | None = None
    """Channel multiplier of power (None: by hardware)."""
    dropout: float | None = None
    """Dropout probability (None: the model's own)."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Automatic mixed precision; auto takes bf16 where it is native, fp16 with loss scaling on older GPUs, else off."""
    channels_last: bool = True
    """Channels-last memory format."""
    compile: bool = False
    """torch.compile the model."""


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimization"""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with Nesterov momentum."""
    lr: float | None = None
    """Peak learning rate (None: 0.1 for sgd, 0.001 for adamw at global batch 128, scaled as --lr-scaling says)."""
    lr_scaling: Literal["sqrt", "linear", "none"] | None = None
    """Multiply the learning rate by the square root of, or linearly with, global batch / 128 (None: sqrt, but none when --lr is given)."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay, on weights only: not on biases and normalisation parameters."""
    scheduler: Literal["cosine", "multistep", "constant"] = "cosine"
    """Learning rate over the run; multistep divides by 10 at 60% and 80%."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from near zero."""
    label_smoothing: float = 0.0
    """Share of the target spread over the other classes."""
    clip_grad: float | None = None
    """Largest norm of the gradient; None does not clip."""
