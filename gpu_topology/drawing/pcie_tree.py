"""The PCIe paths of a machine as a tree: which GPUs share a switch, a host bridge, a NUMA node.

The link levels are nested (PIX within PXB within PHB within NODE within SYS), so GPUs joined at each level in turn form
a tree, and the level of a pair is that of the branch where the two meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from gpu_topology.topology import Link, LinkLevel, Topology

LEVELS = (LinkLevel.SYS, LinkLevel.NODE, LinkLevel.PHB, LinkLevel.PXB, LinkLevel.PIX)


@dataclass(frozen=True, slots=True)
class Branch:
    """GPUs (NVML indices, in drawing order) that reach each other within `level`; `parts`: the groups nearer still.

    meets  the links of the pairs that have no nearer branch in common
    """

    level: LinkLevel
    gpus: tuple[int, ...]
    parts: tuple[Branch, ...]
    meets: tuple[Link, ...]


def pcie_tree(topology: Topology) -> Branch:
    """The whole machine as one branch of level SYS, with a part for each NUMA node, and so on down to PIX."""
    return _branch(topology, [gpu.index for gpu in topology.gpus], 0)


def node_of(topology: Topology, members: Sequence[int]) -> Branch:
    """Some of the GPUs of a NUMA node as a branch of level NODE."""
    return _branch(topology, members, LEVELS.index(LinkLevel.NODE))


def at_level(branch: Branch, level: LinkLevel) -> tuple[Branch, ...]:
    """All branches of one level below (or at) a branch, in drawing order."""
    if branch.level is level:
        return (branch,)
    return tuple(found for part in branch.parts for found in at_level(part, level))


def _branch(topology: Topology, members: Sequence[int], depth: int) -> Branch:
    """The tree of these GPUs from a level on, with the links between its parts."""
    if depth == len(LEVELS) - 1:
        ordered = tuple(sorted(members))
        return Branch(LEVELS[depth], ordered, (), tuple(topology.link(a, b) for a, b in combinations(ordered, 2)))
    groups = _joined(topology, members, LEVELS[depth + 1])
    parts = tuple(_branch(topology, group, depth + 1) for group in groups)
    links = [topology.link(a, b) for one, other in combinations(parts, 2) for a in one.gpus for b in other.gpus]
    return Branch(LEVELS[depth], tuple(index for part in parts for index in part.gpus), parts, tuple(links))


def _joined(topology: Topology, members: Sequence[int], level: LinkLevel) -> list[list[int]]:
    """The members in groups of those that reach each other within `level`, the lowest index first."""
    groups: list[list[int]] = []
    for index in members:
        near = [group for group in groups if any(_within(topology, index, other, level) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([index, *(other for group in near for other in group)]))
    return sorted(groups)


def _within(topology: Topology, a: int, b: int, level: LinkLevel) -> bool:
    """Whether two GPUs are connected at this level or closer."""
    path = topology.link(a, b).path
    if path is not None:
        return LEVELS.index(path) >= LEVELS.index(level)
    # Without a known path the NUMA node decides; where that is unknown too, the two are drawn side by side.
    return level is LinkLevel.NODE and topology.gpu(a).numa_node == topology.gpu(b).numa_node
