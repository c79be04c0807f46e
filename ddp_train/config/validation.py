"""Checks before anything starts: numbers out of range, options that exclude each other, unusable folders.

Torch-free, so that the launcher reports a mistake once that every worker would report. Most rules are declared with the
option (see declaration.py); they are applied here, with the rules that concern several options.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddp_core.errors import UserError
from ddp_core.files import is_file, is_folder, why_no_folder
from ddp_train.config.data_formats import other_format
from ddp_train.config.declaration import flag, is_set
from ddp_train.config.options import Config, declared, to_dict

LATEST, PREVIOUS = "checkpoint-latest.pt", "checkpoint-previous.pt"
"""The two generations of a run folder's checkpoint."""


def _installed(package: str) -> bool:
    """Whether `package` can be imported; a mere folder of that name, such as wandb creates, does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


# Rules that no single field can declare: (whether a config breaks it, message). Checked as typed and as resolved.
RULES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: c.data.batch_size is not None and (c.data.accumulate or 1) > c.data.batch_size,
        "--accumulate is larger than --batch-size: a micro-batch needs at least one image",
    ),
    (
        lambda c: (c.data.resize or math.inf) < (c.data.image_size or 0),
        "--resize is smaller than --image-size: the crop would be larger than the image",
    ),
    (
        lambda c: c.run.target is not None and c.model.model != "speedrun",
        "--target sizes the runs of --preset speedrun alone",
    ),
    (
        lambda c: (c.data.batch_size or math.inf) < (c.shards or 1) * (c.data.accumulate or 1),
        "--reproducible with a --batch-size below its logical shards (8, or --reproducible-shards) times --accumulate: "
        "each shard and micro-batch needs at least one image",
    ),
    (
        lambda c: (
            c.optim.amsgrad
            and "amsgrad" in c.wanted
            and (c.optim.muon_rest if c.optim.optimizer == "muon" else c.optim.optimizer) == "sgd"
        ),
        "--amsgrad is for adam and adamw (also as --muon-rest adamw): sgd keeps no squares of gradients",
    ),
    (
        lambda c: (
            c.schedule.scheduler in ("onecycle", "triangular")
            and "warmup_epochs" in c.wanted
            and c.schedule.warmup_epochs > 0
        ),
        "--warmup-epochs with --scheduler onecycle or triangular: they have a rise of their own, set by --pct-start",
    ),
    (
        lambda c: {"prefetch_factor", "num_workers"} <= c.wanted and c.data.num_workers == 0,
        "--prefetch-factor needs --num-workers above 0: batches are prepared ahead by loader workers",
    ),
    (
        lambda c: (
            "dropout" in c.wanted and ":" in (model := c.model.model or "") and not model.startswith("torchvision:")
        ),
        "--dropout sets the dropout of the models by name; your own function sets its dropout itself",
    ),
    (
        lambda c: bool(c.model.hidden_dim and c.model.n_heads and c.model.hidden_dim % c.model.n_heads),
        "--hidden-dim must be a multiple of --n-heads: each head has an equal part",
    ),
    (
        lambda c: bool(c.regularize.stochastic_depth) and c.model.model in ("small", "power"),
        "--stochastic-depth drops residual branches, which small and power do not have: take residual, "
        "wideresnet, resnet18 or vit",
    ),
    (
        lambda c: c.model.compile_mode not in (None, "default") and (c.data.accumulate or 1) > 1,
        "--compile-mode reduce-overhead and max-autotune record CUDA graphs, whose gradients the next micro-batch "
        "overwrites: leave out --accumulate, or use --compile-mode default",
    ),
    (
        lambda c: c.model.amp == "fp16" and c.run.device == "cpu",
        "--amp fp16 needs a GPU (GradScaler); on the CPU use --amp off, or bf16 where the CPU computes it natively",
    ),
    (
        lambda c: c.augment.flip in ("random", "alternating") and c.data.dataset == "digits",
        "--flip with --dataset digits: a mirrored digit does not belong to its class; leave it out",
    ),
    (
        lambda c: bool(c.augment.cutout and c.augment.erasing),
        "--cutout with --erasing: each erases a part of the image",
    ),
    (
        lambda c: (c.augment.progressive_resize or 0) > (c.augment.progressive_resize_end or 4096),
        "--progressive-resize is larger than --progressive-resize-end: images must grow",
    ),
    (
        lambda c: c.diagnostics.tta != "none" and not c.diagnostics.examine,
        "--tta is part of the examination at the end: leave out --no-examine, or add --tta none (presets may set it)",
    ),
    (
        lambda c: c.diagnostics.tta != "none" and c.data.dataset == "digits",
        "--tta with --dataset digits: a mirrored digit does not belong to its class; leave it out, or add --tta none "
        "(presets may set it)",
    ),
    (
        lambda c: c.diagnostics.histograms and not c.run.tensorboard,
        "--histograms go into TensorBoard's files: leave out --no-tensorboard",
    ),
)


def check(config: Config, *, to_train: bool = True) -> None:
    """Refuse options that cannot work, alone or together. Errors: UserError.

    Called on the options as they are typed, and again on the resolved ones, when the machine has filled in the rest.
    to_train: also refuse those whose package is not installed.
    """
    values = to_dict(config)
    for option in declared().values():
        value, spelled = values[option.name], flag(option.name)
        if option.range is not None and isinstance(value, int | float) and value not in option.range:
            raise UserError(f"{spelled} takes a number {option.range}, not {value}")
        if isinstance(value, str) and ("\0" in value or not value):
            raise UserError(f"{spelled} takes a non-empty text, not {value!r}")
        if option.name in config.wanted and option.only_with is not None and not option.only_with.holds(values):
            raise UserError(f"{spelled} needs {option.only_with}")
        for other, reason in option.excludes.items():
            if is_set(value) and other.holds(values):
                raise UserError(f"{spelled} with {other}: {reason}")
    read_interval(str(config.run.save_every), "--save-every")
    milestones(config.schedule.milestones)
    for wrong, message in RULES:
        if wrong(config):
            raise UserError(message)
    if to_train and config.diagnostics.wandb and not _installed("wandb"):
        raise UserError("--wandb needs the package wandb: pip install wandb")


def milestones(text: str) -> tuple[float, ...]:
    """The numbers of `--milestones`. Errors: UserError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= at < math.inf for at in found):
        raise UserError(f"--milestones takes numbers of at least 0 separated by commas, not {text!r}")
    return found


def resume_file(config: Config) -> Path | None:
    """The checkpoint to continue from; None for a fresh start. UserError when a named one is missing."""
    return resume_target(config.run.resume, config.run.out_dir)


def resume_target(resume: str | None, out_dir: str | None) -> Path | None:
    """The checkpoint that `--resume` and `--out-dir` name; None when there is nothing to continue.

    For a folder it is checkpoint-latest.pt, even if only checkpoint-previous.pt exists.
    """
    if resume is None:
        return None
    if resume == "auto":
        folder = Path(out_dir) if out_dir else None
        return folder / LATEST if folder is not None and _has_checkpoint(folder) else None
    path = Path(resume)
    there = _has_checkpoint(path) if is_folder(path) else is_file(path)
    path = path / LATEST if is_folder(path) else path
    if not there:
        raise UserError(f"--resume {resume}: there is no checkpoint {path}")
    return path


def _has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint."""
    return any(is_file(folder / name) for name in (LATEST, PREVIOUS))


def check_paths(config: Config, *, create: bool = False) -> None:
    """Refuse folders that cannot be used, before anything starts.

    With `create`, the run folder is made and written to once; without, its permissions are read. Errors: UserError.
    """
    data_dir = Path(config.data.data_dir)
    given = "data_dir" in config.given and config.data.dataset is None
    if (given or config.data.dataset == "folder") and not is_folder(data_dir):
        expected = "cifar-10-batches-py, or train/CLASS/* and test/CLASS/* images"
        other = other_format(data_dir)
        raise UserError(
            f"--data-dir {data_dir}: {why_no_folder(data_dir)} (expected there: {expected})"
            f"{f'; this is {other}' * bool(other)}"
        )
    weights = config.regularize.class_weights
    if weights not in (None, "balanced") and not is_file(str(weights)):
        raise UserError(f"--class-weights {weights}: there is no such file; a file or balanced is accepted")
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
