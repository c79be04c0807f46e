"""Utilisation and memory of the GPUs in the records, from a stand-in for the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from ddp_train.diagnostics import gpu_usage
from tests.conftest import FakeDriver
from tests.ddp_train.contexts import make_context

ROOT = Path(__file__).resolve().parents[3]

READ = """
from ddp_train.diagnostics.gpu_usage import Usage
from ddp_train.technique import Moment
from gpu_topology.monitor import read_gpus
usage = Usage(["0", "1"], interval_s=0.0)
assert usage.report() == {}
for step in range(2):
    usage.after_step(Moment(0, step, 0, 0))
readings = read_gpus(["0", "1"])
assert len(readings) == 2 and all(r.memory_used for r in readings)
found = usage.report()
assert abs(found["gpu_utilization"] - sum(r.utilization for r in readings) / 200) < 1e-9, found
assert found["gpu_memory"] == max(r.memory_used for r in readings), found
usage.after_epoch(None)
assert usage.report() == {}
"""


def test_the_figures_are_the_drivers(fake_driver: FakeDriver) -> None:
    env = {**os.environ, **fake_driver("a100_a5000_t400")}
    done = subprocess.run([sys.executable, "-c", READ], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_on_the_cpu_there_is_nothing_to_do() -> None:
    made = gpu_usage.create(make_context(nn.Linear(1, 1)))
    assert (made.after_step, made.report) == (None, None) and not torch.cuda.is_initialized()
