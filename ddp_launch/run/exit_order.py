"""When each rank ended, in the true order: polling cannot tell a failure from its consequences.

A process descriptor (pidfd_open(2)) becomes readable when its process ends, and epoll(7) returns descriptors in the
order in which they became ready: the order is the kernel's, however late this process gets to look.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

NOTED_WITHIN_S = 1.0
LATER_MS = 1e-3


class Endings:
    """Notes the end of each rank. `pids`: local rank -> process id of a child of this process."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        self._noted: dict[int, float] = {}
        self._condition = threading.Condition()
        try:
            descriptors = {os.pidfd_open(pid): rank for rank, pid in pids.items()}
        except (OSError, AttributeError):
            # No pidfd_open (before Linux 5.3, or forbidden): use a thread for each rank, and the threads' order.
            for rank, pid in pids.items():
                threading.Thread(target=self._wait, args=(rank, pid), daemon=True).start()
        else:
            # Register all of them first: ranks that have ended by then are reported in the order of registration.
            ready = select.epoll()
            for descriptor in descriptors:
                ready.register(descriptor, select.EPOLLIN)
            threading.Thread(target=self._watch, args=(ready, descriptors), daemon=True).start()

    def ended_ms(self, ranks: Iterable[int]) -> dict[int, float]:
        """When these ranks ended (all of them have): distinct milliseconds of the monotonic clock."""
        wanted = set(ranks)
        with self._condition:
            self._condition.wait_for(lambda: wanted <= self._noted.keys(), NOTED_WITHIN_S)
            for rank in sorted(wanted - self._noted.keys()):
                self._note(rank)
            return {rank: self._noted[rank] for rank in wanted}

    def _watch(self, ready: select.epoll, descriptors: Mapping[int, int]) -> None:
        """A thread's work: note the ranks in the order in which their descriptors became readable."""
        with ready:
            left = len(descriptors)
            while left:
                for descriptor, _ in ready.poll():
                    with self._condition:
                        self._note(descriptors[descriptor])
                    os.close(descriptor)
                    left -= 1

    def _wait(self, rank: int, pid: int) -> None:
        """A thread's work: wait for one rank and note its end."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with self._condition:
            self._note(rank)

    def _note(self, rank: int) -> None:
        """Note the end of a rank, later than all others. Condition held."""
        latest = max(self._noted.values(), default=0.0)
        self._noted.setdefault(rank, max(time.monotonic() * 1000, latest + LATER_MS))
        self._condition.notify_all()
