"""Whether the ranks should be bound to the CPUs beside their GPUs, by torchrun's own --numa-binding.

torch wraps each rank in numactl (torch/numa/binding.py) and raises where it cannot: without the program, without an
accelerator, with no usable CPU on a GPU's node. So it is asked for only where all of that is known to be there, and
where no CPU of ours would be left idle by it.
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
    """`mode` is "node" or "socket" as torchrun names them, None for no binding; `reason` says why, in one line."""

    mode: str | None
    reason: str


def numa_binding(topology: Topology, selection: Selection, host: Host) -> str | None:
    """The value for torchrun's --numa-binding; None: leave it out."""
    binding = choose_binding(topology, selection, host)
    return binding.mode if binding else None


def choose_binding(topology: Topology, selection: Selection, host: Host) -> Binding | None:
    """The binding with its reason; None where there is nothing to choose: no GPU, or one NUMA node for us."""
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
    """Why torchrun's --numa-binding, in any mode, would end the run instead of binding; None where it would work."""
    if not selection.indices:
        return "it binds ranks to the CPUs beside their GPUs, and no GPU is used"
    if _slices(selection):
        return "torchrun's process sees the first MIG slice alone"
    gpus = _gpus(topology, selection)
    return next((why(gpus, host) for hinders, why in _OBSTACLES if hinders(gpus, host)), None)


def bound_threads(topology: Topology, selection: Selection, host: Host) -> int | None:
    """Physical cores for each rank where ranks are bound: the smallest share of a node or socket. None: not bound."""
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
    """The narrowest place such that each one has a GPU: then every usable CPU belongs to some rank."""
    with_gpu = [node for node in host.usable_nodes if node.index in _nodes_of(gpus)]
    if len(with_gpu) == len(host.usable_nodes):
        return "node", "NUMA node"
    sockets = {node.socket for node in host.usable_nodes}
    if len(sockets) > 1 and None not in sockets and sockets == {node.socket for node in with_gpu}:
        return "socket", "socket"
    return None, ""


def _nodes_of(gpus: list[Gpu]) -> set[int | None]:
    return {gpu.numa_node for gpu in gpus}


def _slices(selection: Selection) -> bool:
    return any(uuid.startswith("MIG-") for uuid in selection.uuids)


def _gpus(topology: Topology, selection: Selection) -> list[Gpu]:
    return [topology.gpu(index) for index in dict.fromkeys(selection.indices)]


def _unknown(gpus: list[Gpu], host: Host) -> list[int]:
    return [gpu.index for gpu in gpus if gpu.numa_node is None]


def _far(gpus: list[Gpu], host: Host) -> list[int]:
    usable = {node.index for node in host.usable_nodes}
    return [gpu.index for gpu in gpus if gpu.numa_node not in usable]


def _exclusive(gpus: list[Gpu], host: Host) -> list[int]:
    return [gpu.index for gpu in gpus if (gpu.compute_mode or "").startswith("exclusive")]


def _list(indices: list[int]) -> str:
    return ", ".join(map(str, indices))


# (whether it rules binding out, why), the first one counts.
_OBSTACLES: tuple[tuple[Callable[[list[Gpu], Host], object], Callable[[list[Gpu], Host], str]], ...] = (
    (_unknown, lambda gpus, host: f"the driver does not tell the node of GPU {_list(_unknown(gpus, host))}"),
    (_far, lambda gpus, host: f"this process may use no CPU of the node of GPU {_list(_far(gpus, host))}"),
    (
        # torchrun asks CUDA for the GPUs' bus ids, from its own process.
        _exclusive,
        lambda gpus, host: f"GPU {_list(_exclusive(gpus, host))} admits one process alone, and torchrun would be it",
    ),
    (
        lambda gpus, host: not host.numactl,
        lambda gpus, host: "torchrun's --numa-binding needs the program numactl, which is not installed",
    ),
    (
        lambda gpus, host: host.numa_policy is False,
        lambda gpus, host: (
            "the kernel refuses numactl its calls; a Docker container needs `--cap-add=SYS_NICE` for them"
        ),
    ),
    (
        lambda gpus, host: host.numa_policy is None,
        lambda gpus, host: "it could not be found out whether the kernel lets numactl work here",
    ),
)
