"""The simulated NVIDIA driver of the tests (tests/fake_nvml): built, and given a machine to describe."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from tests.fake_nvml.machine import load_machine, to_lines

MACHINE = "h100_8x_nvswitch"


@contextmanager
def environments(*delays_us: int, gpu: dict[str, Any] | None = None) -> Iterator[dict[int, dict[str, str]]]:
    """For each delay of the driver's calls, an environment with eight H100; `gpu`: more facts of every GPU.

    Byte code is cached, as it is after any first run. Errors: SystemExit without a C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("error: no C compiler (cc, gcc): the simulated driver cannot be built")
    with tempfile.TemporaryDirectory() as folder:
        library, source = f"{folder}/libnvidia-ml.so.1", ROOT / "tests" / "fake_nvml" / "nvml.c"
        subprocess.run([compiler, "-std=c11", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        path = os.environ.get("LD_LIBRARY_PATH")
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
            "LD_LIBRARY_PATH": f"{folder}:{path}" if path else folder,
            "FAKE_NVML_CALLS": f"{folder}/calls",
            "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
            "XDG_CACHE_HOME": f"{folder}/no-verdicts",
        }
        found = {}
        for delay in delays_us:
            machine = {**load_machine(MACHINE), "delay_us": delay}
            machine["gpus"] = [one | (gpu or {}) for one in machine["gpus"]]
            description = Path(folder, f"machine-{delay}.txt")
            description.write_text(to_lines(machine))
            found[delay] = env | {"FAKE_NVML_MACHINE": str(description)}
        yield found
