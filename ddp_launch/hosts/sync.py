"""Copies the program's folder to hosts that share no disk: with rsync over ssh, to the same path."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import which

from ddp_core.errors import UserError, one_line
from ddp_launch.hosts.connection import OPTIONS, Connection
from ddp_launch.run.process_tree import with_pdeathsig

LEFT_OUT = ("/.git", "/.venv", "/runs", "__pycache__")
"""Names that are not copied: they belong to this machine, or each host makes them itself."""
COPIED = (0, 24)
"""rsync's statuses of a success, also where files vanished meanwhile, such as another run's temporary files."""


def folder(name: str) -> str:
    """The folder of --sync, absolute. Errors: UserError."""
    try:
        path = Path(name).expanduser().absolute()
        found = path.is_dir()
    except (RuntimeError, OSError):  # ~NAME of nobody; a current folder that is gone
        found = False
    if not found:
        raise UserError(f"--sync {name!r}: no such folder")
    if which("rsync") is None:
        raise UserError("--sync needs rsync, which is not installed here: apt-get install rsync")
    return str(path)


def copy(path: str, hosts: Iterable[Connection]) -> list[tuple[str, str]]:
    """Copy what has changed to all hosts at once. Returns (host, reason) for each failure. Nothing is deleted there."""
    others = [host for host in hosts if not host.here]
    processes = [(host, _start(path, host.name)) for host in others]
    with ThreadPoolExecutor(max(1, len(processes))) as pool:
        try:
            done = pool.map(lambda pair: (pair[0].name, _problem(pair[1])), processes)
            return [(name, f"--sync {path}: {why}") for name, why in done if why is not None]
        except BaseException:
            # Leaving the pool waits for its threads, and so for rsync, which a Ctrl-C does not reach.
            for _, process in processes:
                _kill(process)
            raise


def _start(path: str, name: str) -> subprocess.Popen[str]:
    """Start rsync to one host."""
    user, at, address = name.rpartition("@")
    target = f"{user}{at}[{address}]" if ":" in address else name
    excludes = [f"--exclude={one}" for one in LEFT_OUT]
    # Start it in the main thread: the kernel ends it with that thread. -s: no remote shell interprets the path.
    words: Sequence[str] = [
        "rsync",
        "-as",
        *excludes,
        "-e",
        shlex.join(["ssh", *OPTIONS]),
        f"{path}/",
        f"{target}:{path}/",
    ]
    return subprocess.Popen(
        with_pdeathsig(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill rsync and its ssh, which holds its standard error open."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _problem(process: subprocess.Popen[str]) -> str | None:
    """Wait for rsync; the reason for its failure in one line, None after a success."""
    _, errors = process.communicate()
    lines = [line for line in errors.splitlines() if line.strip()]
    if process.returncode in COPIED:
        return None
    missing = next((line for line in lines if "command not found" in line or "No such file" in line), None)
    return one_line(missing or (lines[0] if lines else f"rsync ended with status {process.returncode}"))
