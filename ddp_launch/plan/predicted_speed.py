"""Predicts the speed of a run on the GPUs of each policy, from calibrations on GPUs of the same models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ddp_train.config.batch_split import split
from ddp_train.config.options import Config
from ddp_train.distributed.load_balance import Speed, divide, seconds_of
from ddp_train.distributed.speed_cache import KnownSpeeds, work_of
from gpu_topology.select.select import POLICIES, Policy, Selection, SelectionError, SelectionRequest, select
from gpu_topology.topology import Topology


def predict(
    topology: Topology, request: SelectionRequest, config: Config, recall: Callable[[str], KnownSpeeds | None]
) -> str | None:
    """Images per second of each policy in one line; None where all GPUs are alike, or nothing was measured on them."""
    if len({gpu.name for gpu in topology.gpus}) < 2 or not config.data.batch_size:
        return None
    known = recall(work_of(config))
    if known is None:
        return None
    told = [words for policy in POLICIES if (words := _policy(topology, request, policy, config, known))]
    return f"predicted from calibrations: {', '.join(told)}" if told else None


def _policy(
    topology: Topology, request: SelectionRequest, policy: Policy, config: Config, known: KnownSpeeds
) -> str | None:
    """The predicted speed of what a policy selects; None where it selects nothing."""
    try:
        selection = select(topology, replace(request, policy=policy))
    except SelectionError:
        return None
    names = [topology.gpu(index).name or "" for index in selection.indices]
    if not names or any(name not in known.speeds for name in names):
        return f"{policy} unknown (not calibrated: --policy mixed does that)" if names else None
    speeds, total = [known.speeds[name] for name in names], config.data.batch_size or 1
    if policy != "mixed":
        seconds = seconds_of(split(total, [1.0] * len(speeds)), speeds) + known.communication * (len(speeds) > 1)
        return f"{policy} ({selection.group}) {total / seconds:,.0f} images/s"
    return _mixed(selection, speeds, total, known.communication)


def _mixed(selection: Selection, speeds: list[Speed], total: int, communication: float) -> str:
    """The predicted speed of different GPUs, each with a share of the batch that matches its speed."""
    division = divide(total, speeds, communication)
    idle = [str(selection.indices[rank]) for rank in division.idle]
    without = f", without GPU {', '.join(idle)}, which would not make it 5% faster" if idle else ""
    shares = " + ".join(map(str, division.samples))
    return f"mixed ({selection.group}) {total / division.seconds:,.0f} images/s by shares {shares}{without}"
