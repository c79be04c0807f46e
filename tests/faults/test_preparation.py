"""A run that is ended while it decodes its images: one line, and nothing half-done is left or taken up."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import ROOT, Runs
from tests.faults.test_data import OPTIONS, images

PROCESSES = min(2, len(os.sched_getaffinity(0)))
KINDS = [
    # the signal, whether it goes to all processes of the terminal or to the launcher, the exit status, and images of
    # each class: few are decoded by the rank itself, many by processes of its own
    pytest.param(signal.SIGTERM, False, 143, 150, id="TERM"),
    pytest.param(signal.SIGTERM, False, 143, 20, id="TERM few images"),
    pytest.param(signal.SIGINT, True, 130, 150, id="Ctrl-C"),
    pytest.param(signal.SIGUSR1, False, 143, 150, id="USR1"),
    pytest.param(signal.SIGKILL, False, -9, 150, id="KILL"),
]


def start(runs: Runs, data: Path) -> subprocess.Popen[str]:
    words = shlex.split(f"--cpu --nproc 2 {ROOT / 'tests/faults/slow_decoding.py'}")
    words += shlex.split(OPTIONS.format(data=data, batch=64) + " --epochs 1 --num-workers 0 --out-dir run")
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DDP_TRAIN_CACHE": str(runs.folder / "cache")}
    return runs.launcher.start(*words, **env)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "all_processes", "status", "count"), KINDS)
def test_a_signal_while_images_are_decoded(
    number: signal.Signals,
    all_processes: bool,
    status: int,
    count: int,
    runs: Runs,
    tmp_path: Path,
    times: Callable[[int, int], int],
) -> None:
    if (number, count) != (signal.SIGTERM, 150) and times(0, 1) == 0:
        pytest.skip("SIGTERM stands for the others in a short run")
    data, cache = images(tmp_path / "data", count), runs.folder / "cache"
    processes, total = 1 if count < 128 else PROCESSES, 2 * count + 8
    process = start(runs, data)
    deadline = time.monotonic() + 60
    while len(list(runs.folder.glob("decoding-*"))) < processes:
        assert time.monotonic() < deadline and process.poll() is None, "no process decodes"
        time.sleep(0.02)
    assert list(cache.glob(".draft-*/train.npy")), "it is under way"
    os.killpg(process.pid, number) if all_processes else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    runs.until_gone()
    if number != signal.SIGKILL:
        # Below what the launcher says of its plan; it hands USR1 on as TERM.
        named = "SIGINT" if number == signal.SIGINT else "SIGTERM"
        said = err.split(f"decoding {total} images")[1].splitlines()[1:]
        assert said == [f"stopped by {named} before the first step: there is nothing to save"], err
        assert list(cache.iterdir()) == [], "no copy, neither whole nor half"
        assert [path.name for path in (runs.folder / "tmp").iterdir() if not path.name.startswith("ddp-launch")] == []
    if times(0, 1) == 0:
        return
    (runs.folder / "go").touch()
    process = start(runs, data)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"decoding {total} images" in err, "what was begun is not taken for the whole"
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".npz"], "one copy and the manifest"
