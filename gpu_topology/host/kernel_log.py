"""Xids: errors of GPUs that NVIDIA's kernel module has written to the kernel's log since boot, where it can be read."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

# "NVRM: Xid (PCI:0000:c1:00): 79, pid=1234, GPU has fallen off the bus." (NVIDIA, Xid Errors)
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})[^)]*\): (\d+)")

# A record has at most 8 KiB (printk, CONSOLE_EXT_LOG_MAX); the kernel keeps some thousands.
_RECORD, _MOST_RECORDS = 8192, 100_000

# Xids that the program itself causes: an illegal address, an exception of the graphics engine, a reset channel.
_OF_PROGRAMS = frozenset((13, 31, 43, 45))


def read_xids(root: Path) -> tuple[tuple[str, int], ...]:
    """(PCI bus id without its function, "0000:c1:00"; Xid), each once, without those that a program causes."""
    if not (root / "proc/driver/nvidia").is_dir():  # without the module there are no such errors
        return ()
    found: dict[tuple[str, int], None] = {}
    with suppress(OSError):  # most users may not read the log
        log = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for _ in range(_MOST_RECORDS):
                try:
                    record = os.read(log, _RECORD)
                except BrokenPipeError:  # that record was overwritten meanwhile
                    continue
                if not record:
                    break
                for bus, number in _XID.findall(record.decode(errors="replace")):
                    if int(number) not in _OF_PROGRAMS:
                        found[bus.lower(), int(number)] = None
        except BlockingIOError:
            pass  # the end of the log
        finally:
            os.close(log)
    return tuple(found)
