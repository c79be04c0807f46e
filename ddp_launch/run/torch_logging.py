"""Keeps torch's log off the launcher's screen; the ranks' output is untouched."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ddp_core.process import collector_paused

CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"


@contextmanager
def importing_silently() -> Iterator[None]:
    """A block for importing torch: no warnings, no garbage collection, and only errors from torch's C++ log, whose
    level is read once."""
    earlier = os.environ.get(CPP_LEVEL)
    os.environ.setdefault(CPP_LEVEL, "ERROR")
    try:
        with warnings.catch_warnings(), collector_paused():
            warnings.simplefilter("ignore")
            yield
    finally:
        if earlier is None:
            del os.environ[CPP_LEVEL]


def silence_engine() -> None:
    """Turn the elastic engine's log off, unless torch's own variable LOGLEVEL is set."""
    if "LOGLEVEL" not in os.environ:
        log = logging.getLogger("torch.distributed.elastic")
        log.addHandler(logging.NullHandler())
        log.propagate = False
