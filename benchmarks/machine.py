"""What a measurement was taken on: processor, GPUs, versions, date, and how busy the machine was."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gpu_topology.driver.read import read_or_explain
from gpu_topology.host.host import read_host

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def describe_machine() -> dict[str, Any]:
    """JSON-ready facts that belong to every result. Memory is in bytes, `load_average` is that of one minute."""
    host = read_host()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "usable_cpus": host.usable_cpus,
        "memory_total": host.memory_total,
        "gpus": [gpu.name for gpu in read_or_explain().gpus],
        "load_average": round(psutil.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name, with its family and model: the name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family')}, model {facts.get('model')})"


def version(package: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit measured; with a + where files differ from it."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """The name of a GPU, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
