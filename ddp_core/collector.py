"""Imports of large packages without Python's cyclic garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector while the block imports torch, and exempt all that exists at its end from later collections.
    torch's modules live as long as the process; scanning them takes a sixth of the import, and time during training."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
