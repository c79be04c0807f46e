"""`--tune batch`: runs the batch finder on the parts of a run; its table and result."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddp_train.config.batch_split import ceil_div
from ddp_train.distributed.process_group import gpu_uuid
from ddp_train.engine.trainer import Trainer
from ddp_train.tune.batch_size import Found, find_batch_size
from ddp_train.tune.memory import memory_of
from ddp_train.tune.steps import Steps

SMALLEST = 2
"""Batch norm needs two samples where an image has shrunk to one pixel."""
TIME_LIMIT_S = 25.0
_MIB = 2**20


def find_for(trainer: Trainer, samples: int, target: float | None = None) -> Found:
    """The per-rank batch for a run on `samples` training images. All ranks take part and find the same.

    target: GPU utilisation in percent. Errors: UserError where not even two samples fit.
    """
    components = trainer.components
    steps = Steps(components)
    return find_batch_size(
        steps.together,
        probe=steps.alone,
        target_utilization=target,
        smallest=SMALLEST,
        largest=max(SMALLEST, samples // components.ranks.world_size),
        time_limit_s=TIME_LIMIT_S,
        memory=memory_of(components.device, components.ranks.local_world_size),
        device=components.device,
        utilization=utilization_of(components.device),
        keep=[components.network, components.optimizer, components.precision.scaler],
    )


def utilization_of(device: torch.device) -> Callable[[], float | None] | None:
    """A function that reads the utilisation of this rank's GPU in percent from the driver; None without a GPU."""
    if device.type != "cuda":
        return None
    from gpu_topology.monitor import read_gpus

    uuid = gpu_uuid(device)

    def read() -> float | None:
        """The utilisation in percent; None where the driver reports none."""
        readings = read_gpus([uuid])
        return readings[0].utilization if readings else None

    return read


def table(found: Found) -> str:
    """One line for each trial: per-rank batch, memory, time, throughput over all ranks; words for what did not fit."""
    driver = any(trial.utilization is not None for trial in found.trials)
    lines = ["per-rank batch  memory MiB     ms/step    images/s" + ("   GPU busy" if driver else "")]
    for trial in found.trials:
        memory = "-" if trial.peak is None else f"{trial.peak / _MIB:,.0f}"
        if trial.seconds is None:
            lines.append(f"{trial.batch:>14,}  {memory:>10}  {'fits' if trial.fits else 'does not fit':>12}")
            continue
        speed = found.ranks * trial.batch / trial.seconds
        busy = "" if trial.utilization is None else f"{trial.utilization:>10.0f}%"
        mark = "  <- recommended" if trial.batch == found.recommended else ""
        lines.append(f"{trial.batch:>14,}  {memory:>10}  {1000 * trial.seconds:>10,.1f}  {speed:>10,.0f}{busy}{mark}")
    return "\n".join(lines)


def verdict(found: Found, global_batch: int) -> str:
    """The result in a few lines, with the options to use."""
    ends = {
        "memory": f"the largest that fits is {found.largest:,} per rank",
        "limit": f"{found.largest:,} per rank fit: more than that would leave ranks without images",
        "time": f"{found.largest:,} per rank fit; larger ones were not tried, the time was up",
    }
    lines = [f"recommended: --batch-size-per-rank {found.recommended} ({found.reason})", ends[found.ended]]
    if found.memory is not None and found.memory.slope > 0:
        fixed, each = found.memory.intercept / _MIB, found.memory.slope / _MIB
        lines.append(f"memory: {fixed:,.0f} MiB + {each:,.3g} MiB for each sample of a rank's micro-batch")
    whole = found.recommended * found.ranks
    if whole != global_batch:
        fewer = "fewer" if whole > global_batch else "more"
        lines.append(f"it makes the global batch {whole:,} in place of {global_batch:,}: {fewer} updates in an epoch")
    parts = ceil_div(ceil_div(global_batch, found.ranks), found.largest)
    fits = "fits as it is" if parts == 1 else f"fits with --accumulate {parts}"
    lines.append(f"the global batch of {global_batch:,} over {found.ranks} rank(s) {fits}")
    return "\n".join(lines)
