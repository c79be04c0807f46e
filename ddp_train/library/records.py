"""The records of a user's own loop: its epochs with the user's columns, and the observers that get them."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_core.redaction import redacted
from ddp_train.distributed.process_group import device_name, gpu_uuids
from ddp_train.observers.console import create_progress
from ddp_train.observers.records import OWN_COLUMNS_TAKEN, EpochRecord, Observer, RunFacts
from ddp_train.observers.tensorboard import TensorBoardObserver
from ddp_train.observers.wandb import WandbObserver
from ddp_train.run_folder.files import HistoryObserver, RunFolder

if TYPE_CHECKING:
    from ddp_train.library.run import Run


def number(name: str, value: Any) -> float:
    """A logged value as a number. Errors: UserError that names it."""
    if name in OWN_COLUMNS_TAKEN:
        raise UserError(f"run.log({name}=...): the record has a {name} of its own; take another name")
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    try:
        if isinstance(value, str | bytes | Tensor):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"run.log({name}=...): it takes one number, not a {type(value).__name__}") from None


def rate(optimizer: torch.optim.Optimizer | None) -> float:
    """The learning rate of the first group; NaN before there is an optimizer."""
    return math.nan if optimizer is None else float(optimizer.param_groups[0]["lr"])


def epoch_record(
    *,
    epoch: int,
    loss: float,
    samples: float,
    seconds: float,
    optimizer: torch.optim.Optimizer | None,
    global_batch: int,
    columns: Mapping[str, float],
    extra: Mapping[str, float],
) -> EpochRecord:
    """A finished epoch: what the run knows of it, and the user's columns."""
    return EpochRecord(
        epoch=epoch,
        train_loss=loss,
        train_accuracy=math.nan,
        loss=math.nan,
        accuracy=math.nan,
        learning_rate=rate(optimizer),
        seconds=seconds,
        images_per_second=samples / max(seconds, 1e-9),
        global_batch=global_batch,
        columns=dict(columns),
        extra=dict(extra),
    )


def facts(run: Run, epochs: int, notes: tuple[str, ...]) -> RunFacts:
    """What is known before the first step."""
    networks, loaders, progress = run._networks, run._loaders, run.progress
    return RunFacts(
        name=run.folder.name,
        model=", ".join(type(network).__name__ for network in networks) or "no network",
        parameters=sum(p.numel() for network in networks for p in network.parameters()),
        dataset=type(loaders[0].dataset).__name__ if loaders else "no data",
        device=device_name(run.device),
        world_size=run.world_size,
        epochs=epochs,
        steps_per_epoch=loaders[0].steps_per_epoch if loaders else 0,
        global_batch=loaders[0].batch_size if loaders else 0,
        out_dir=str(run.folder),
        gpu_uuids=gpu_uuids(run.ranks, run.device),
        notes=notes,
        start_epoch=progress.epoch + 1,
        start_step=progress.step_in_epoch,
        steps_before=progress.step,
        seconds_before=progress.total_seconds + progress.seconds,
        own_columns=True,
    )


def observers(
    run: Run, about: RunFacts, source: Path | None, *, tensorboard: bool, wandb: str | None
) -> tuple[Observer, ...]:
    """The observers of rank 0, the history first: what the others show must already be on the disk."""
    if not run.is_first:
        return ()
    folder = RunFolder(run.folder)
    environment: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "model": about.model,
        "parameters": about.parameters,
        "dataset": about.dataset,
        "device": about.device,
        "world_size": about.world_size,
        "threads_per_rank": torch.get_num_threads(),
        "command": [sys.argv[0], *redacted(sys.argv[1:])],
    }
    history = folder.open_history(environment, run.progress.epoch, source)
    if wandb is not None and find_spec("wandb") is None:
        raise UserError("Run(wandb=...) needs the package wandb: pip install wandb")
    found: list[Observer] = [HistoryObserver(history, folder.curves), create_progress()]
    if tensorboard:
        found.append(TensorBoardObserver(folder.tensorboard))
    if wandb is not None:
        found.append(WandbObserver(folder.path, wandb, {"seed": run.seed, "global_batch": about.global_batch}))
    return tuple(found)
