"""The energy counters of GPUs, through the real nvidia-ml-py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_topology.driver.energy import taken
from gpu_topology.monitor import read_energy
from tests.conftest import FakeDriver
from tests.fake_nvml.machine import load_machine

ROOT = Path(__file__).parents[3]
READ = """
import json, sys, time
from gpu_topology.driver.child_process import InChild
from gpu_topology.driver.energy import read_energy_here
from gpu_topology.monitor import read_energy, taken
from functools import partial
first = read_energy(sys.argv[1:])
time.sleep(0.3)
second = read_energy(sys.argv[1:])
with InChild(partial(read_energy_here, tuple(sys.argv[1:]))) as child:
    third = child.result()
print(json.dumps([first, taken(first, second), taken(second, third)]))
"""


def machine(*energy: list[int] | None, **more: Any) -> dict[str, Any]:
    """GPUs with these counters: [millijoules at the start, per second]."""
    found = load_machine("rtx3090_2x_nvlink")
    for gpu, counter in zip(found["gpus"], energy, strict=True):
        gpu["energy"] = counter
    return {**found, **more}


def read(env: dict[str, str], *names: str) -> list[dict[str, float]]:
    command = [sys.executable, "-c", READ, *names]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def test_joules_between_two_readings_here_and_in_a_child(fake_driver: FakeDriver) -> None:
    first, between, after = read(fake_driver(machine([10**12, 300_000], None)), "0", "1", "GPU-of-nobody", "9")
    assert [*first] == ["0"] and first["0"] > 10**9
    assert 0.3 * 300 <= between["0"] < 60 * 300 and 0 <= after["0"] < 60 * 300


def test_a_counter_that_runs_backwards_tells_nothing(fake_driver: FakeDriver) -> None:
    first, between, _ = read(fake_driver(machine([10**15, -300_000], [0, 1000])), "0", "1")
    assert [*first] == ["0", "1"] and [*between] == ["1"]


def test_a_lost_gpu_and_one_in_mig_mode_have_none(fake_driver: FakeDriver) -> None:
    fault = {"call": "nvmlDeviceGetTotalEnergyConsumption", "gpu": 0, "error": "GPU_IS_LOST"}
    assert [*read(fake_driver(machine([1, 1], [1, 1], faults=[fault])), "0", "1")[0]] == ["1"]
    mig = machine([1, 1], [1, 1])
    mig["gpus"][1]["mig_mode"] = True
    assert [*read(fake_driver(mig), "0", "1")[0]] == ["0"]


def test_no_gpus_have_none() -> None:
    assert read_energy([]) == {}


def test_only_gpus_of_both_readings_count() -> None:
    assert taken({"a": 1.0, "b": 5.0, "c": 1.0}, {"a": 3.5, "b": 4.0, "d": 1.0}) == {"a": 2.5}
    assert taken({"a": 0.0}, {"a": 0.0}) == {"a": 0.0}
