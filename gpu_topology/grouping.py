"""GPUs that belong together: homogeneous groups, and which of them is the better one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_topology.bandwidth import Fabric
from gpu_topology.topology import Gpu, MigDevice, Topology

# Dense 16-bit tensor operations, accumulated in fp32, per CUDA core and clock by compute capability, from the peak
# figures of NVIDIA's white papers and data sheets (A100: 312e12 / (6912 cores x 1.41e9 Hz) = 32). GeForce cards from
# 7.5 on run at half the rate of their workstation siblings (RTX 3090: 71e12 / (10496 x 1.695e9) = 4). Before 7.0: an
# fp32 multiply-add.
_OPERATIONS = {
    (7, 0): 16,
    (7, 2): 16,
    (7, 5): 16,
    (8, 0): 32,
    (9, 0): 32,
    (10, 0): 64,
    (10, 3): 64,
}
_OPERATIONS_OLD, _OPERATIONS_NEW = 2, 8


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs alike in name, memory, compute capability and MIG mode (and slice profile).

    memory_total is one GPU's, in bytes
    throughput   the group's estimated peak in tera-operations per second with equal shards, None if it cannot be told
    ring_gb_s    the modelled slowest link of the group's best ring, None for a single GPU
    """

    name: str
    indices: tuple[int, ...]
    memory_total: int | None
    compute_capability: tuple[int, int] | None
    mig_mode: bool | None
    throughput: float | None
    ring_gb_s: float | None

    @property
    def label(self) -> str:
        """ "NVIDIA RTX A5000 x 3"."""
        return f"{self.name} x {len(self.indices)}"


def make_groups(topology: Topology, eligible: Iterable[int], policy: str = "largest") -> tuple[Group, ...]:
    """The homogeneous groups among `eligible` (NVML indices), best first.

    largest: most GPUs, then more memory, then better links (bottleneck, sum), then the lower index.
    fastest: the highest estimated throughput, then as above. Groups without an estimate come last.
    """
    members: dict[object, list[Gpu]] = {}
    for index in sorted(eligible):
        gpu = topology.gpu(index)
        members.setdefault(kind(gpu), []).append(gpu)
    found = [_group(topology, gpus) for gpus in members.values()]
    return tuple(sorted(found, key=lambda group: _rank(group, Fabric(topology, group.indices), policy)))


def kind(gpu: Gpu) -> object:
    """What GPUs of one group have in common."""
    return gpu.name, gpu.memory_total, gpu.compute_capability, gpu.mig_mode, _profile(gpu)


def estimate(gpus: Sequence[Gpu]) -> float | None:
    """Peak tera-operations per second of GPUs that work in step on equal shards: the slowest sets the pace of all.

    A peak of the arithmetic units, to rank unlike GPUs; what a training run reaches is measured, not estimated.
    """
    each = [_operations(gpu) for gpu in gpus]
    known = [value for value in each if value is not None]
    return len(gpus) * min(known) if known and len(known) == len(each) else None


def best_slice(gpu: Gpu, allow_busy: bool = True) -> MigDevice | None:
    """The MIG slice to use of a GPU: the one with most memory, without processes in it unless `allow_busy`."""
    taken = set() if allow_busy else {process.gpu_instance for process in gpu.processes or ()}
    free = [one for one in gpu.mig_devices if one.gpu_instance is None or one.gpu_instance not in taken]
    return max(free, key=lambda one: one.memory_total or 0, default=None)


def _profile(gpu: Gpu) -> str | None:
    one = best_slice(gpu) if gpu.mig_mode else None
    return one.profile if one else None


def _operations(gpu: Gpu) -> float | None:
    if gpu.cores is None or gpu.clock_mhz is None or gpu.compute_capability is None:
        return None
    tensor_cores = gpu.compute_capability >= (7, 0)
    per_clock: float = _OPERATIONS.get(gpu.compute_capability, _OPERATIONS_NEW if tensor_cores else _OPERATIONS_OLD)
    if gpu.compute_capability >= (7, 5) and "GeForce" in (gpu.name or ""):
        per_clock /= 2
    return gpu.cores * gpu.clock_mhz * per_clock / 1e6


def _group(topology: Topology, gpus: list[Gpu]) -> Group:
    first = gpus[0]
    indices = tuple(gpu.index for gpu in gpus)
    profile = _profile(first)
    return Group(
        name=f"{first.label} MIG {profile}" if profile else first.label,
        indices=indices,
        memory_total=first.memory_total,
        compute_capability=first.compute_capability,
        mig_mode=first.mig_mode,
        throughput=estimate(gpus),
        ring_gb_s=Fabric(topology, indices).bottleneck(indices) if len(indices) > 1 else None,
    )


def _rank(group: Group, fabric: Fabric, policy: str) -> tuple[float, ...]:
    speed = -(group.throughput or 0.0) if policy == "fastest" else 0.0
    links = (-(group.ring_gb_s or 0.0), -fabric.total(group.indices))
    return (speed, -len(group.indices), -(group.memory_total or 0), *links, group.indices[0])
