"""What is refused before anything starts: numbers out of range, options that exclude each other, unusable folders.

Torch-free, so that the launcher refuses once what every worker would refuse.

How often something is done: after so many optimizer steps, or seconds. Torch-free.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_core.errors import UserError
from ddp_train.config.options import Config, to_dict

"""The files of a run folder that a run can go on from."""

# Least and largest value (None: no bound); a third entry says that the least itself is excluded.
RANGES: dict[str, tuple[float | None, float | None, bool]] = {
    "epochs": (1, 10**6, False),
    "target": (0, 0.96, True),
    "stop_after": (1, 10**6, False),
    "target_utilization": (1, 100, False),
    "overfit_one_batch": (1, 10**6, False),
    "seed": (0, 2**63 - 1, False),
    "step_timeout": (0, 10**7, False),
    "log_every": (1, 10**9, False),
    "reproducible_shards": (1, 1024, False),
    "reproducible_threads": (1, 4096, False),
    "batch_size": (1, 10**7, False),
    "batch_size_per_rank": (1, 10**7, False),
    "accumulate": (1, 10**5, False),
    "num_workers": (0, 1024, False),
    "prefetch_factor": (1, 1024, False),
    "image_size": (4, 4096, False),
    "synthetic_samples": (1, 10**7, False),
    "width_mult": (0, 64, True),
    "stochastic_depth": (0, 0.99, False),
    "n_layers": (1, 1000, False),
    "hidden_dim": (8, 16384, False),
    "n_heads": (1, 512, False),
    "dropout": (0, 0.99, False),
    "init_scale": (1, 2**32, False),
    "growth_factor": (1, 1000, True),
    "backoff_factor": (0, 0.99, True),
    "growth_interval": (1, 10**9, False),
    "lr": (0, 1e4, True),
    "momentum": (0, 0.9999, False),
    "beta1": (0, 0.99999, False),
    "beta2": (0, 0.99999, False),
    "eps": (0, 1, False),
    "muon_momentum": (0, 0.9999, False),
    "muon_iterations": (1, 20, False),
    "muon_rest_lr": (0, 1e4, True),
    "sam": (0, 100, False),
    "lookahead": (1, 10**6, False),
    "lookahead_alpha": (0, 1, True),
    "ema": (0, 0.99999, False),
    "swa": (0, 10**6, False),
    "swa_lr": (0, 1e4, True),
    "swa_anneal": (0, 10**6, False),
    "weight_decay": (0, 10, False),
    "warmup_epochs": (0, 10**6, False),
    "eta_min": (0, 1e4, False),
    "step_size": (1, 10**6, False),
    "gamma": (0, 1, True),
    "t_0": (1, 10**6, False),
    "t_mult": (1, 100, False),
    "pct_start": (0, 0.99, True),
    "patience": (0, 10**6, False),
    "early_stopping": (1, 10**6, False),
    "min_delta": (0, 1, False),
    "label_smoothing": (0, 0.99, False),
    "clip_grad": (0, 1e9, True),
    "crop_padding": (1, 256, False),
    "random_resized_crop": (0, 1, True),
    "rotation": (0, 180, False),
    "randaugment_ops": (0, 16, False),
    "randaugment_magnitude": (0, 30, False),
    "color_jitter": (0, 1, False),
    "grayscale": (0, 1, False),
    "erasing": (0, 1, False),
    "mixup": (0, 100, False),
    "cutmix": (0, 100, False),
    "mixup_prob": (0, 1, False),
    "progressive_resize": (4, 4096, False),
    "progressive_resize_end": (4, 4096, False),
    "progressive_resize_epochs": (1, 10**6, False),
    "tta_below": (0, 1, True),
}

LATEST, PREVIOUS = "checkpoint-latest.pt", "checkpoint-previous.pt"
"""The two generations of a run folder's checkpoint."""


def _installed(package: str) -> bool:
    """Whether `package` can be imported; a folder of its name, such as wandb leaves behind, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


# Combinations that cannot work: what is wrong, and the words for it.
CONFLICTS: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: c.data.batch_size is not None and c.data.batch_size_per_rank is not None,
        "--batch-size (global) and --batch-size-per-rank exclude each other: give one",
    ),
    (
        lambda c: c.data.batch_size is not None and (c.data.accumulate or 1) > c.data.batch_size,
        "--accumulate is larger than --batch-size: a micro-batch needs at least one image",
    ),
    (
        lambda c: c.run.target is not None and c.model.model != "speedrun",
        "--target sizes the runs of --preset speedrun alone",
    ),
    (
        lambda c: c.run.target is not None and c.run.disable_auto,
        "--target with --disable-auto: the size of the run follows from the target",
    ),
    (
        lambda c: c.run.reproducible_shards is not None and "reproducible_shards" in c.given and not c.run.reproducible,
        "--reproducible-shards needs --reproducible",
    ),
    (
        lambda c: (
            c.run.reproducible_threads is not None and "reproducible_threads" in c.given and not c.run.reproducible
        ),
        "--reproducible-threads needs --reproducible",
    ),
    (
        lambda c: c.run.reproducible and c.data.batch_size_per_rank is not None,
        "--reproducible with --batch-size-per-rank: the global batch would follow the number of ranks: "
        "give --batch-size",
    ),
    (
        lambda c: (c.data.batch_size or math.inf) < (c.shards or 1) * (c.data.accumulate or 1),
        "--reproducible with a --batch-size below its logical shards (8, or --reproducible-shards) times --accumulate: "
        "each shard and micro-batch needs at least one image",
    ),
    (
        lambda c: c.run.reproducible and c.model.sync_batch_norm,
        "--reproducible with --sync-batch-norm: the statistics are those of a logical shard",
    ),
    (
        lambda c: c.run.reproducible and c.data.shares == "measured",
        "--reproducible with --shares measured: which rank has which samples would follow its speed",
    ),
    (
        lambda c: c.run.reproducible and c.model.compile,
        "--reproducible with --compile: compiled kernels are chosen by their time, and their sums follow",
    ),
    (
        lambda c: c.data.image_size is not None and c.data.dataset in ("digits", "synthetic"),
        "--image-size is for folders of images: digits and synthetic have a size of their own",
    ),
    (
        lambda c: (
            c.optim.amsgrad and (c.optim.muon_rest if c.optim.optimizer == "muon" else c.optim.optimizer) == "sgd"
        ),
        "--amsgrad is for adam and adamw (also as --muon-rest adamw): sgd keeps no squares of gradients",
    ),
    (
        lambda c: c.regularize.ema is not None and c.regularize.swa is not None,
        "--ema and --swa exclude each other: each evaluates an average of its own",
    ),
    (
        lambda c: c.model.model != "vit" and (c.model.hidden_dim, c.model.n_heads, c.model.attention) != (None,) * 3,
        "--hidden-dim, --n-heads and --attention are for --model vit",
    ),
    (
        lambda c: c.model.model not in ("vit", "wideresnet") and c.model.n_layers is not None,
        "--n-layers is for --model vit and wideresnet",
    ),
    (
        lambda c: bool(c.model.hidden_dim and c.model.n_heads and c.model.hidden_dim % c.model.n_heads),
        "--hidden-dim must be a multiple of --n-heads: each head has an equal part",
    ),
    (
        lambda c: bool(c.regularize.stochastic_depth) and c.model.model in ("small", "power"),
        "--stochastic-depth drops residual branches, which small and power have not: take residual, wideresnet, "
        "resnet18 or vit",
    ),
    (
        lambda c: c.model.compile and c.model.checkpoint_activations,
        "--checkpoint-activations with --compile: torch.compile decides by itself what is computed again",
    ),
    (
        lambda c: c.model.compile_mode is not None and not c.model.compile,
        "--compile-mode needs --compile",
    ),
    (
        lambda c: c.model.compile_mode not in (None, "default") and (c.data.accumulate or 1) > 1,
        "--compile-mode reduce-overhead and max-autotune record CUDA graphs, whose gradients the next micro-batch "
        "overwrites: without --accumulate, or with --compile-mode default",
    ),
    (
        lambda c: c.model.amp == "fp16" and c.run.device == "cpu",
        "--amp fp16 needs a GPU (GradScaler); on the CPU use --amp off, or bf16 where the CPU computes it natively",
    ),
    (
        lambda c: c.augment.flip in ("random", "alternating") and c.data.dataset == "digits",
        "--flip on --dataset digits: a mirrored digit is not of its class; leave it out",
    ),
    (
        lambda c: c.augment.crop_padding is not None and c.augment.augment in ("none", "minimal"),
        "--crop-padding is for --augment balanced and heavy: the others have no crop",
    ),
    (
        lambda c: c.augment.crop_padding is not None and c.augment.random_resized_crop is not None,
        "--crop-padding and --random-resized-crop exclude each other: one crop takes the other's place",
    ),
    (
        lambda c: (
            c.augment.augment_policy != "randaugment"
            and (c.augment.randaugment_ops, c.augment.randaugment_magnitude) != (None, None)
        ),
        "--randaugment-ops and --randaugment-magnitude are for --augment-policy randaugment",
    ),
    (
        lambda c: (
            c.augment.progressive_resize is None
            and (c.augment.progressive_resize_end, c.augment.progressive_resize_epochs) != (None, None)
        ),
        "--progressive-resize-end and --progressive-resize-epochs need --progressive-resize START",
    ),
    (
        lambda c: (c.augment.progressive_resize or 0) > (c.augment.progressive_resize_end or 4096),
        "--progressive-resize is above --progressive-resize-end: images grow",
    ),
    (
        lambda c: c.looking.overfit_one_batch is not None and c.run.tune is not None,
        "--overfit-one-batch and --tune exclude each other: each takes the place of training",
    ),
    (
        lambda c: c.run.target_utilization is not None and c.run.tune != "batch",
        "--target-utilization is for --tune batch",
    ),
    (
        lambda c: c.looking.tta_below is not None and c.looking.tta == "none",
        "--tta-below is for --tta flip and flip+shifts",
    ),
    (
        lambda c: c.looking.tta != "none" and not c.looking.examine,
        "--tta is part of the examination at the end: leave --no-examine out",
    ),
    (
        lambda c: c.looking.tta != "none" and c.data.dataset == "digits",
        "--tta on --dataset digits: a mirrored digit is not of its class; leave it out",
    ),
    (
        lambda c: c.looking.wandb and not _installed("wandb"),
        "--wandb needs the package wandb: pip install wandb",
    ),
    (
        lambda c: c.looking.histograms and not c.run.tensorboard,
        "--histograms go into TensorBoard's files: leave --no-tensorboard out",
    ),
)


def check_values(config: Config, texts: Mapping[str, str] | None = None) -> None:
    """Refuse numbers out of range, empty texts and combinations that cannot work. Errors: UserError.

    `texts`: options as they were written, by name, for the words.
    """
    for name, value in to_dict(config).items():
        option = "--" + name.replace("_", "-")
        if name in RANGES and isinstance(value, int | float):
            least, most, open_end = RANGES[name]
            low = least is not None and (value <= least if open_end else value < least)
            if low or (most is not None and value > most) or not math.isfinite(value):
                raise UserError(f"{option} takes a number {bounds(name)}, not {(texts or {}).get(name, value)}")
        if isinstance(value, str) and ("\0" in value or not value):
            raise UserError(f"{option} takes a non-empty text, not {value!r}")
    read_interval(str(config.run.save_every), "--save-every")
    milestones(config.schedule.milestones)
    for wrong, message in CONFLICTS:
        if wrong(config):
            raise UserError(message)


def milestones(text: str) -> tuple[float, ...]:
    """The numbers of `--milestones`. Errors: UserError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= at < math.inf for at in found):
        raise UserError(f"--milestones takes numbers of at least 0 separated by commas, not {text!r}")
    return found


def bounds(name: str) -> str:
    """The range of a numeric option in words; empty where it has none."""
    if name not in RANGES:
        return ""
    least, most, open_end = RANGES[name]
    return f"{'above' if open_end else 'at least'} {least:g} and at most {most:g}"


def resume_file(config: Config) -> Path | None:
    """The checkpoint to continue from; None for a fresh start. UserError when a named one is missing."""
    return resume_target(config.run.resume, config.run.out_dir)


def resume_target(resume: str | None, out_dir: str | None) -> Path | None:
    """The checkpoint that `--resume` and `--out-dir` name; None when there is nothing to continue.

    Of a folder it is checkpoint-latest.pt, which stands for both generations: the one before may be alone there.
    """
    if resume is None:
        return None
    if resume == "auto":
        folder = Path(out_dir) if out_dir else None
        return folder / LATEST if folder is not None and _has_checkpoint(folder) else None
    path = Path(resume)
    there = _has_checkpoint(path) if path.is_dir() else path.is_file()
    path = path / LATEST if path.is_dir() else path
    if not there:
        raise UserError(f"--resume {resume}: there is no checkpoint {path}")
    return path


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (LATEST, PREVIOUS))


def check_paths(config: Config, *, create: bool = False) -> None:
    """Refuse folders that cannot be used, before anything starts.

    With `create`, the run folder is made and written to once; without, only looked at. Errors: UserError.
    """
    data_dir = Path(config.data.data_dir)
    given = "data_dir" in config.given and config.data.dataset is None
    if (given or config.data.dataset == "folder") and not data_dir.is_dir():
        what = "is not a folder" if data_dir.exists() else "does not exist"
        expected = "cifar-10-batches-py, or train/CLASS/* and test/CLASS/* images"
        raise UserError(f"--data-dir {data_dir}: {what} (expected there: {expected})")
    resume_file(config)
    out_dir = Path(config.run.out_dir or "runs")
    try:
        if create:
            out_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out_dir):
                pass
        else:
            _check_writable(out_dir)
    except OSError as error:
        raise UserError(f"--out-dir {out_dir}: cannot be written ({error.strerror or error})") from None


def _check_writable(folder: Path) -> None:
    """OSError when `folder`, or the nearest existing folder above it, takes no new files."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    if not existing.is_dir():
        raise NotADirectoryError(0, f"{existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        reason = f"{existing} is on a read-only file system" if read_only else f"no permission to write into {existing}"
        raise PermissionError(0, reason)


_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
ACCEPTED = 'steps ("500"), a time ("90s", "5m", "1h"), or "epoch" for the ends of epochs alone'
LONGEST_S = 10**9


@dataclass(frozen=True)
class Interval:
    """Every `steps` optimizer steps or every `seconds`; both None: never."""

    steps: int | None = None
    seconds: float | None = None


def read_interval(text: str, option: str) -> Interval:
    """`text` as an interval. Errors: UserError that names `option`."""
    if text.strip().lower() == "epoch":
        return Interval()
    match = _FORM.fullmatch(text.strip())
    number, unit = (match[1], match[2].lower()) if match else ("", "")
    unit = unit if unit in _SECONDS or unit == "" else unit.removesuffix("s")
    if match and unit in ("", "step") and number.isdecimal() and len(number) < 20 and 1 <= int(number) <= LONGEST_S:
        return Interval(steps=int(number))
    if match and unit in _SECONDS and 0 < float(number) * _SECONDS[unit] <= LONGEST_S:
        return Interval(seconds=float(number) * _SECONDS[unit])
    raise UserError(f"{option} takes {ACCEPTED}, not {text!r}")
