"""Fixtures for every test: a stand-in for the NVIDIA driver that the real nvidia-ml-py loads."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_nvml.machine import to_lines

SOURCE = Path(__file__).parent / "fake_nvml" / "nvml.c"

FakeDriver = Callable[[dict[str, Any] | str], dict[str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--whole: the fault tests as often as they were specified, not only the few that fit into a usual run."""
    parser.addoption("--whole", action="store_true", help="run the fault tests at their full counts (an hour or so)")


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in, built once per run by the system's C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang): the stand-in for the driver cannot be built")
    folder = tmp_path_factory.mktemp("fake_nvml")
    # Through a hidden name, so that a run in parallel never loads half a library.
    built = folder / ".building.so"
    command = [compiler, "-std=c11", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(SOURCE)]
    subprocess.run(command, check=True)
    built.rename(folder / "libnvidia-ml.so.1")
    return folder


@pytest.fixture
def fake_driver(fake_nvml_library: Path, tmp_path: Path) -> FakeDriver:
    """`fake_driver(machine)` -> environment variables for a subprocess in which the driver finds that machine.

    A machine is a dict, or the name of a file in tests/fake_nvml (see machine.py): "a100_a5000_t400",
    "rtx3090_2x_nvlink", "h100_8x_nvswitch", "no_devices". Use it as `env={**os.environ, **fake_driver(...)}`.
    """

    def install(machine: dict[str, Any] | str) -> dict[str, str]:
        number = len(list(tmp_path.glob("machine-*.txt")))
        description = tmp_path / f"machine-{number}.txt"
        description.write_text(to_lines(machine))
        search = [str(fake_nvml_library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(search), "FAKE_NVML_MACHINE": str(description)}

    return install
