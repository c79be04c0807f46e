"""A user's file with the name of a module, which it hides: queue.py, random.py, types.py beside the script.

Python searches the script's folder first, so `import random` in any library finds the user's file.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

from ddp_core.files import shown

STANDARD = Path(sysconfig.get_paths()["stdlib"])
# Python's messages about a module that is not the intended one. Each has the module's name.
SAID = re.compile(
    r"module '([\w.]+)' has no attribute"
    r"|cannot import name '[\w.]+' from (?:partially initialized module )?'([\w.]+)'"
)
DRAWN = re.compile(r'^\s*(?:[|+] )?File "(.+)", line \d+, in <module>$')


def hidden_module(message: str, lines: tuple[str, ...], script: Path | None) -> tuple[str, str] | None:
    """(the user's file, as a person would type it; the module that it hides), or None.

    message: the error message; lines: the end of the rank's log; script: the program's file, None for a module.
    """
    folder = Path.cwd() if script is None else script.parent
    names = [name.partition(".")[0] for found in SAID.finditer(message) for name in found.groups() if name]
    # The file may itself fail when a library imports it: then it follows that library in the traceback.
    drawn = [Path(found[1]) for line in lines if (found := DRAWN.match(line))]
    names += [path.stem for by, path in pairwise(drawn) if path.parent == folder and _of_a_library(by)]
    for name in names:
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            if file != script and file.is_file() and _elsewhere(name, folder):
                return shown(file), name
    return None


def _of_a_library(path: Path) -> bool:
    """Whether the file belongs to an installed package or to Python's standard library."""
    return {"site-packages", "dist-packages"} & {*path.parts} != set() or STANDARD in path.parents


def _elsewhere(name: str, folder: Path) -> bool:
    """Whether Python or an installed package has a module of that name."""
    if name in sys.stdlib_module_names:
        return True
    # The first entry of sys.path is the launcher's own folder, which the program does not search.
    path = [entry for entry in sys.path[1:] if entry and Path(entry).resolve() != folder]
    return PathFinder.find_spec(name, path) is not None
