"""The facts that affect the choice of GPUs besides the request: the mask, CUDA's order, own processes, torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ddp_core import sysfs
from gpu_topology.driver.libcuda import cuda_order
from gpu_topology.host.torch_build import read_torch_build
from gpu_topology.select.select import Inherited
from gpu_topology.select.visible import parse_visible
from gpu_topology.topology import GpuProcess, Topology

PROC = Path("/proc")


def from_environment(environ: Mapping[str, str]) -> Inherited:
    """The inherited facts in environment variables alone. Pure."""
    return Inherited(environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER"))


def read_inherited(topology: Topology, environ: Mapping[str, str]) -> Inherited:
    """The inherited facts for a `topology` of this machine: asks libcuda where the mask cannot be read without it, and
    finds out which processes on the GPUs are this program's own and which users run them."""
    found = from_environment(environ)
    if _needs_cuda_order(topology, found):
        found = replace(found, cuda_order=cuda_order(environ))
    processes = [process for gpu in topology.gpus for process in gpu.processes or ()]
    return replace(
        found,
        own_pids=own_family({process.pid for process in processes}, os.getpid()),
        owners=owners(processes),
        hidden_desktop="microsoft" in (sysfs.text(PROC / "sys/kernel/osrelease") or "").lower(),  # WSL
        torch=read_torch_build() if topology.gpus else None,
    )


def owners(processes: Iterable[GpuProcess], proc: Path = PROC) -> dict[int, str]:
    """Process -> user, for processes that /proc shows under the driver's name (a container has its own numbers)."""
    found = {}
    for process in processes:
        # The kernel cuts names at 15 characters.
        if process.name and sysfs.text(proc / str(process.pid) / "comm") == process.name[:15]:
            with suppress(OSError, KeyError):  # it has ended, or its user has no name
                found[process.pid] = (proc / str(process.pid)).owner()
    return found


def _needs_cuda_order(topology: Topology, found: Inherited) -> bool:
    """Whether the mask has indices, and CUDA may count these GPUs in another order than NVML."""
    if found.visible is None or found.device_order == "PCI_BUS_ID":
        return False
    return not topology.identical and parse_visible(found.visible, topology.gpus).by_index


def own_family(pids: Iterable[int], pid: int, proc: Path = PROC) -> frozenset[int]:
    """The processes among `pids` that are `pid` itself, its ancestors or its descendants.

    Their use of a GPU counts as its own. Siblings do not count: a training run in the background of the same shell is
    another use of the GPU.
    """
    above = _line(pid, proc)
    return frozenset(one for one in pids if one in above or pid in _line(one, proc))


def _line(pid: int, proc: Path) -> set[int]:
    """A process and its ancestors, as far as /proc shows them."""
    line: set[int] = set()
    above: int | None = pid
    while above and above not in line:
        line.add(above)
        above = _parent(above, proc)
    return line


def _parent(pid: int, proc: Path) -> int | None:
    """The parent of a process; None where /proc does not show it."""
    try:
        # "pid (name) state ppid ...": the name may contain spaces and brackets.
        return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # it has ended, or is hidden
        return None
