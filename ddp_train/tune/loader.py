"""`--tune loader`: measures how images should reach the device: resident, or by how many worker processes.

Each setting delivers batches for a short while and nothing is trained; the first batches, while workers start, are not
counted. Resident is recommended where the images fit, else the fewest workers within 5% of the best rate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ddp_train.data.pipeline.window import Pipeline
from ddp_train.distributed.process_group import wait_for_device

TOLERANCE = 0.05
PREFETCH = (2, 4, 8)


@dataclass(frozen=True)
class Setting:
    """A way to load images; `workers` None: resident. `rate`: images per second on this rank, None: not measured."""

    workers: int | None
    prefetch: int | None = None
    rate: float | None = None

    @property
    def options(self) -> str:
        """The trainer's options for this setting."""
        if self.workers is None:
            return "--pipeline resident"
        prefetch = f" --prefetch-factor {self.prefetch}" if self.prefetch is not None else ""
        return f"--pipeline loader --num-workers {self.workers}{prefetch}"


@dataclass(frozen=True)
class Found:
    """All settings in the order in which they were tried, and the one to use."""

    settings: tuple[Setting, ...]
    recommended: Setting
    reason: str


def candidates(cores: int) -> list[int]:
    """Numbers of workers for a rank that has so many cores: 0, powers of two, and all of them."""
    return sorted({0, *(2**k for k in range(10) if 2**k < cores), max(1, cores)})


def find_loader(
    make: Callable[[Setting], Pipeline | None], cores: int, device: torch.device, *, time_limit_s: float = 30.0
) -> Found:
    """Try resident, then the numbers of workers, then prefetching with the best of them.

    make: builds the pipeline of a setting; None where that is impossible (images that do not fit).
    """
    plan = [Setting(None), *(Setting(workers, 4 if workers else None) for workers in candidates(cores))]
    each = time_limit_s / (len(plan) + len(PREFETCH) - 1)
    done = [_measured(setting, make(setting), device, each) for setting in plan]
    loaders = [setting for setting in done if setting.workers and setting.rate is not None]
    if loaders:
        best = max(loaders, key=lambda setting: setting.rate or 0.0)
        more = [Setting(best.workers, prefetch) for prefetch in PREFETCH if prefetch != best.prefetch]
        done += [_measured(setting, make(setting), device, each) for setting in more]
    return choose(done)


def choose(settings: Sequence[Setting]) -> Found:
    """The fewest workers, then the least prefetching, within 5% of the best rate; resident where it is among them."""
    known = [setting for setting in settings if setting.rate is not None]
    resident = next((setting for setting in known if setting.workers is None), None)
    if resident is not None:
        return Found(tuple(settings), resident, "the images fit into the device's memory, and nothing is read again")
    best = max(setting.rate or 0.0 for setting in known)
    near = [setting for setting in known if (setting.rate or 0.0) >= (1 - TOLERANCE) * best]
    chosen = min(near, key=lambda setting: (setting.workers or 0, setting.prefetch or 0))
    return Found(tuple(settings), chosen, f"the fewest workers within {TOLERANCE:.0%} of the best rate")


def _measured(setting: Setting, pipeline: Pipeline | None, device: torch.device, seconds: float) -> Setting:
    """The setting with the images per second that it reached."""
    if pipeline is None:
        return setting
    images, begun, started = 0, 0.0, time.perf_counter()
    epochs = (pipeline.train(epoch) for epoch in itertools.count())
    for index, window in enumerate(itertools.chain.from_iterable(epochs)):
        count = sum(len(batch.labels) for batch in window.batches)
        wait_for_device(device)
        now = time.perf_counter()
        if index == 0 or (begun == 0.0 and now - started < seconds / 4):
            continue  # workers start, and fill their queues
        if begun == 0.0:
            begun = now
            continue
        images += count
        if now - begun > 3 * seconds / 4 or now - started > seconds:
            break
    return Setting(setting.workers, setting.prefetch, images / max(1e-9, now - begun))


def table(found: Found) -> str:
    """One line for each setting."""
    lines = ["images/s on a rank   options"]
    for setting in found.settings:
        rate = "does not fit" if setting.rate is None else f"{setting.rate:,.0f}"
        mark = "  <- recommended" if setting == found.recommended else ""
        lines.append(f"{rate:>18}   {setting.options}{mark}")
    return "\n".join([*lines, f"recommended: {found.recommended.options} ({found.reason})"])
