"""The contract of every command line here: a mistake is one line on stderr that begins `error:`, and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ddp_core import missing_packages
from ddp_core.errors import OptionError, UserError, line_of

INTERRUPTED = 130


class CommandLine(argparse.ArgumentParser):
    """argparse without abbreviations. Errors: `parse_args` raises OptionError instead of printing the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """What argparse calls for every mistake."""
        raise OptionError(f"{message} (see {self.prog} --help)")


def exit_status(body: Callable[[], int | None]) -> int:
    """Run `body` as a program; its exit status: 2 after a user's mistake, 130 after Ctrl-C, 0 where the reader of a
    pipe has seen enough (`... | head`)."""
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


def discard_stdout() -> None:
    """Send what is still buffered nowhere: Python would try to write it again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
