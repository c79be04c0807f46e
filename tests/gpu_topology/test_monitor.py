"""Live readings through the real nvidia-ml-py, and without any driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gpu_topology.monitor import read_gpus
from tests.fake_nvml.machine import load_machine

ROOT = Path(__file__).parents[2]

_READ = """
import dataclasses, json, sys
from gpu_topology.monitor import read_gpus
first = read_gpus(sys.argv[1:])
assert read_gpus(sys.argv[1:]) == first
print(json.dumps([dataclasses.asdict(reading) for reading in first]))
"""


def read(env: dict[str, str], *names: str) -> list[dict[str, object]]:
    """read_gpus(names), twice, in a process of its own."""
    command = [sys.executable, "-c", _READ, *names]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_readings_by_uuid_and_by_index(fake_driver):
    uuids = [gpu["uuid"] for gpu in load_machine("a100_a5000_t400")["gpus"]]
    env = fake_driver("a100_a5000_t400")
    assert read(env, uuids[3], uuids[1], "0", "GPU-of-nobody", "17") == [
        {
            "uuid": uuids[3],
            "utilization": 0,
            "memory_used": 2**20,
            "memory_total": 40960 * 2**20,
            "power_watts": 36.5,
            "temperature_c": 31,
        },
        {
            "uuid": uuids[1],
            "utilization": 3,
            "memory_used": 310 * 2**20,
            "memory_total": 4096 * 2**20,
            "power_watts": None,
            "temperature_c": None,
        },
        {
            "uuid": "0",
            "utilization": 0,
            "memory_used": 2**20,
            "memory_total": 24564 * 2**20,
            "power_watts": None,
            "temperature_c": None,
        },
    ]


def test_the_older_temperature_call_stands_in(fake_driver):
    fault = {"call": "nvmlDeviceGetTemperatureV", "error": "FUNCTION_NOT_FOUND"}
    assert read(fake_driver({**load_machine("a100_a5000_t400"), "faults": [fault]}), "3")[0]["temperature_c"] == 31


def test_a_lost_gpu_has_no_reading_and_the_others_do(fake_driver):
    fault = {"call": "*", "gpu": 0, "error": "GPU_IS_LOST"}
    readings = read(fake_driver({**load_machine("rtx3090_2x_nvlink"), "faults": [fault]}), "0", "1")
    assert [reading["uuid"] for reading in readings] == ["1"]


def test_without_a_driver_there_are_no_readings(fake_driver):
    fault = {"call": "nvmlInitWithFlags", "error": "DRIVER_NOT_LOADED"}
    assert read(fake_driver({"gpus": [], "faults": [fault]}), "0") == []


def test_nothing_asked_nothing_read():
    assert read_gpus([]) == []
