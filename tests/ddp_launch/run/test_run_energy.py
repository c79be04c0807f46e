"""What the GPUs of a run took, through the real nvidia-ml-py in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import FakeDriver
from tests.fake_nvml.machine import load_machine

ROOT = Path(__file__).parents[3]
READ = """
import json, sys, threading, time
from types import SimpleNamespace
from ddp_launch.run import run_energy
from ddp_launch.run.run_energy import RunEnergy
from gpu_topology.driver.read import read_or_explain
run_energy.LIMIT_S = float(sys.argv[2])
plan = SimpleNamespace(topology=read_or_explain(), selection=SimpleNamespace(indices=json.loads(sys.argv[1])))
energy = RunEnergy(plan)
energy.started()
before = time.monotonic()
time.sleep(0.2)
found = energy.taken_by({0, 1})
print(json.dumps([found, time.monotonic() - before, len(threading.enumerate())]))
"""


def read(env: dict[str, str], indices: list[int], limit_s: float = 30.0) -> tuple[dict[str, float], float]:
    """Joules by index of a run on these GPUs, and the seconds between the readings and of the second one."""
    command = [sys.executable, "-c", READ, json.dumps(indices), str(limit_s)]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found, seconds, _ = json.loads(done.stdout)
    return found, seconds


def machine(*energy: list[int] | None, **more: Any) -> dict[str, Any]:
    found = load_machine("rtx3090_2x_nvlink")
    for gpu, counter in zip(found["gpus"], energy, strict=True):
        gpu["energy"] = counter
    return {**found, **more}


def test_joules_of_the_gpus_that_have_a_counter(fake_driver: FakeDriver) -> None:
    found, seconds = read(fake_driver(machine([10**9, 300_000], None)), [0, 1])
    assert [*found] == ["0"] and 300 * 0.2 <= found["0"] <= 300 * (seconds + 30)
    found, _ = read(fake_driver(machine([10**9, 300_000], [10**15, -5000])), [0, 1])
    assert [*found] == ["0"], "a counter that ran backwards tells nothing"


def test_a_run_on_the_cpu_asks_nothing(fake_driver: FakeDriver) -> None:
    assert read(fake_driver(machine([1, 1], [1, 1])), [])[0] == {}


def test_a_driver_that_hangs_or_crashes_in_the_end_holds_nothing_up(fake_driver: FakeDriver) -> None:
    for error in ("HANG", "CRASH"):
        fault = {"call": "nvmlDeviceGetTotalEnergyConsumption", "gpu": 1, "error": error}
        found, seconds = read(fake_driver(machine([1, 1], [1, 1], faults=[fault])), [0, 1], limit_s=1.0)
        assert found == {} and seconds < 20
