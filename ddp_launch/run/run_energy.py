"""The energy that the GPUs of a run use, by their own counters: read before the ranks start, and after they have ended.

Each reading runs in a child process, like all the launcher's readings: a driver that hangs does not delay the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import partial

from ddp_launch.plan.plan import LaunchPlan
from gpu_topology.driver.child_process import InChild
from gpu_topology.driver.energy import read_energy_here, taken
from gpu_topology.driver.library import Note

LIMIT_S = 3.0


class RunEnergy:
    """The energy of one run. The first reading begins at once and covers all GPUs: a restart may use other GPUs."""

    def __init__(self, plan: LaunchPlan) -> None:
        gpus = [gpu for gpu in plan.topology.gpus if gpu.error is None] if plan.selection.indices else []
        self._indices = {gpu.uuid or str(gpu.index): gpu.index for gpu in gpus}
        self._before: Mapping[str, float] = {}
        self._first: InChild[dict[str, float]] | None = None
        with suppress(OSError):  # no process can be started
            self._first = InChild(self._reading) if gpus else None

    @property
    def _reading(self) -> Callable[[Note], dict[str, float]]:
        """The reading of the counters, to be run in a child process."""
        return partial(read_energy_here, tuple(self._indices))

    def started(self) -> None:
        """Collect the first reading, right before the ranks start."""
        if (first := self._first) is not None:
            self._first, self._before = None, _within_limit(lambda: first)

    def taken_by(self, indices: Container[int]) -> dict[int, float]:
        """NVML index -> joules since the first reading, for those of these GPUs that have a counter. Never raises."""
        if not self._before:
            return {}
        after = _within_limit(lambda: InChild(self._reading))
        joules = {self._indices[name]: value for name, value in taken(self._before, after).items()}
        return {index: value for index, value in sorted(joules.items()) if index in indices}


def _within_limit(begin: Callable[[], InChild[dict[str, float]]]) -> Mapping[str, float]:
    """The counters that a child process reads; {} if it fails or takes too long, so that the run is not delayed."""
    found: list[Mapping[str, float]] = []

    def read() -> None:
        """A thread's work: wait for the reading of the child process."""
        with suppress(Exception), begin() as reading:
            found.append(reading.result())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(LIMIT_S)
    return found[0] if found else {}
