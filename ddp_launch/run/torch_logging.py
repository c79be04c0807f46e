"""Keeps torch's own log off the launcher's screen; the ranks' output is untouched."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ddp_core.collector import collector_paused

CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"


@contextmanager
def importing_silently() -> Iterator[None]:
    """Import torch inside: no warnings, no garbage collection, and of its C++ side (it reads its log level once) only
    errors."""
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
    """No log of the elastic engine, unless torch's own variable LOGLEVEL asks for it."""
    if "LOGLEVEL" not in os.environ:
        log = logging.getLogger("torch.distributed.elastic")
        log.addHandler(logging.NullHandler())
        log.propagate = False
