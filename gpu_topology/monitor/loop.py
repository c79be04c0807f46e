"""The loop of `monitor`: sample, write, show, wait; until the time is over, Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_topology.monitor.sample_file import open_sample_file
from gpu_topology.monitor.sampler import Sample, open_sampler
from gpu_topology.monitor.usage import Usage, UsageMeter

_ENDS = {signal.SIGINT, signal.SIGTERM}


def watch(
    names: tuple[str, ...], seconds: float, interval: float, out: str | None, show: Callable[[Sample], None]
) -> Usage:
    """Watch the named GPUs (all when there are no names) for `seconds`, 0 for ever, a sample every `interval` seconds.

    The last sample is taken when the time is over. Raises a DriverError, or a TopologyError for a name of no GPU or a
    file that cannot be written.
    """
    meter = UsageMeter()
    with open_sampler(names) as sampler, open_sample_file(out) as write, _signals_held():
        started = time.monotonic()
        end = started + seconds if seconds else float("inf")
        while True:
            sample = sampler.sample()
            meter.add(sample)
            write(sample)
            show(sample)
            now = time.monotonic()
            if now >= end:
                break
            due = started + ((now - started) // interval + 1) * interval
            if signal.sigtimedwait(_ENDS, max(0.0, min(due, end) - now)) is not None:
                break
    return meter.usage()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM until the loop waits for them: no sample is cut in half, on disk or screen."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
