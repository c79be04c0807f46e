"""The Python stacks of another process: asked for by a signal, read from what faulthandler wrote, shown as a traceback.

A process that sleeps, computes, waits or holds the GIL answers at once; a stopped one answers when it is continued.
Nothing but the standard library is imported.
"""

from __future__ import annotations

import linecache
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HEAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*:$")
FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')
# Where a rank waits for others: (end of a file's name, function or None for any).
WAITING = (
    ("torch/distributed/distributed_c10d.py", None),
    ("torch/distributed/rendezvous.py", None),
    ("torch/autograd/graph.py", "_engine_run_backward"),
    ("torch/autograd/__init__.py", "backward"),
)
OWN_BACKWARD = "torch/autograd/function.py"
SETTLE_S = 0.03
PAUSE_S = 0.005


@dataclass(frozen=True)
class Frame:
    """One call. `line` is 0 where it is not known."""

    file: str
    line: int
    function: str


def written(file: int, already: int, wait_s: float, writes: Callable[[], bool] | None = None) -> str:
    """What faulthandler writes into `file` after its first `already` bytes, within `wait_s` seconds. `writes`: whether
    it is still writing (see `handles`); None: stop once the file has not grown for a moment."""
    deadline = time.monotonic() + wait_s
    size, since = already, time.monotonic()
    while (now := time.monotonic()) < deadline:
        if writes is not None:
            if not writes():
                break
        elif (grown := os.fstat(file).st_size) != size:
            size, since = grown, now
        elif size > already and now - since > SETTLE_S:
            break
        time.sleep(PAUSE_S)
    return os.pread(file, max(0, os.fstat(file).st_size - already), already).decode(errors="replace")


def handles(pid: int, thread: int, number: int) -> bool:
    """Whether a signal is pending for a thread, or the thread is in its handler, in which the kernel blocks the signal.

    A thread that blocks the signal itself counts as being in the handler. Never raises.
    """
    with suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/task/{thread}/status").read_text(errors="replace").splitlines()
        masks = (line.split()[1] for line in lines if line.startswith(("SigPnd:", "ShdPnd:", "SigBlk:")))
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
    return False


def parse(text: str) -> list[Frame]:
    """The stack that shows what a process does, outermost call first; [] where there is none.

    It is that of the main thread, which took the signal. If that thread only waits for Python backward functions in
    another thread, as with GPUs, it is the stack of the other thread.
    """
    threads: list[tuple[bool, list[Frame]]] = []
    for line in text.splitlines():
        if head := HEAD.match(line):
            threads.append((head[1] == "Current thread", []))
        elif threads and (found := FRAME.match(line)):
            threads[-1][1].insert(0, Frame(found[1], int(found[2]) if found[2].isdigit() else 0, found[3]))
    main = next((frames for current, frames in threads if current), threads[-1][1] if threads else [])
    if waits(main):
        others = (frames for _, frames in threads if frames is not main)
        return next((f for f in others if any(frame.file.endswith(OWN_BACKWARD) for frame in f)), main)
    return main


def waits(frames: list[Frame]) -> bool:
    """Whether this is the stack of a rank that waits for others: its innermost call is a collective, or a backward
    pass: its own work takes no such time, but DistributedDataParallel waits for its all-reduce in it."""
    if not frames:
        return False
    last = frames[-1]
    return any(last.file.endswith(file) and function in (None, last.function) for file, function in WAITING)


def traceback_lines(frames: list[Frame]) -> list[str]:
    """The stack in the form of a Python traceback."""
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        line = f", line {frame.line}" if frame.line else ""
        lines.append(f'  File "{frame.file}"{line}, in {frame.function}')
        with suppress(Exception):
            if source := linecache.getline(frame.file, frame.line).strip():
                lines.append(f"    {source}")
    return lines
