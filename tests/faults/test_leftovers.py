"""Runs that end and runs that are killed, one after another in one folder: no temporary file stays anywhere."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.ddp_launch.conftest import Launcher
from tests.faults.test_files import _SEED

_RUN = (
    *("--cpu", "--nproc", "2", "--dataset", "synthetic", "--synthetic-samples", "512", "--model", "small"),
    *("--batch-size", "32", "--no-examine", "--out-dir", "run", "--resume", "auto"),
)


def _shared_memory() -> set[str]:
    """What torch, its loaders and this project leave in /dev/shm when they leave something."""
    folder = Path("/dev/shm")
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {name for name in names if name.startswith(("torch_", "psm_", "gloo", "ddp"))}


def _hidden(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith("."))


def test_nothing_temporary_is_left_after_runs_and_kills(launcher: Launcher, times: Callable[[int, int], int]) -> None:
    draw, runs, temporary = random.Random(_SEED), times(2, 20), launcher.folder / "tmp"
    before = _shared_memory()
    statuses = []
    for number in range(runs):
        to_its_end = number == runs - 1 or number % 4 == 3
        process = launcher.start(*_RUN, "--epochs", str(number + 1), XDG_CACHE_HOME=str(launcher.folder / "cache"))
        if not to_its_end:
            time.sleep(draw.uniform(0.5, 10))
            victim = draw.choice([process.pid, *launcher.alive()])
            with suppress(ProcessLookupError):  # it had ended by itself
                os.kill(victim, draw.choice([signal.SIGKILL, signal.SIGTERM]))
        _, words = process.communicate(timeout=120)
        statuses.append(process.returncode)
        assert not to_its_end or process.returncode == 0, f"seed {_SEED}, run {number}: {words}"
    assert runs < 10 or any(statuses), "no kill hit a run"
    deadline = time.monotonic() + 10
    while (alive := launcher.alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    # The claims of launchers stay, in a folder of the user's own.
    left = [path.name for path in temporary.iterdir() if path.name != "ddp-launch"]
    assert left == [], f"seed {_SEED}: {statuses}"
    assert _hidden(launcher.folder / "run") == [], f"seed {_SEED}: {statuses}"
    assert _hidden(launcher.folder / "cache") == [], f"seed {_SEED}: {statuses}"
    assert _shared_memory() <= before
