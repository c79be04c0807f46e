"""Imports torch, and keeps its log off the launcher's screen; the ranks' output is untouched."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from ddp_core.errors import UserError
from ddp_core.process import collector_paused

CPP_LEVEL, LEVEL = "TORCH_CPP_LOG_LEVEL", "LOGLEVEL"
OFF = logging.CRITICAL + 1


@contextmanager
def importing_silently() -> Iterator[None]:
    """A block for importing torch: no warnings, no garbage collection, and only errors from torch's C++ log, whose
    level is read once. Errors: UserError, one line, where torch cannot be imported."""
    earlier = os.environ.get(CPP_LEVEL)
    os.environ.setdefault(CPP_LEVEL, "ERROR")
    try:
        with warnings.catch_warnings(), collector_paused():
            warnings.simplefilter("ignore")
            _know_the_level()
            try:
                import_module("torch")
            except Exception as error:  # a broken installation, or a variable such as TORCH_LOGS that torch refuses
                message = f"{type(error).__name__}: {error}"
                raise UserError(f"{sys.executable} cannot import torch: {message}") from None
            yield
    finally:
        if earlier is None:
            del os.environ[CPP_LEVEL]


def _know_the_level() -> None:
    """Make LOGLEVEL, which many programs read, a level that Python's logging knows: torch's engine raises for others,
    such as `debug` and `10`."""
    name, known = os.environ.get(LEVEL), logging.getLevelNamesMapping()
    if name is not None and name not in known:
        level = known.get(name.strip().upper(), OFF)
        earlier = logging.getLevelName(level)
        logging.addLevelName(level, name)
        logging.addLevelName(level, earlier)  # what is logged has the usual name


def silence_engine() -> None:
    """Turn the elastic engine's log off, unless torch's own variable LOGLEVEL is set."""
    if LEVEL not in os.environ:
        log = logging.getLogger("torch.distributed.elastic")
        log.addHandler(logging.NullHandler())
        log.propagate = False
