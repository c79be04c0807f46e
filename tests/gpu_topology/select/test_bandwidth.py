"""The best-connected subset, against an oracle that tries every ring."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations, permutations

import pytest

from gpu_topology.select.bandwidth import Fabric, link_speed
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, Topology


def machine(labels: list[list[str]], numa: list[int] | None = None, capability: tuple[int, int] = (8, 0)) -> Topology:
    """A topology from nvidia-smi's matrix."""
    size = len(labels)
    links = []
    for a, b in combinations(range(size), 2):
        label = labels[a][b]
        count = int(label[2:]) if label.startswith("NV") else 0
        path = LinkLevel.SYS if count else LinkLevel(label)
        links.append(Link(a, b, LinkLevel.NV if count else path, count, "ok", path))
    nodes = numa or [0] * size
    return Topology(tuple(Gpu(i, compute_capability=capability, numa_node=nodes[i]) for i in range(size)), tuple(links))


def random_machine(seed: int, size: int) -> Topology:
    draw = random.Random(seed)
    labels = [["X"] * size for _ in range(size)]
    for a, b in combinations(range(size), 2):
        labels[a][b] = labels[b][a] = draw.choice(["NV1", "NV2", "NV4", "PIX", "PHB", "SYS"])
    return machine(labels, [draw.randrange(2) for _ in range(size)])


def ring_bottleneck(fabric: Fabric, subset: tuple[int, ...]) -> float:
    """Every ring through a subset, one by one."""
    first, *rest = subset
    rings = ((first, *order) for order in permutations(rest))
    return max(min(fabric.speed[ring[i], ring[i - 1]] for i in range(len(ring))) for ring in rings)


@pytest.mark.parametrize("seed", range(40))
def test_best_subset_equals_exhaustive_search(seed):
    size = 5 + seed % 3
    fabric = Fabric(random_machine(seed, size), range(size))
    for count in range(2, size + 1):
        best = fabric.best(count)
        bottlenecks = {subset: ring_bottleneck(fabric, subset) for subset in combinations(range(size), count)}
        assert bottlenecks[best] == fabric.bottleneck(best) == max(bottlenecks.values())
        rivals = [subset for subset, slowest in bottlenecks.items() if slowest == bottlenecks[best]]
        assert fabric.total(best) == max(fabric.total(subset) for subset in rivals)
        rivals = [subset for subset in rivals if fabric.total(subset) == fabric.total(best)]
        nodes = {subset: len({fabric.numa[index] for index in subset}) for subset in rivals}
        assert nodes[best] == min(nodes.values())


def test_sixteen_gpus_behind_a_switch_take_one_socket():
    labels = [["NV6"] * 16 for _ in range(16)]
    fabric = Fabric(machine(labels, [i % 2 for i in range(16)]), range(16))
    assert fabric.best(8) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert fabric.best(1) == (0,)
    assert fabric.best(16) == tuple(range(16))


def test_numa_nodes_weigh_more_than_the_pcie_path_and_that_more_than_the_index():
    near, far = LinkLevel.PIX, LinkLevel.NODE
    paths = {(0, 1): near, (0, 2): far, (1, 2): far, (0, 3): far, (1, 3): far, (2, 3): near}

    def best(nodes: list[int]) -> tuple[int, ...]:
        gpus = tuple(Gpu(i, compute_capability=(8, 0), numa_node=nodes[i]) for i in range(4))
        links = tuple(Link(a, b, LinkLevel.NV, 12, "ok", path) for (a, b), path in paths.items())
        return Fabric(Topology(gpus, links), range(4)).best(2)

    assert best([0, 0, 0, 0]) == (0, 1)
    assert best([0, 1, 0, 0]) == (2, 3)
    assert best([0, 1, 2, 0]) == (0, 3), "one node, though not the nearest path"


def test_a_ring_that_needs_a_search_is_found():
    # Eight GPUs in one ring of NV2, each otherwise far: no vertex has half of the others near.
    labels = [["NV2" if abs(a - b) in (1, 7) else "SYS" for b in range(8)] for a in range(8)]
    fabric = Fabric(machine(labels), range(8))
    assert fabric.bottleneck(range(8)) == 50.0
    assert fabric.bottleneck(range(7)) == 4.0  # a path, not a ring


@pytest.mark.parametrize(
    ("link", "capability", "speed"),
    [
        (Link(0, 1, LinkLevel.NV, 4, "ok", LinkLevel.PHB), (8, 6), 56.0),  # RTX 3090: 4 x 14
        (Link(0, 1, LinkLevel.NV, 4, "ok", LinkLevel.PHB), (8, 0), 100.0),  # A30: 4 x 25
        (Link(0, 1, LinkLevel.NV, 18, None, LinkLevel.SYS), (9, 0), 450.0),
        (Link(0, 1, LinkLevel.NV, 2, "ok", LinkLevel.SYS), (99, 0), 100.0),  # newer than the table: as its newest
        (Link(0, 1, LinkLevel.NV, None, "ok", LinkLevel.SYS), (7, 0), 25.0),  # at least one
    ],
)
def test_nvlink_speed_follows_the_generation(link, capability, speed):
    assert link_speed(link, capability) == speed


def test_paths_are_ordered_and_host_memory_is_slower_than_peer_access():
    pcie = [level for level in LinkLevel if level is not LinkLevel.NV]
    peer = [link_speed(Link(0, 1, level, 0, "ok", level), (8, 0)) for level in pcie]
    host = [link_speed(Link(0, 1, level, 0, "chipset-not-supported", level), (8, 0)) for level in pcie]
    assert peer == sorted(peer, reverse=True)
    assert len(set(peer)) == len(peer)
    assert host == sorted(host, reverse=True)
    assert all(through < direct for through, direct in zip(host, peer, strict=True))
    broken = Link(0, 1, LinkLevel.NV, 4, "not-supported", LinkLevel.PIX)
    assert link_speed(broken, (8, 0)) == host[0]
    assert link_speed(Link(0, 1), None) == host[-1] == min(peer + host), "what is unknown is not fast"


@pytest.mark.parametrize("seed", range(8))
def test_the_index_decides_nothing_but_ties(seed):
    draw = random.Random(seed)
    size = 7
    topology = random_machine(seed, size)
    fabric = Fabric(topology, range(size))
    for _ in range(10):
        order = draw.sample(range(size), size)  # new index i is old index order[i]
        place = {old: new for new, old in enumerate(order)}
        links = []
        for link in topology.links:
            a, b = sorted((place[link.a], place[link.b]))
            links.append(replace(link, a=a, b=b))
        gpus = tuple(replace(topology.gpus[old], index=new) for new, old in enumerate(order))
        shuffled = Fabric(Topology(gpus, tuple(links)), range(size))
        for count in range(2, size):
            best, other = fabric.best(count), tuple(order[index] for index in shuffled.best(count))
            assert quality(fabric, best) == quality(fabric, other)


def quality(fabric: Fabric, subset: tuple[int, ...]) -> tuple[float, ...]:
    nodes = len({fabric.numa[index] for index in subset})
    far = sum(fabric.distance[pair] for pair in combinations(subset, 2))
    return fabric.bottleneck(subset), fabric.total(subset), nodes, far


def test_a_narrow_slot_is_a_slow_link_but_not_for_nvlink():
    def best(level: LinkLevel, widths: list[int | None], generations: list[int] | None = None) -> tuple[int, ...]:
        gpus = tuple(
            Gpu(i, compute_capability=(8, 6), pcie_generation=(generations or [4] * 3)[i], pcie_width=width)
            for i, width in enumerate(widths)
        )
        count = 4 if level is LinkLevel.NV else 0
        pairs = combinations(range(3), 2)
        links = tuple(Link(a, b, level, count, "ok", LinkLevel.PHB) for a, b in pairs)
        return Fabric(Topology(gpus, links), range(3)).best(2)

    assert best(LinkLevel.PHB, [4, 16, 16]) == (1, 2)
    assert best(LinkLevel.PHB, [16, 16, 16], [3, 4, 4]) == (1, 2)
    assert best(LinkLevel.PHB, [8, 8, 8]) == best(LinkLevel.PHB, [None, 8, 8]) == (0, 1)
    assert best(LinkLevel.NV, [4, 16, 16]) == (0, 1)


def test_pairs_that_were_never_read_are_the_slowest():
    gpus = tuple(Gpu(i) for i in range(4))
    known = Link(2, 3, LinkLevel.SYS, 0, "chipset-not-supported", LinkLevel.SYS)
    assert Fabric(Topology(gpus, (known,)), range(4)).best(2) == (0, 1), "as slow as the slowest: the index decides"
    known = Link(2, 3, LinkLevel.NODE, 0, "chipset-not-supported", LinkLevel.NODE)
    assert Fabric(Topology(gpus, (known,)), range(4)).best(2) == (2, 3)


def test_the_slowest_link_of_32_gpus_is_that_of_a_ring():
    labels = [
        ["PIX" if a // 4 == b // 4 else "NODE" if a // 16 == b // 16 else "SYS" for b in range(32)] for a in range(32)
    ]
    fabric = Fabric(machine(labels, [i // 16 for i in range(32)]), range(32))
    assert fabric.bottleneck(range(32)) == 4.0, "both halves, which SYS alone joins"
    assert fabric.bottleneck(range(16)) == 5.0
    assert fabric.best(16) == tuple(range(16))


def test_gpus_on_two_nodes_are_never_nearer_than_sys_where_the_nodes_agree_with_the_paths():
    labels = [["PIX"] * 4 for _ in range(4)]
    assert Fabric(machine(labels, [0, 0, 1, 1]), range(4)).bottleneck(range(4)) == 4.0
    labels[0][3] = labels[3][0] = "SYS"
    contradiction = Fabric(machine(labels, [0, 1, 1, 0]), range(4))
    assert contradiction.bottleneck(range(4)) == 12.0, "SYS within one node: the nodes are not to be trusted"


def test_one_gpu_has_the_fastest_slot_and_of_equals_the_idle_one_is_taken():
    def best(count: int, *changes: dict[str, object]) -> tuple[int, ...]:
        known = {"compute_capability": (8, 6), "pcie_generation": 4, "pcie_width": 16}
        gpus = tuple(Gpu(i, **(known | change)) for i, change in enumerate(changes))  # type: ignore[arg-type]
        links = tuple(Link(a, b, LinkLevel.PHB, 0, "ok", LinkLevel.PHB) for a, b in combinations(range(len(gpus)), 2))
        return Fabric(Topology(gpus, links), range(len(gpus))).best(count)

    assert best(1, {"pcie_width_now": 4}, {"pcie_width_now": 16}) == (1,)
    assert best(1, {"display_active": True}, {}) == (1,)
    assert best(1, {"processes": (GpuProcess(1),)}, {"graphics_processes": (GpuProcess(2),)}, {}) == (2,)
    assert best(1, {"pcie_width_now": 1}, {"display_active": True}) == (1,), "the slot weighs more"
    assert best(2, {"utilization": 12}, {}, {}) == (1, 2)


def test_more_than_sixteen_gpus_are_searched_by_neighbourhoods():
    size = 20
    labels = [["PIX" if a // 4 == b // 4 else "SYS" for b in range(size)] for a in range(size)]
    for a, b in combinations((13, 14, 15), 2):
        labels[a][b] = labels[b][a] = "NV4"
    fabric = Fabric(machine(labels, [i // 10 for i in range(size)]), range(size))
    assert fabric.best(3) == (13, 14, 15)
    assert fabric.best(4) == (12, 13, 14, 15)
    assert len(fabric.best(18)) == 18
    assert fabric.best(20) == tuple(range(20))
