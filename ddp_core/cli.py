"""The contract of every command line here: a mistake is one line on stderr that begins `error:`, and exit status 2."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ddp_core import missing_packages
from ddp_core.errors import OptionError, UserError, line_of

INTERRUPTED = 130

# A size without a unit is in GB, the unit in which memory is sold.
_UNITS = {
    "": 10**9,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_LARGEST_MEMORY = 10**15


class MemorySize(int):
    """A number of bytes; `typed` is the size as the user typed it: "80GB"."""

    typed: str


def memory_size(text: str) -> MemorySize | None:
    """A size of memory: 80, 80G and 80GB are 80 * 10^9 bytes, 80GiB are 80 * 2^30. None for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kmgt]?i?)b?", text.strip(), re.IGNORECASE | re.ASCII)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or float(found[1]) * unit > _LARGEST_MEMORY:
        return None
    size = MemorySize(round(float(found[1]) * unit))
    size.typed = text.strip() if found[2] else f"{found[1]}GB"
    return size


class CommandLine(argparse.ArgumentParser):
    """argparse without abbreviations. Errors: `parse_args` raises OptionError instead of printing the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Called by argparse for every mistake. Errors: OptionError."""
        raise OptionError(f"{message} (see {self.prog} --help)")


def prepare_output() -> None:
    """Make stdout print characters outside its encoding as escapes instead of raising an error; hide FutureWarning,
    which is meant for programmers, unless the user set warning options (-W, PYTHONWARNINGS).

    Where the caller closed stderr (`2>&-`), messages go nowhere: `print` would write them to stdout. Where it ignores
    SIGCHLD, which exec keeps, the default returns: otherwise every child's exit status would be lost and count as 0.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_json(value: object) -> None:
    """Print a value as JSON. Where stdout is not UTF-8 it is ASCII: the escapes of `prepare_output` are no JSON."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(json.dumps(value, indent=2, ensure_ascii=encoding.lower().replace("_", "-") != "utf-8"))


def exit_status(body: Callable[[], int | None]) -> int:
    """Run `body` as a program and return its exit status: the error's own, mostly 2, after a user's mistake; 130 after
    Ctrl-C; 0 where the reader of a pipe closed it early (`... | head`)."""
    prepare_output()
    try:
        status = body() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        print(line_of(error), file=sys.stderr, flush=True)
        return error.status
    except ModuleNotFoundError as error:
        if (mistake := missing_packages.explained(error)) is None:
            raise
        print(line_of(mistake), file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:
        discard_stdout()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def cannot_write(error: OSError) -> int:
    """Report that stdout cannot be written, such as a file on a full disk; the exit status."""
    discard_stdout()
    print(f"error: cannot write the output: {error.strerror or error}", file=sys.stderr)
    return 2


def discard_stdout() -> None:
    """Discard what stdout still buffers: Python would try to write it again at exit, and print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
