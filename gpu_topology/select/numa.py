"""Whether to bind the ranks to the CPUs near their GPUs, by torchrun's own --numa-binding.

torch wraps each rank in numactl (torch/numa/binding.py) and raises where that fails: without the program, without an
accelerator, without a usable CPU on a GPU's node. So binding is chosen only where it is known to work, and where it
leaves no usable CPU idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from gpu_topology.host.cpus import NumaNode
from gpu_topology.host.host import Host
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, Topology


@dataclass(frozen=True, slots=True)
class Binding:
    """A decision. `mode`: "node" or "socket" as in torchrun, None for no binding; `reason`: why, in one line."""

    mode: str | None
    reason: str


def numa_binding(topology: Topology, selection: Selection, host: Host) -> str | None:
    """The value of torchrun's --numa-binding; None for none."""
    binding = choose_binding(topology, selection, host)
    return binding.mode if binding else None


def choose_binding(topology: Topology, selection: Selection, host: Host) -> Binding | None:
    """The binding with its reason; None where there is nothing to decide: no GPU, or a single usable NUMA node."""
    if not selection.indices or _slices(selection) or len(host.usable_nodes) < 2:
        return None
    hindrance = obstacle(topology, selection, host)
    if hindrance:
        return Binding(None, f"the ranks are not bound to NUMA nodes: {hindrance}")
    gpus = _gpus(topology, selection)
    mode, place = _mode(gpus, host)
    if mode is None:
        idle = ", ".join(str(node.index) for node in host.usable_nodes if node.index not in _nodes_of(gpus))
        return Binding(None, f"the ranks are not bound to NUMA nodes: that would leave the CPUs of node {idle} idle")
    return Binding(
        mode, f"each rank is bound to the CPUs of the {place} that its GPU belongs to (--numa-binding={mode})"
    )


def obstacle(topology: Topology, selection: Selection, host: Host) -> str | None:
    """Why torchrun's --numa-binding would fail in any mode; None where it works."""
    if not selection.indices:
        return "it binds ranks to the CPUs near their GPUs, and no GPU is used"
    if _slices(selection):
        return "torchrun's process sees only the first MIG slice"
    gpus = _gpus(topology, selection)
    return next((why(gpus, host) for hinders, why in _OBSTACLES if hinders(gpus, host)), None)


def bound_threads(topology: Topology, selection: Selection, host: Host) -> int | None:
    """Physical cores for each bound rank: the smallest share of a node or socket. None where ranks are not bound."""
    mode = numa_binding(topology, selection, host)
    if mode is None:
        return None
    place = _PLACES[mode]
    cores: Counter[int | None] = Counter()
    for node in host.usable_nodes:
        cores[place(node)] += node.cores
    places = {node.index: place(node) for node in host.usable_nodes}
    ranks = Counter(places[topology.gpu(index).numa_node or 0] for index in selection.indices)
    return max(1, min(cores[at] // count for at, count in ranks.items()))


_PLACES: dict[str, Callable[[NumaNode], int | None]] = {
    "node": lambda node: node.index,
    "socket": lambda node: node.socket,
}


def _mode(gpus: list[Gpu], host: Host) -> tuple[str | None, str]:
    """(mode, word) of the smaller unit of which each has a GPU, node or socket, so that every usable CPU has a rank."""
    with_gpu = [node for node in host.usable_nodes if node.index in _nodes_of(gpus)]
    if len(with_gpu) == len(host.usable_nodes):
        return "node", "NUMA node"
    sockets = {node.socket for node in host.usable_nodes}
    if len(sockets) > 1 and None not in sockets and sockets == {node.socket for node in with_gpu}:
        return "socket", "socket"
    return None, ""


def _nodes_of(gpus: list[Gpu]) -> set[int | None]:
    """The NUMA nodes of these GPUs."""
    return {gpu.numa_node for gpu in gpus}


def _slices(selection: Selection) -> bool:
    """Whether the selection has MIG slices."""
    return any(uuid.startswith("MIG-") for uuid in selection.uuids)


def _gpus(topology: Topology, selection: Selection) -> list[Gpu]:
    """The selected GPUs, each once."""
    return [topology.gpu(index) for index in dict.fromkeys(selection.indices)]


def _unknown(gpus: list[Gpu], host: Host) -> list[int]:
    """GPUs with an unknown NUMA node."""
    return [gpu.index for gpu in gpus if gpu.numa_node is None]


def _far(gpus: list[Gpu], host: Host) -> list[int]:
    """GPUs on NUMA nodes without a CPU that this process may use."""
    usable = {node.index for node in host.usable_nodes}
    return [gpu.index for gpu in gpus if gpu.numa_node not in usable]


def _exclusive(gpus: list[Gpu], host: Host) -> list[int]:
    """GPUs that admit one process."""
    return [gpu.index for gpu in gpus if (gpu.compute_mode or "").startswith("exclusive")]


def _list(indices: list[int]) -> str:
    """Numbers with commas between them."""
    return ", ".join(map(str, indices))


# (whether it rules out binding, the reason in words); the first that applies counts.
_OBSTACLES: tuple[tuple[Callable[[list[Gpu], Host], object], Callable[[list[Gpu], Host], str]], ...] = (
    (_unknown, lambda gpus, host: f"the driver does not report the node of GPU {_list(_unknown(gpus, host))}"),
    (_far, lambda gpus, host: f"this process may not use the CPUs of the node of GPU {_list(_far(gpus, host))}"),
    (
        # torchrun's own process asks CUDA for the GPUs' bus ids.
        _exclusive,
        lambda gpus, host: f"GPU {_list(_exclusive(gpus, host))} admits a single process, which would be torchrun",
    ),
    (
        lambda gpus, host: not host.numactl,
        lambda gpus, host: "torchrun's --numa-binding needs the program numactl, which is not installed",
    ),
    (
        lambda gpus, host: host.numa_policy is False,
        lambda gpus, host: (
            "the kernel refuses numactl's system calls; a Docker container needs `--cap-add=SYS_NICE` for them"
        ),
    ),
    (
        lambda gpus, host: host.numa_policy is None,
        lambda gpus, host: "it is not known whether the kernel lets numactl work here",
    ),
)
