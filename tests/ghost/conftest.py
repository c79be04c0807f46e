"""Fixtures: ghost GPUs in this process, and in processes that a test starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import FakeDriver
from tests.fake_nvml.machine import load_machine
from tests.ghost import Ghost, cuda
from tests.ghost.machines import MACHINE, for_libcuda
from tests.ghost.process import SITE

ROOT = Path(__file__).resolve().parents[2]
GhostMachine = Callable[..., dict[str, str]]


@pytest.fixture
def ghost() -> Iterator[Ghost]:
    """One GPU of 16 GiB in this process. Small models gain nothing from more threads than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with cuda() as there:
        yield there
    torch.set_num_threads(threads)


@pytest.fixture
def ghost_machine(fake_driver: FakeDriver, fake_cuda_library: Path, tmp_path: Path) -> GhostMachine:
    """`ghost_machine(machine, **variables)`: an environment in which NVML, libcuda and torch find that machine.

    machine: as fake_driver takes it. `tmp_path / "ghost"` gets the reports of its processes (process.reports).
    """

    def environment(machine: dict[str, Any] | str, **variables: str) -> dict[str, str]:
        facts, reports = load_machine(machine), tmp_path / "ghost"
        reports.mkdir(exist_ok=True)
        drivers = fake_driver(facts)
        drivers["LD_LIBRARY_PATH"] = f"{fake_cuda_library}:{drivers['LD_LIBRARY_PATH']}"
        found = environment_on(facts, drivers, tmp_path)
        return {**found, "GHOST_REPORT": str(reports), "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}

    return environment


def environment_on(facts: dict[str, Any], drivers: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of a process that finds the ghost GPUs of a machine.

    drivers: LD_LIBRARY_PATH with the stand-ins for both libraries, and FAKE_NVML_MACHINE. folder: for a description.
    """
    description = folder / "ghost-machine.json"
    description.write_text(json.dumps(facts))
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("CUDA_")},
        **drivers,
        "FAKE_CUDA_GPUS": for_libcuda(facts),
        MACHINE: str(description),
        "PYTHONPATH": f"{SITE}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "OMP_NUM_THREADS": "1",
    }
