"""What a training run can be told: one dataclass per subject, each field with its meaning.

A field whose default is None is left to the machine: `auto.py` fills it in from the hardware and
the data, and says why. `config.py` turns these classes into command line options and YAML keys.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "SECTIONS",
    "Config",
    "DataOptions",
    "ModelOptions",
    "OptimOptions",
    "RunOptions",
    "SharedError",
    "UserError",
    "to_dict",
]


class UserError(Exception):
    """A mistake the user can mend: one line naming the option or file, its value and what is accepted."""


class SharedError(UserError):
    """The same UserError on several ranks, of which one `speaks`."""

    def __init__(self, message: str, *, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks


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
    """Run folder for the config, history, curves, checkpoints and logs (None: runs/TIME-MODEL)."""
    resume: str | None = None
    """Continue from a checkpoint file or run folder; auto continues the run in --out-dir, if there is one."""
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
    """Level: minimal is flip; balanced crop and flip; heavy crop, flip and random erasing (None: by dataset)."""
    pipeline: Literal["auto", "resident", "loader"] = "auto"
    """resident holds decoded images in the device's memory; loader has worker processes; auto: resident if they fit."""
    num_workers: int | None = None
    """Loader worker processes per rank (None: by cores)."""
    prefetch_factor: int = 4
    """Batches that each loader worker prepares ahead."""
    image_size: int | None = None
    """Side in pixels that folder images are scaled and cropped to (None: their own where all are alike, else 224)."""
    drop_last: bool = False
    """Leave out the last, partial global batch of an epoch."""
    synthetic_samples: int = 2048
    """Training images of --dataset synthetic (32 x 32, 10 classes)."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str | None = None
    """small, power, a torchvision classification model by name, or package.module:function (None: by hardware)."""
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
    """Peak learning rate (None: by optimizer, at global batch 128, scaled as --lr-scaling says)."""
    lr_scaling: Literal["sqrt", "linear", "none"] | None = None
    """Scale the learning rate with global batch / 128 (None: sqrt, but none when --lr is given)."""
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


SECTIONS = {"run": RunOptions, "data": DataOptions, "model": ModelOptions, "optim": OptimOptions}


@dataclass(frozen=True)
class Config:
    """All options of a run by section; `given` names those that the user set, in a file or as an option."""

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    given: frozenset[str] = frozenset()


def to_dict(config: Config) -> dict[str, Any]:
    """Every option and its value, flat, in the order of options.py."""
    return {k: v for name in SECTIONS for k, v in asdict(getattr(config, name)).items()}
