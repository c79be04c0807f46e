"""Measures how fast each rank is: a few steps of several sizes on all ranks at once, without communication."""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from ddp_train.distributed.load_balance import Speed
from ddp_train.distributed.process_group import wait_for_device
from ddp_train.engine.components import Components
from ddp_train.tune.memory import memory_of
from ddp_train.tune.preserve import preserved
from ddp_train.tune.steps import Steps, fit, largest_over_ranks

REPEATS = 5
MARGIN = 0.1


def calibrate(components: Components, micro_batch: int, accumulate: int) -> Speed:
    """Measure this rank's speed by steps of 0.5, 1 and 2 times `micro_batch` samples; all ranks measure at once.

    A step of `accumulate` micro-batches pays the fixed part `accumulate` times. The GPU's memory sets the sample limit.
    """
    sizes = sorted({max(2, micro_batch // 2), max(3, micro_batch), max(4, 2 * micro_batch)})
    steps, memory = Steps(components), memory_of(components.device) if components.device.type == "cuda" else None
    times, peaks = [], []
    with preserved(components.network):
        steps.gradients(sizes[0])  # kernels are chosen and caches filled in the first step
        for size in sizes:
            if memory is not None:
                memory.reset()
            times.append((float(size), _median_time(steps, components, size)))
            if memory is not None:
                peaks.append((float(size), float(memory.peak() or 0)))
        limit = memory.limit if memory is not None else None
    line, room = fit(times), fit(peaks)
    assert line is not None
    largest, seconds = times[-1]
    fixed = max(0.0, line.intercept)
    each = line.slope if line.slope > 0 else max((seconds - fixed) / largest, 1e-9)
    most = None
    if limit is not None and room is not None and room.slope > 0:
        most = accumulate * max(1, int(((1 - MARGIN) * limit - room.intercept) / room.slope))
    return Speed(fixed * accumulate, each, most)


def slowdown(components: Components, speed: Speed, samples: int, accumulate: int) -> float:
    """The time of a step of `samples` samples on this rank now, relative to the time by `speed`; 1 without samples."""
    micro_batch = max(2, samples // accumulate)
    if not samples:
        return 1.0
    steps = Steps(components)
    with preserved(components.network):
        steps.gradients(micro_batch)
        taken = _median_time(steps, components, micro_batch)
    return taken / (speed.fixed / accumulate + speed.each * micro_batch)


def _median_time(steps: Steps, components: Components, size: int) -> float:
    """Median seconds of a forward and backward pass over `size` samples."""
    taken = []
    for _ in range(REPEATS):
        wait_for_device(components.device)
        begun = time.perf_counter()
        steps.gradients(size)
        wait_for_device(components.device)
        taken.append(time.perf_counter() - begun)
        components.network.zero_grad(set_to_none=True)
    return statistics.median(taken)


def measure_communication(components: Components) -> float:
    """Seconds of an all-reduce as large as the gradient, the same on all ranks: the longest of the ranks' medians."""
    numbers = sum(p.numel() for p in components.network.parameters() if p.requires_grad)
    gradient, taken = torch.zeros(numbers, device=components.device), []
    for _ in range(REPEATS + 1):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(gradient)
        wait_for_device(components.device)
        taken.append(time.perf_counter() - begun)
    return largest_over_ranks(components.device, statistics.median(taken[1:]))[0]
