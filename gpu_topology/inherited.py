"""What bears on the choice of GPUs beside the request: the mask, CUDA's order of counting, own processes, claims."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_topology.libcuda import cuda_order
from gpu_topology.selection import SelectionRequest
from gpu_topology.topology import Topology
from gpu_topology.visible import parse_visible

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Inherited:
    """The inherited half of a `SelectionRequest`; see there."""

    visible: str | None = None
    device_order: str | None = None
    cuda_order: tuple[str, ...] | None = None
    own_pids: frozenset[int] = frozenset()
    claims: Mapping[str, str] = field(default_factory=dict)

    def completes(self, request: SelectionRequest) -> SelectionRequest:
        """The request with what was inherited."""
        return replace(
            request,
            visible=self.visible,
            device_order=self.device_order,
            cuda_order=self.cuda_order,
            own_pids=self.own_pids,
            claims=self.claims,
        )


def from_environment(environ: Mapping[str, str]) -> Inherited:
    """What the environment alone tells. Pure."""
    return Inherited(environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER"))


def read_inherited(topology: Topology, environ: Mapping[str, str]) -> Inherited:
    """The same for a `topology` of this machine: libcuda is asked where the mask cannot be read without it, and the
    processes of the user's own are looked up where GPUs have any."""
    found = from_environment(environ)
    if _needs_cuda_order(topology, found):
        found = replace(found, cuda_order=cuda_order(environ))
    if any(gpu.processes for gpu in topology.gpus):
        found = replace(found, own_pids=own_processes(os.getpid()))
    return found


def _needs_cuda_order(topology: Topology, found: Inherited) -> bool:
    """Whether the mask holds indices, and CUDA may count unlike GPUs otherwise than NVML does."""
    if found.visible is None or found.device_order == "PCI_BUS_ID":
        return False
    unlike = len({gpu.name for gpu in topology.gpus}) > 1
    return unlike and parse_visible(found.visible, topology.gpus).by_index


def own_processes(pid: int, proc: Path = PROC) -> frozenset[int]:
    """A process, those that it descends from and those that descend from it: what they hold on a GPU is its own.

    Siblings are not: a training run in the background of the same shell is somebody else's use of the GPU.
    """
    parents = _parents(proc)
    ancestors = set()
    above: int | None = pid
    while above and above not in ancestors:
        ancestors.add(above)
        above = parents.get(above)
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return frozenset(ancestors | family)


def _parents(proc: Path) -> dict[int, int]:
    """Each process's parent. What ends meanwhile, or is hidden, is left out."""
    parents = {}
    for folder in proc.iterdir() if proc.is_dir() else ():
        if not folder.name.isdecimal():
            continue
        try:
            # "pid (name) state ppid ...": the name may hold blanks and brackets.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return parents
