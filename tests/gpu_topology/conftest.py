"""Many machines through the real nvidia-ml-py in one subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpu_topology import snapshot
from gpu_topology.host.host import Host
from gpu_topology.topology import Topology

ROOT = Path(__file__).parents[2]

# The stand-in reads its description at nvmlInit, so one process can visit one machine after another.
_VISIT = """
import json, os, sys
from gpu_topology import snapshot
from gpu_topology.driver.read import read_or_explain
for path in sys.argv[1:]:
    os.environ["FAKE_NVML_MACHINE"] = path
    print(json.dumps(snapshot.to_dict(read_or_explain())))
"""

ReadMachines = Callable[[Sequence[dict[str, Any] | str]], list[Topology]]


@pytest.fixture
def read_machines(fake_driver: Callable[[Any], dict[str, str]]) -> ReadMachines:
    """`read_machines([machine, ...])` -> what read_or_explain() gives for each, over the stand-in driver."""

    def read(machines: Sequence[dict[str, Any] | str]) -> list[Topology]:
        installed = [fake_driver(machine) for machine in machines]
        command = [sys.executable, "-c", _VISIT, *(env["FAKE_NVML_MACHINE"] for env in installed)]
        env = {**os.environ, **installed[0]}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [snapshot.from_dict(json.loads(line)) for line in done.stdout.splitlines()]

    return read


@pytest.fixture
def host() -> Host:
    """A roomy server without InfiniBand."""
    return Host(
        hostname="server",
        usable_cpus=32,
        physical_cores=16,
        numa_nodes=2,
        memory_total=256 * 2**30,
        memory_available=200 * 2**30,
        shm_total=128 * 2**30,
        shm_free=128 * 2**30,
        interfaces=("eth0",),
        glibc=True,
    )
