"""A model of how fast two GPUs can exchange data, and the subset of GPUs with the fastest all-reduce.

A ring all-reduce is as fast as its slowest link, so subsets are compared by the best ring's bottleneck first. The
figures are nominal values of the hardware; only their order matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations

from gpu_topology.select.rings import has_ring, ring_subsets, subsets_in, sums_over_subsets
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

# GB/s of one NVLink in one direction by compute capability, from NVIDIA's architecture white papers: P100 160 / 8,
# V100 150 / 6, Turing 25, A100 300 / 12, A30 100 / 4, GA102 (RTX 3090, A6000, A40) 56.25 / 4, H100 450 / 18,
# B200 900 / 18.
NVLINK_GB_S = {
    (6, 0): 20.0,
    (7, 0): 25.0,
    (7, 5): 25.0,
    (8, 0): 25.0,
    (8, 6): 14.0,
    (9, 0): 25.0,
    (10, 0): 50.0,
    (10, 3): 50.0,
}
_NVLINK_UNKNOWN_GB_S = 25.0

# GB/s over PCIe by path, peer to peer and through host memory: a Gen3 x16 slot moves about 12, each hop costs, and a
# byte through host memory crosses the bus twice. Later generations scale all of them, so the order stays.
_PEER_GB_S = {
    LinkLevel.PIX: 12.0,
    LinkLevel.PXB: 11.0,
    LinkLevel.PHB: 7.0,
    LinkLevel.NODE: 5.0,
    LinkLevel.SYS: 4.0,
}
_HOST_GB_S = {
    LinkLevel.PIX: 5.6,
    LinkLevel.PXB: 5.6,
    LinkLevel.PHB: 5.6,
    LinkLevel.NODE: 4.5,
    LinkLevel.SYS: 3.5,
}
# GB/s of a path that the driver does not report: the slowest.
_UNKNOWN_GB_S = 3.5

_PATH_RANK = {level: rank for rank, level in enumerate(LinkLevel)}

# The search is exact up to this number of GPUs; with more, only the neighbourhood of each GPU is searched.
EXACT_GPUS = 16


def link_speed(link: Link, capability: tuple[int, int] | None) -> float:
    """The modelled GB/s of a link in one direction; `capability`: the slower end's compute capability.

    Without peer access the path is host memory, on NVLink too (NCCL then needs NCCL_P2P_DISABLE). Unknown peer access
    counts as working, an unknown number of NVLinks as one.
    """
    peer = link.p2p in (None, "ok")
    if link.level is LinkLevel.NV and link.nvlinks != 0 and peer:
        return (link.nvlinks or 1) * _nvlink_speed(capability)
    path = link.pcie_level or link.level
    if path is None:
        return _UNKNOWN_GB_S
    if path is LinkLevel.NV:
        path = LinkLevel.SYS
    return (_PEER_GB_S if peer else _HOST_GB_S)[path]


def _nvlink_speed(capability: tuple[int, int] | None) -> float:
    """GB/s of one NVLink in one direction; a newer generation than the table's counts as its newest."""
    if capability is None:
        return _NVLINK_UNKNOWN_GB_S
    newest = max(NVLINK_GB_S)
    return NVLINK_GB_S.get(capability, NVLINK_GB_S[newest] if capability > newest else _NVLINK_UNKNOWN_GB_S)


# GB/s of one PCIe lane in one direction by generation (PCI-SIG: 2.5 to 64 GT/s, less the line code).
LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.97, 5: 3.94, 6: 7.56}


def lanes(gpu: Gpu) -> int | None:
    """The lanes that a GPU's PCIe link uses now, limited by card, slot and riser; None when unknown."""
    return gpu.pcie_width_now or gpu.pcie_width


def slot_speed(gpu: Gpu) -> float | None:
    """GB/s of a GPU's PCIe link in one direction under load: an idle link lowers its generation, not its lanes."""
    width = lanes(gpu)
    rate = LANE_GB_S.get(min(gpu.pcie_generation or 0, max(LANE_GB_S)))
    return rate * width if rate and width else None


def _slots(gpus: Sequence[Gpu]) -> dict[int, float]:
    """NVML index -> speed of the PCIe slot as a share of the fastest one; 1 where it is unknown."""
    speeds = {gpu.index: speed for gpu in gpus if (speed := slot_speed(gpu)) is not None}
    fastest = max(speeds.values(), default=1.0)
    return {gpu.index: speeds.get(gpu.index, fastest) / fastest for gpu in gpus}


def _across_nodes(topology: Topology) -> set[tuple[int, int]]:
    """The pairs on different NUMA nodes: their path is SYS by definition, even where the driver reports a shorter one.

    Empty where the nodes contradict the paths: SYS within one node, or an unknown node.
    """
    nodes = {gpu.index: gpu.numa_node for gpu in topology.gpus if gpu.error is None}
    far = [link for link in topology.links if (link.pcie_level or link.level) is LinkLevel.SYS]
    if None in nodes.values() or any(nodes.get(link.a) == nodes.get(link.b) for link in far):
        return set()
    return {(link.a, link.b) for link in topology.links if nodes.get(link.a) != nodes.get(link.b)}


def _load(gpu: Gpu) -> int:
    """How busy a GPU is, from 0 (idle) to 3, to break ties."""
    drawing = bool(gpu.graphics_processes) or (gpu.utilization or 0) >= 10 or (gpu.memory_used or 0) > 512 * 2**20
    return int(bool(gpu.display_active)) + int(drawing) + int(bool(gpu.processes))


class Fabric:
    """The speeds between some GPUs of a topology, and the best subsets of them."""

    def __init__(self, topology: Topology, indices: Sequence[int]) -> None:
        # A GPU's position is its bit in masks. The lowest index has the highest bit: of two subsets of one size the
        # larger mask has the lower indices.
        self.indices = tuple(sorted(indices, reverse=True))
        gpus = {index: topology.gpu(index) for index in self.indices}
        self.numa = {index: gpu.numa_node for index, gpu in gpus.items()}
        self.load = {index: _load(gpu) for index, gpu in gpus.items()}
        self.slot = _slots(list(gpus.values()))
        self.links: dict[tuple[int, int], Link] = {}
        self.speed: dict[tuple[int, int], float] = {}
        self.distance: dict[tuple[int, int], int] = {}
        known = {(link.a, link.b): link for link in topology.links_within(self.indices)}
        across = _across_nodes(topology)
        for pair in combinations(sorted(indices), 2):
            link = known.get(pair, Link(*pair))
            if any(gpus[index].mig_mode for index in pair):
                link = replace(link, p2p="not-supported")  # MIG user guide: no peer access, neither PCIe nor NVLink
            ends = [capability for index in pair if (capability := gpus[index].compute_capability)]
            path = LinkLevel.SYS if pair in across else link.pcie_level
            speed = link_speed(replace(link, pcie_level=path), min(ends, default=None))
            if link.level is not LinkLevel.NV or link.p2p not in (None, "ok"):
                speed *= min(self.slot[index] for index in pair)
            self.links[pair] = link
            self.speed[pair] = self.speed[pair[::-1]] = speed
            path = link.pcie_level or link.level or LinkLevel.SYS
            self.distance[pair] = self.distance[pair[::-1]] = _PATH_RANK[path]

    def total(self, subset: Sequence[int]) -> float:
        """Sum of the link speeds within a subset, GB/s."""
        return sum(_mb_s(self.speed[pair]) for pair in combinations(subset, 2)) / 1000

    def bottleneck(self, subset: Sequence[int]) -> float:
        """GB/s of the slowest link in the best ring through all of `subset`; infinite for fewer than two GPUs.

        With more than 16 GPUs: the fastest floor at which a ring was found.
        """
        if len(subset) < 2:
            return float("inf")
        return self._highest_floor(sorted(subset, reverse=True), len(subset))[0]

    def best(self, count: int) -> tuple[int, ...]:
        """The best-connected `count` GPUs: fastest bottleneck, then highest sum, then fewest NUMA nodes.

        Remaining ties: nearest over PCIe, idle (no display, desktop or process), lowest indices. A single GPU is one
        with the fastest slot.
        """
        if count == len(self.indices):
            return tuple(sorted(self.indices))
        if len(self.indices) <= EXACT_GPUS:
            return self._best_of(self.indices, count)
        finalists = {self._best_of(around, count) for around in self._neighbourhoods(count)}
        return max(finalists, key=lambda subset: (self.bottleneck(subset), self._value(subset), [-i for i in subset]))

    def _best_of(self, among: Sequence[int], count: int) -> tuple[int, ...]:
        """The best `count` of `among`, which are EXACT_GPUS at most."""
        size = len(among)
        if count == size:
            return tuple(sorted(among))
        singles = sum(1 << (1 << position) for position in range(size))
        candidates = subsets_in(self._highest_floor(among, count)[1] if count > 1 else singles)
        values = sums_over_subsets(
            lambda a, b: self._worth[among[a], among[b]], [self._single(index, count) for index in among]
        )
        nodes = self._node_sets(among)
        best = max((values[mask] - (nodes[mask].bit_count() << _NODES), mask) for mask in candidates)[1]
        return tuple(index for position, index in reversed(list(enumerate(among))) if best >> position & 1)

    def _highest_floor(self, among: Sequence[int], count: int) -> tuple[float, int]:
        """The fastest bottleneck of a ring through `count` of these GPUs, and the set of subsets that reach it."""
        floors = sorted({self.speed[pair] for pair in combinations(among, 2)}, reverse=True)
        # No ring is faster than the second fastest links of its members; the answer is mostly there or just below.
        fast, slow = floors.index(self._second_fastest(among, count)) - 1, len(floors) - 1
        found, step = 0, 1
        while slow - fast > 1 or not found:
            trial = (fast + slow) // 2 if found else min(fast + step, slow)
            sets = self._rings(among, count, floors[trial])
            if sets:
                slow, found = trial, sets
            else:
                fast, step = trial, 2 * step
        return floors[slow], found

    def _second_fastest(self, among: Sequence[int], count: int) -> float:
        """The speed that `count` of these GPUs reach on two links each (on one, for a pair): no ring is faster."""
        links = min(count - 1, 2)
        each = [sorted((self.speed[a, b] for b in among if b != a), reverse=True)[links - 1] for a in among]
        return sorted(each, reverse=True)[count - 1]

    def _rings(self, among: Sequence[int], count: int, floor: float) -> int:
        """The subsets of `count` GPUs with a ring at this floor; beyond EXACT_GPUS: 1 if a ring joins all, else 0."""
        reach = self.speed.get
        near = [sum(1 << j for j, b in enumerate(among) if reach((a, b), 0.0) >= floor) for a in among]
        if len(among) <= EXACT_GPUS:
            return ring_subsets(near, count)
        return int(has_ring(near))

    @cached_property
    def _worth(self) -> dict[tuple[int, int], int]:
        """The amount that a pair adds to the value of a subset: speed first, in whole MB/s so that sums are exact."""
        return {pair: (_mb_s(speed) << _SPEED) - (self.distance[pair] << _PATH) for pair, speed in self.speed.items()}

    def _node_sets(self, among: Sequence[int]) -> list[int]:
        """For every mask of GPUs the mask of their NUMA nodes."""
        known = list(dict.fromkeys(self.numa[index] for index in among))
        sets = [0]
        for index in among:
            node = 1 << known.index(self.numa[index])
            sets += [nodes | node for nodes in sets]
        return sets

    def _value(self, subset: Sequence[int]) -> int:
        """The value of a whole subset, as `_best_of` compares them."""
        nodes = len({self.numa[index] for index in subset})
        singles = sum(self._single(index, len(subset)) for index in subset)
        return sum(self._worth[pair] for pair in combinations(subset, 2)) - (nodes << _NODES) + singles

    def _single(self, index: int, count: int) -> int:
        """The amount that a GPU by itself adds to the value of a subset of `count`."""
        return (_mb_s(self.slot[index]) << _SPEED if count == 1 else 0) - self.load[index]

    def _neighbourhoods(self, count: int) -> set[tuple[int, ...]]:
        """For each GPU, itself and those that it reaches fastest: EXACT_GPUS in all, or `count` if that is more."""
        size = max(count, EXACT_GPUS)
        return {
            tuple(sorted((seed, *sorted(others, key=lambda i: -self._worth[seed, i])[: size - 1]), reverse=True))
            for seed in self.indices
            for others in [[index for index in self.indices if index != seed]]
        }


def ring_gb_s(topology: Topology, indices: Sequence[int]) -> float:
    """GB/s of the slowest link in the best ring on this hardware (the model's PCIe figures are for Gen3 x16)."""
    fabric = Fabric(topology, indices)
    floor = fabric.bottleneck(indices)
    slots = [speed for index in indices if (speed := slot_speed(topology.gpu(index))) is not None]
    slowest = [link for pair, link in fabric.links.items() if fabric.speed[pair] == floor]
    over_pcie = all(link.level is not LinkLevel.NV for link in slowest)
    return floor * max(slots) / (16 * LANE_GB_S[3]) if over_pcie and slots else floor


# The first bit of each part of a subset's value: load (bit 0), PCIe distance, NUMA nodes, sum of speeds.
_PATH, _NODES, _SPEED = 8, 24, 32


def _mb_s(speed: float) -> int:
    """GB/s as whole MB/s."""
    return round(speed * 1000)
