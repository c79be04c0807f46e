"""Checks the user's program, and whether the installed packages can run it, before anything starts."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ddp_core.errors import OptionError, UserError
from ddp_core.missing_packages import find_module, need, need_torch
from ddp_launch.cli.options import Program
from ddp_launch.plan.command import Job

PYTHON = re.compile(r"(python|pypy)[0-9.]*")
SHELLS = {".sh": "sh", ".bash": "bash", ".zsh": "zsh", ".fish": "fish", ".pl": "perl"}
"""Interpreters for files without an interpreter line."""
OLDEST_TORCH = (2, 6)
"""In older versions the nodes of a run kept one store for all attempts (DynamicRendezvousHandler of torch 2.5)."""


def check_program(program: Program) -> Program:
    """The program as it will be started: a file in another language is run by the interpreter in its first line.

    Errors: OptionError, one line, for a program that no rank could start.
    """
    match program.kind:
        case "script":
            _check_script(program.name)
            return _in_its_language(program)
        case "module":
            _check_module(program.name)
        case "executable":
            _check_executable(program.name)
        case "trainer":
            pass
    return program


def check_packages(program: Program, job: Job) -> None:
    """Check that the installed packages can run this program and job. Errors: UserError, one line."""
    need("torch", "rich", "psutil")
    oldest = ".".join(map(str, OLDEST_TORCH))
    if program.kind == "trainer":
        need_torch((2, 11), "the trainer", f"a program of your own runs on torch {oldest} or newer")
    need_torch(OLDEST_TORCH, "the launcher")
    if job.virtual_local_rank:
        need_torch((2, 10), "--virtual-local-rank, which several ranks on MIG slices need,", "with --nproc 1 none does")
    if job.debug_rank is not None and find_spec("debugpy") is None:
        raise UserError(f"--debug-rank needs debugpy: {sys.executable} -m pip install debugpy")


def _in_its_language(program: Program) -> Program:
    """The program with the interpreter of its first line, unless that is Python."""
    path = Path(program.name)
    if not path.is_file():
        return program  # a folder with __main__.py, or a pipe
    if path.suffix == ".ipynb":
        # Python would take its JSON for an expression, and do nothing.
        raise OptionError(
            f"{program.name!r} is a notebook: jupyter nbconvert --to script makes a script of it; in the notebook"
            " ddp_launch.launch(function) starts ranks"
        )
    head = _head(path)
    command: tuple[str, ...] = ()
    if head.startswith(b"#!"):
        # As the kernel reads it: the interpreter, and the rest of the line as one argument.
        line = os.fsdecode(head[2:].partition(b"\n")[0]).split(None, 1)
        command = tuple(word.strip() for word in line)
        runs = _run_by(command)
        if PYTHON.fullmatch(Path(runs).name):
            return program
        _check_line_ends(program.name, head)
        if shutil.which(runs) is None:
            if path.suffix == ".py":
                return program
            raise OptionError(f"{program.name!r}: its first line asks for {runs}, which does not exist")
    elif not head.startswith(b"\x7fELF"):
        if path.suffix not in SHELLS:
            return program
        command = (SHELLS[path.suffix],)
    if os.access(path, os.X_OK) and head.startswith((b"#!", b"\x7fELF")):
        return Program("executable", _with_folder(program.name), program.args)
    if not command:
        raise OptionError(f"{program.name!r}: permission denied, it is not executable: chmod +x {program.name}")
    return Program("executable", command[0], (*command[1:], program.name, *program.args))


def _head(path: Path) -> bytes:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(512)


def _check_line_ends(name: str, head: bytes) -> None:
    """Check that the interpreter's name has no carriage return after it: the kernel would take it for a part of the
    name, and say that the file does not exist. Errors: OptionError."""
    if head.startswith(b"#!") and head.partition(b"\n")[0].endswith(b"\r"):
        raise OptionError(f"{name!r}: its lines end as on Windows, so that it cannot be run: sed -i 's/\\r$//' {name}")


def _run_by(command: Sequence[str]) -> str:
    """The program in an interpreter line; with env, the word after its options and variables."""
    words = " ".join(command).split()
    if not words or Path(words[0]).name != "env":
        return words[0] if words else ""
    return next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "env")


def _with_folder(name: str) -> str:
    """`./NAME` for a file of the current folder."""
    return name if "/" in name else f"./{name}"


def _check_executable(name: str) -> None:
    """Check that the program can be executed. Errors: OptionError."""
    if (found := shutil.which(name)) is not None:
        if os.access(found, os.R_OK):
            _check_line_ends(name, _head(Path(found)))
        return
    path = Path(name)
    if path.is_dir():
        raise OptionError(f"{name!r} is a folder: expected an executable")
    if not path.is_file():
        raise OptionError(f"{name!r}: no such executable")
    here = _with_folder(name)
    if not os.access(path, os.X_OK):
        raise OptionError(f"{name!r}: permission denied, it is not executable: chmod +x {name} (then {here})")
    raise OptionError(f"{name!r}: no such executable on PATH; the file in this folder is {here}")


def _check_script(name: str) -> None:
    """Check that the script exists and can be read. Errors: OptionError."""
    path = Path(name)
    try:
        # Python also runs a folder or zip file with __main__.py.
        if path.is_dir() and not (path / "__main__.py").is_file():
            raise OptionError(f"{name!r} is a folder: expected a Python script")
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise OptionError(f"{name!r}: {getattr(error, 'strerror', None) or error}") from None
    if not exists:
        raise OptionError(f"{name!r}: no such script")
    if not os.access(path, os.R_OK):
        raise OptionError(f"{name!r}: you have no permission to read this script")


def _check_module(name: str) -> None:
    """Check that the top-level package exists, without importing it. Errors: OptionError."""
    top = name.partition(".")[0]
    # python -m searches the current folder first, and not that of launch.py.
    folders = [str(Path.cwd()), *sys.path[1:]]
    if find_module(top, folders) is None:
        raise OptionError(f"-m {name!r}: no module named {top!r} here or in this Python")
