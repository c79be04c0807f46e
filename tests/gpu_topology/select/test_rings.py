"""Rings by integers as sets of subsets, against every ring tried one by one."""

from __future__ import annotations

import random
from itertools import combinations, permutations

import pytest

from gpu_topology.select import rings
from gpu_topology.select.rings import ring_subsets, subsets_in, sums_over_subsets


def random_graph(seed: int, size: int, density: float) -> list[int]:
    draw = random.Random(seed)
    near = [0] * size
    for a, b in combinations(range(size), 2):
        if draw.random() < density:
            near[a] |= 1 << b
            near[b] |= 1 << a
    return near


def has_ring(near: list[int], members: tuple[int, ...]) -> bool:
    first, *rest = members
    rings = ((first, *order) for order in permutations(rest))
    return any(all(near[ring[i - 1]] >> ring[i] & 1 for i in range(len(ring))) for ring in rings)


@pytest.mark.parametrize("density", [0.2, 0.4, 0.6, 1.0])
def test_every_subset_with_a_ring_is_found_and_no_other(density):
    for seed in range(6):
        size = 5 + seed % 3
        near = random_graph(seed, size, density)
        for count in range(2, size + 1):
            expected = {sum(1 << at for at in one) for one in combinations(range(size), count) if has_ring(near, one)}
            assert set(subsets_in(ring_subsets(near, count))) == expected


def test_subsets_come_out_as_they_went_in():
    assert list(subsets_in(1 << 3 | 1 << 5 | 1 << 65535)) == [3, 5, 65535]
    assert list(subsets_in(0)) == []


def test_sums_are_those_of_pairs_and_members():
    sums = sums_over_subsets(lambda a, b: 10 * a + b, [1000, 2000, 3000])
    assert sums == [0, 1000, 2000, 3000 + 10, 3000, 4000 + 20, 5000 + 21, 6000 + 10 + 20 + 21]


def test_a_ring_of_any_number_is_found_where_the_exact_search_finds_one():
    for seed in range(400):
        draw = random.Random(seed)
        size = draw.randint(3, 10)
        near = random_graph(seed, size, draw.random())
        assert rings.has_ring(near) == bool(ring_subsets(near, size)), seed


def test_things_in_two_parts_have_no_ring_and_a_ladder_of_40_has():
    size = 40
    two_parts = [sum(1 << b for b in range(size) if b != a and b // 20 == a // 20) for a in range(size)]
    assert not rings.has_ring(two_parts), "each has two others beside it, which is not enough"
    ladder = [sum(1 << b % size for b in (a + 39, a + 1, a + 20)) for a in range(size)]
    assert rings.has_ring(ladder)
