"""Keeps torch's own talk off the launcher's screen, and off its screen alone: the ranks say what they like."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"


@contextmanager
def importing_silently() -> Iterator[None]:
    """Import torch inside: no warnings, and its C++ side, which reads its log level once, reports errors alone."""
    earlier = os.environ.get(CPP_LEVEL)
    os.environ.setdefault(CPP_LEVEL, "ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if earlier is None:
            del os.environ[CPP_LEVEL]


def silence_engine() -> None:
    """No log of the elastic engine, but for those who ask for it by torch's own variable LOGLEVEL."""
    if "LOGLEVEL" not in os.environ:
        log = logging.getLogger("torch.distributed.elastic")
        log.addHandler(logging.NullHandler())
        log.propagate = False
