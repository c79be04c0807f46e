"""Whether a measurement was disturbed: what other processes took of the CPUs meanwhile, as the kernel accounts it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT = 0.10
"""Share of the machine's CPU time that others may take before a window counts as disturbed."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass
class Window:
    """One measured stretch of time. `others`: the share of all CPU time that went to other processes, 0 to 1."""

    others: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether the window may be counted."""
        return self.others <= LIMIT


@contextmanager
def watched() -> Iterator[Window]:
    """Account for the time inside. Children must have ended, and been waited for, before the end of the block."""
    window = Window()
    busy, total, own = *machine_seconds(), _own()
    yield window
    busy_after, total_after, own_after = *machine_seconds(), _own()
    elapsed = max(total_after - total, 1e-9)
    window.others = max(0.0, (busy_after - busy) - (own_after - own)) / elapsed


def machine_seconds() -> tuple[float, float]:
    """Busy and total CPU seconds since boot (proc_stat(5): user nice system idle iowait irq softirq steal)."""
    numbers = [int(word) / _TICKS for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = numbers[3] + numbers[4]
    return sum(numbers) - idle, sum(numbers)


def _own() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
