"""The native calls of a rank, read by py-spy where that is installed: faulthandler sees only Python's.

py-spy halts a process for some tenths of a second while it reads the stacks. It needs ptrace(2): in a container that
forbids it, or where Yama lets only a parent trace, py-spy reports that, and only the native calls are missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ddp_train.watchdog.python_stacks import Frame

DUMP_S = 20.0
UNNAMED = "0x"
NAME_CHARS = 80


@dataclass(frozen=True)
class Native:
    """`frames`: the calls below Python's innermost one, outermost first; `error`: why there are none."""

    frames: tuple[Frame, ...] = ()
    error: str = ""


def installed() -> str | None:
    """The path of py-spy: beside this Python, else on PATH; None without one."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def dump(threads: Mapping[int, tuple[int, int]], limit_s: float = DUMP_S) -> dict[int, Native]:
    """Rank -> its native calls. `threads`: rank -> process, and the thread as faulthandler numbers it, 0 for the main
    one. {} without py-spy. Never raises."""
    if (program := installed()) is None:
        return {}
    started = {}
    for rank, (pid, _) in threads.items():
        with suppress(OSError):
            words = [program, "dump", "--native", "--json", "--pid", str(pid)]
            started[rank] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
    deadline = time.monotonic() + limit_s
    return {rank: _read(process, threads[rank], deadline) for rank, process in started.items()}


def _read(process: subprocess.Popen[bytes], thread: tuple[int, int], deadline: float) -> Native:
    """What one py-spy process printed, or why it printed nothing."""
    try:
        out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Native(error="it did not answer in time")
    try:
        return Native(parse(json.loads(out), *thread))
    except (ValueError, KeyError, TypeError, AttributeError):
        lines = (line.strip() for line in err.decode(errors="replace").splitlines())
        return Native(error=next((line.removeprefix("Error: ") for line in lines if line), "it printed nothing"))


def parse(threads: list[dict[str, Any]], pid: int, thread: int) -> tuple[Frame, ...]:
    """The native calls of a thread in py-spy's JSON, where frames are innermost first and Python's have no module.
    Errors: KeyError, TypeError, AttributeError for another form."""
    chosen = next((one for one in threads if thread and one["thread_id"] == thread), None)
    chosen = chosen or next((one for one in threads if one["os_thread_id"] == pid), {"frames": []})
    native = takewhile(lambda frame: frame["module"] is not None, chosen["frames"])
    named = (one for one in native if not one["name"].startswith(UNNAMED))
    return tuple(Frame(one["filename"], one["line"], _short(one["name"])) for one in named)[::-1]


def _short(name: str) -> str:
    """The name, cut to NAME_CHARS: that of a C++ template may fill a screen."""
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3]}..."
