"""How fast two GPUs can talk, as a model of the path, and the subset of GPUs whose all-reduce is the fastest.

A ring all-reduce runs at the pace of its slowest link, so subsets are compared by the best ring's bottleneck first.
The figures are the hardware's nominal ones; only their order decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product

from gpu_topology.topology import Link, LinkLevel, Topology

# GB/s of one NVLink in one direction by compute capability, from NVIDIA's architecture white papers: P100 20,
# V100 and Turing 25, A100 / A30 25, GA102 (RTX 3090, A6000, A40) 56.25 over 4 links, H100 450 / 18, B200 900 / 18.
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

# GB/s over PCIe by path, peer to peer and by way of host memory: a Gen3 x16 slot moves about 12, each hop costs,
# and a byte by way of host memory crosses the bus twice. Later generations scale all alike, so the order holds.
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

_PATH_RANK = {level: rank for rank, level in enumerate(LinkLevel)}


def link_speed(link: Link, capability: tuple[int, int] | None) -> float:
    """The modelled GB/s of a link, one direction; `capability` is the slower end's compute capability.

    Peer access "not ok" counts as host memory, on NVLink too (NCCL then needs NCCL_P2P_DISABLE). Unknown access counts
    as works, an unknown path as the farthest.
    """
    peer = link.p2p in (None, "ok")
    if link.level is LinkLevel.NV and link.nvlinks and peer:
        each = NVLINK_GB_S.get(capability, _NVLINK_UNKNOWN_GB_S) if capability else _NVLINK_UNKNOWN_GB_S
        return link.nvlinks * each
    path = link.pcie_level or link.level
    if path is None or path is LinkLevel.NV:
        path = LinkLevel.SYS
    return (_PEER_GB_S if peer else _HOST_GB_S)[path]


class Fabric:
    """The speeds between some GPUs of a topology, and questions about subsets of them."""

    def __init__(self, topology: Topology, indices: Sequence[int]) -> None:
        self.indices = tuple(sorted(indices))
        self._position = {index: position for position, index in enumerate(self.indices)}
        gpus = {index: topology.gpu(index) for index in self.indices}
        self.numa = {index: gpu.numa_node for index, gpu in gpus.items()}
        self.display = {index: bool(gpu.display_active) for index, gpu in gpus.items()}
        self.speed: dict[tuple[int, int], float] = {}
        self.distance: dict[tuple[int, int], int] = {}
        for a, b in combinations(self.indices, 2):
            link = topology.link(a, b)
            ends = [capability for i in (a, b) if (capability := gpus[i].compute_capability)]
            speed = link_speed(link, min(ends) if ends else None)
            rank = _PATH_RANK[link.pcie_level or link.level or LinkLevel.SYS]
            self.speed[a, b] = self.speed[b, a] = speed
            self.distance[a, b] = self.distance[b, a] = rank

    def total(self, subset: Sequence[int]) -> float:
        """Sum of the link speeds within a subset, GB/s."""
        return sum(self.speed[pair] for pair in combinations(subset, 2))

    def bottleneck(self, subset: Sequence[int]) -> float:
        """The slowest link of the best ring through all of `subset`, GB/s; infinite for fewer than two GPUs."""
        if len(subset) < 2:
            return float("inf")
        for floor in self._floors(subset):
            if _has_ring(self._mask(subset), self._near(floor)):
                return floor
        raise AssertionError("a complete graph has a ring")

    def best(self, count: int) -> tuple[int, ...]:
        """The best-connected `count` GPUs: fastest bottleneck, then highest sum, then fewest NUMA nodes.

        Ties after that: nearest over PCIe, fewest that drive a display, lowest indices.
        """
        finalists = candidates = self._candidates(count)
        masks = [self._mask(subset) for subset in candidates]
        for floor in self._floors(self.indices) if count > 1 else ():
            near = self._near(floor)
            finalists = [subset for subset, mask in zip(candidates, masks, strict=True) if _has_ring(mask, near)]
            if finalists:
                break
        return max(finalists, key=lambda subset: (*self._quality(subset), tuple(-index for index in subset)))

    def _floors(self, subset: Sequence[int]) -> list[float]:
        """The link speeds that occur, fastest first: a ring's bottleneck is one of them."""
        return sorted({self.speed[pair] for pair in combinations(subset, 2)}, reverse=True)

    def _mask(self, subset: Sequence[int]) -> int:
        return sum(1 << self._position[index] for index in subset)

    def _near(self, floor: float) -> list[int]:
        """For each GPU by position, the mask of those it reaches with at least `floor` GB/s."""
        reach = self.speed.get
        return [self._mask([j for j in self.indices if reach((i, j), 0.0) >= floor]) for i in self.indices]

    def _quality(self, subset: tuple[int, ...]) -> tuple[float, int, int, int]:
        near = -sum(self.distance[pair] for pair in combinations(subset, 2))
        nodes = len({self.numa[index] for index in subset})
        return self.total(subset), -nodes, near, -sum(self.display[index] for index in subset)

    def _candidates(self, count: int) -> list[tuple[int, ...]]:
        """Subsets of `count` GPUs, one for each way that is not the same by symmetry.

        GPUs that see all others alike (twins) are interchangeable, so only how many of each kind matters; the lowest
        indices stand for them. On an NVSwitch machine this leaves a handful of the 12,870 subsets of 8 in 16.
        """
        kinds: list[list[int]] = []
        for index in self.indices:
            kind = next((kind for kind in kinds if self._twins(kind[0], index)), None)
            if kind is None:
                kinds.append([index])
            else:
                kind.append(index)
        return [
            tuple(sorted(index for kind, take in zip(kinds, counts, strict=True) for index in kind[:take]))
            for counts in _ways([len(kind) for kind in kinds], count)
        ]

    def _twins(self, a: int, b: int) -> bool:
        if (self.numa[a], self.display[a]) != (self.numa[b], self.display[b]):
            return False
        others = (i for i in self.indices if i not in (a, b))
        return all(self.speed[a, i] == self.speed[b, i] and self.distance[a, i] == self.distance[b, i] for i in others)


def _has_ring(members: int, near: list[int]) -> bool:
    """Whether a ring through all `members` (a mask of positions, two or more) follows the edges of `near`."""
    size = members.bit_count()
    fewest, rest = size, members
    while rest:
        lowest = rest & -rest
        fewest = min(fewest, (near[lowest.bit_length() - 1] & members).bit_count())
        if fewest < min(2, size - 1):
            return False
        rest ^= lowest
    # Dirac 1952: half of the others near is enough. Else search.
    return size == 2 or 2 * fewest >= size or _search_ring(members, near)


def _search_ring(members: int, near: list[int]) -> bool:
    """Hamiltonian cycle over the positions in `members`, by memoised search from the first."""
    first = members & -members

    @cache
    def finishes(at: int, left: int) -> bool:
        if not left:
            return bool(near[at] & first)
        ahead = near[at] & left
        while ahead:
            lowest = ahead & -ahead
            if finishes(lowest.bit_length() - 1, left ^ lowest):
                return True
            ahead ^= lowest
        return False

    return finishes(first.bit_length() - 1, members ^ first)


def _ways(sizes: list[int], count: int) -> Iterator[tuple[int, ...]]:
    """Every way to take `count` things out of boxes of these sizes."""
    if len(sizes) <= 3:
        yield from (way for way in product(*(range(size + 1) for size in sizes)) if sum(way) == count)
        return
    for first in range(min(sizes[0], count) + 1):
        if count - first <= sum(sizes[1:]):
            yield from ((first, *rest) for rest in _ways(sizes[1:], count - first))
