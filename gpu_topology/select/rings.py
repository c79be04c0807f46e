"""Which subsets of some GPUs have a ring: all subsets at once, with integers as sets of subsets.

A subset of n things is a mask of n bits. A set of subsets is an integer of 2^n bits: bit m is 1 when the subset with
mask m is in the set. One `|`, `&` or `<<` then acts on every path at once, which makes the dynamic programme of Bellman
and of Held and Karp (1962) for Hamiltonian cycles fast enough for 16 GPUs without compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

Near = Sequence[int]  # for each thing, the mask of its neighbours


def ring_subsets(near: Near, count: int) -> int:
    """The subsets of `count` things, 2 or more, that have a ring (a Hamiltonian cycle) along the edges of `near`.

    A ring of two is one edge there and back. Bit m of the result is 1 when the subset with mask m has a ring.
    """
    near = _in_some_ring(near) if count > 2 else list(near)
    found = 0
    for start, beside in enumerate(near):
        # Each ring is counted at its highest member, so paths from there visit only lower ones.
        lower = beside & ((1 << start) - 1)
        if start + 1 >= count and lower:
            found |= _closing(near, start, lower, count) << (1 << start)
    return found


def _closing(near: Near, start: int, lower: int, count: int) -> int:
    """The sets of `count` - 1 things below `start` visited by a path from `start` that ends beside `start`."""
    paths = {at: 1 << (1 << at) for at in _members(lower)}  # the sets visited by the paths that end at each thing
    below = (1 << start) - 1
    for _ in range(count - 2):
        longer: dict[int, int] = {}
        for at in _members(below):
            arriving = 0
            for before in _members(near[at] & below):
                arriving |= paths.get(before, 0)
            arriving &= _sets_without(at, start)
            if arriving:
                longer[at] = arriving << (1 << at)
        paths = longer
    closed = 0
    for at in _members(lower):
        closed |= paths.get(at, 0)
    return closed


def _in_some_ring(near: Near) -> list[int]:
    """`near` without the things that have fewer than two neighbours, which are in no ring of three or more."""
    rest = list(near)
    while lone := sum(1 << at for at, beside in enumerate(rest) if beside and beside.bit_count() < 2):
        rest = [0 if lone >> at & 1 else beside & ~lone for at, beside in enumerate(rest)]
    return rest


def has_ring(near: Near) -> bool:
    """Whether a ring through all of these things, of any number, was found; if not, there is most likely none.

    Exact where the closure of Bondy and Chvatal (1976) decides, or where a single thing connects the others; otherwise
    a search by rotations (Posa 1976), which finds a ring in all but contrived cases.
    """
    if any(beside.bit_count() < 2 for beside in near) or not _two_connected(near):
        return False
    return _closure_is_complete(near) or any(_rotated(near, start) for start in range(min(len(near), 6)))


def _two_connected(near: Near) -> bool:
    """Whether the others stay connected when any single thing is removed."""
    every = (1 << len(near)) - 1
    for removed in range(len(near)):
        rest = every & ~(1 << removed)
        seen = frontier = rest & -rest
        while frontier:
            around = 0
            for at, beside in enumerate(near):
                around |= beside if frontier >> at & 1 else 0
            frontier = around & rest & ~seen
            seen |= frontier
        if seen != rest:
            return False
    return True


def _closure_is_complete(near: Near) -> bool:
    """Whether all get joined by repeatedly joining two things that together have at least `len(near)` neighbours."""
    size, closed = len(near), list(near)
    grows = True
    while grows:
        grows = False
        for a in range(size):
            for b in range(a):
                if not closed[a] >> b & 1 and closed[a].bit_count() + closed[b].bit_count() >= size:
                    closed[a] |= 1 << b
                    closed[b] |= 1 << a
                    grows = True
    return all(beside.bit_count() == size - 1 for beside in closed)


def _rotated(near: Near, start: int) -> bool:
    """Whether extending and rotating a path from `start` closes it to a ring through all."""
    size, path, visited = len(near), [start], 1 << start
    for turn in range(40 * size):
        free = [at for at in range(size) if near[path[-1]] >> at & 1 and not visited >> at & 1]
        if free:
            fewest = min((near[at] & ~visited).bit_count() for at in free)
            path.append(next(at for at in free if (near[at] & ~visited).bit_count() == fewest))
            visited |= 1 << path[-1]
            continue
        if len(path) == size and near[path[-1]] >> start & 1:
            return True
        beside = [place for place, at in enumerate(path[:-2]) if near[path[-1]] >> at & 1]
        if not beside:
            return False
        cut = beside[turn % len(beside)] + 1
        path[cut:] = path[cut:][::-1]
    return False


@cache
def _sets_without(member: int, size: int) -> int:
    """The set of subsets of `size` things without `member`: the lower half of each run of 2^(member + 1) bits."""
    sets, length = (1 << (1 << member)) - 1, 2 << member
    while length < 1 << size:
        sets |= sets << length
        length *= 2
    return sets


@cache
def _members(mask: int) -> tuple[int, ...]:
    """The numbers of the bits that are set."""
    return tuple(at for at in range(mask.bit_length()) if mask >> at & 1)


def subsets_in(sets: int) -> Iterator[int]:
    """The masks of the subsets in a set of subsets, smallest first."""
    bits = f"{sets:b}"[::-1]
    mask = bits.find("1")
    while mask >= 0:
        yield mask
        mask = bits.find("1", mask + 1)


def sums_over_subsets(pair: Callable[[int, int], int], single: Sequence[int]) -> list[int]:
    """For every mask of `len(single)` bits: the sum of `pair(a, b)` within it and of its members' `single`."""
    sums = [0]
    for high, own in enumerate(single):
        to_high = [own]
        for low in range(high):
            weight = pair(high, low)
            to_high += [total + weight for total in to_high]
        sums += [total + more for total, more in zip(sums, to_high, strict=True)]
    return sums
