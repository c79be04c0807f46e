"""A command on ghost GPUs: python -m tests.ghost [--machine NAME] COMMAND ...

--machine: a file of tests/fake_nvml, such as rtx3090_2x_nvlink (default: one H200). Needs a C compiler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import conftest
from tests.fake_nvml.machine import load_machine, to_lines
from tests.ghost.conftest import ROOT, environment_on

H200: dict[str, Any] = {
    "gpus": [
        {
            "name": "NVIDIA H200",
            "memory_mib": 143771,
            "cc": [9, 0],
            "cores": 16896,
            "clock_mhz": 1980,
            "mig_mode": False,
            "power_watts": 76.0,
            "temperature_c": 30,
        }
    ],
    "matrix": [["X"]],
}


def main() -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.ghost")
    parser.add_argument("--machine", metavar="NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a command is needed")
    facts = load_machine(arguments.machine or H200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for library in ("nvml", "cuda"):
            (folder / library).mkdir()
        cuda = ROOT / "tests" / "fake_cuda" / "cuda.c"
        libraries = [
            conftest.built(conftest.SOURCE, folder / "nvml", "libnvidia-ml.so.1"),
            conftest.built(cuda, folder / "cuda", "libcuda.so.1"),
        ]
        (folder / "machine.txt").write_text(to_lines(facts))
        drivers = {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "FAKE_NVML_MACHINE": str(folder / "machine.txt"),
        }
        environment = environment_on(facts, drivers, folder)
        return subprocess.run(arguments.command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
