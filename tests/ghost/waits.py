"""Where the host waits for a GPU: by file and line, with what it did and the phase of the run.

The phases are those of the heartbeat. A place is the innermost line of the project that led there.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).parent)


class Wait(NamedTuple):
    """kind: what made the host wait; place: file:line function; phase: of the heartbeat."""

    kind: str
    place: str
    phase: str


class Waits:
    """Every wait of this process so far. mode: that of torch.cuda.set_sync_debug_mode, 0 default, 1 warn, 2 error."""

    def __init__(self) -> None:
        self.counts: Counter[Wait] = Counter()
        self.mode = 0
        self.muted = 0
        self.stuck = False
        """The GPU does not answer any more: whoever waits for it waits for ever."""

    def note(self, kind: str) -> None:
        """The host waits. Errors: RuntimeError, with CUDA's words, while set_sync_debug_mode is "error"."""
        if self.muted:
            return
        while self.stuck:
            time.sleep(0.2)
        self.counts[Wait(kind, place(), phase())] += 1
        if self.mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {kind} at {place()}")
        if self.mode == 1:
            warnings.warn(f"called a synchronizing CUDA operation: {kind}", stacklevel=3)

    def forget(self) -> None:
        self.counts.clear()

    def places(self, at_least: int = 1) -> list[str]:
        """Where the host waited so often or more, and why, in order."""
        found: Counter[str] = Counter()
        for wait, count in self.counts.items():
            found[f"{wait.place}: {wait.kind}"] += count
        return sorted(place for place, count in found.items() if count >= at_least)


def place() -> str:
    """The innermost line of the project, but for this package's."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = code.co_filename
        if name.startswith(str(ROOT)) and not name.startswith(_HERE) and "site-packages" not in name:
            return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno} {code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def phase() -> str:
    heart = sys.modules.get("ddp_train.distributed.heartbeat")
    return heart.heartbeat.phase if heart is not None else ""


def step() -> int:
    """Of the run, from 0; -1 before the first."""
    heart = sys.modules.get("ddp_train.distributed.heartbeat")
    return heart.heartbeat.step if heart is not None else -1
