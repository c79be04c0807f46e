"""The program that a user names, checked before anything starts."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ddp_core.errors import OptionError
from ddp_launch.cli.options import Program


def check_program(program: Program) -> None:
    """Refuse what no rank could start. Errors: OptionError, one line."""
    match program.kind:
        case "script":
            _check_script(program.name)
        case "module":
            _check_module(program.name)
        case "executable":
            if shutil.which(program.name) is None:
                raise OptionError(f"{program.name!r}: no such executable")
        case "trainer":
            pass


def _check_script(name: str) -> None:
    path = Path(name)
    try:
        # A folder or zip file with __main__.py is a program for Python too.
        if path.is_dir() and not (path / "__main__.py").is_file():
            raise OptionError(f"{name!r} is a folder: expected a Python script")
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise OptionError(f"{name!r}: {getattr(error, 'strerror', None) or error}") from None
    if not exists:
        raise OptionError(f"{name!r}: no such script")
    if not os.access(path, os.R_OK):
        raise OptionError(f"{name!r}: this script may not be read by you")


def _check_module(name: str) -> None:
    """The top-level package must be there; what is inside is not imported here."""
    top = name.partition(".")[0]
    # python -m looks in the current folder first, and not beside launch.py.
    folders = [str(Path.cwd()), *sys.path[1:]]
    if top not in sys.builtin_module_names and PathFinder.find_spec(top, folders) is None:
        raise OptionError(f"-m {name!r}: no module named {top!r} here or in this Python")
