"""The simulated NVIDIA driver of the tests (tests/fake_nvml): built, and given a machine to describe."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from tests.fake_nvml.machine import load_machine, to_lines

MACHINE = "h100_8x_nvswitch"


def build(folder: Path) -> None:
    """Compile the library into `folder`; SystemExit without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("error: no C compiler (cc, gcc): the simulated driver cannot be built")
    source, library = ROOT / "tests" / "fake_nvml" / "nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-std=c11", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)


def environment(folder: Path, delay_us: int = 0, gpu: dict[str, Any] | None = None) -> dict[str, str]:
    """Eight H100 from the library in `folder`, with this delay in each call and `gpu` as facts of every GPU.

    Byte code is cached, as it is after any first run.
    """
    machine = {**load_machine(MACHINE), "delay_us": delay_us}
    machine["gpus"] = [{**one, **(gpu or {})} for one in machine["gpus"]]
    description = folder / f"machine-{delay_us}.txt"
    description.write_text(to_lines(machine))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **env,
        "LD_LIBRARY_PATH": ":".join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "FAKE_NVML_MACHINE": str(description),
        "FAKE_NVML_CALLS": str(folder / "calls"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "XDG_CACHE_HOME": str(folder / "no-verdicts"),
    }
