"""Where the NVLinks of a picture run: which GPUs are attached to a switch, and the lane of each direct link.

Links run in the channel between two rows of GPU cards (or below a single row): down from one card, along a lane, and up
or down to the other. No two lanes touch, and no two verticals share an x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from gpu_topology.drawing.shapes import Box, Point
from gpu_topology.select.bandwidth import link_speed
from gpu_topology.topology import Link, LinkLevel, Topology

LANE = 26.0
PILL = 46.0

# Most NVLinks of one GPU, by compute capability: where its pairs would need more, there is a switch between them.
_LINKS_PER_GPU = {(6, 0): 4, (7, 0): 6, (7, 5): 2, (8, 0): 12, (8, 6): 4, (9, 0): 18, (10, 0): 18, (10, 3): 18}
_LINKS_UNKNOWN = 18


@dataclass(frozen=True, slots=True)
class Switched:
    """GPUs that all reach each other through NVSwitch.

    link   the link of one pair, with peer access if any pair has it
    works  the GPUs with peer access to another one
    """

    gpus: tuple[int, ...]
    link: Link
    works: frozenset[int]


@dataclass(frozen=True, slots=True)
class Run:
    """The course of one direct link: the x of its ports on the cards `link.a` and `link.b`, and the y of its lane.

    lane   None for a straight line between two cards that face each other
    label  the middle of its label
    """

    link: Link
    ports: tuple[float, float]
    lane: float | None
    label: Point = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Channel:
    """All the links of a picture: the switches (each with the middle y of its bar), the runs, and the total height."""

    switched: tuple[tuple[Switched, float], ...]
    runs: tuple[Run, ...]
    height: float


def speed(topology: Topology, link: Link) -> float:
    """The nominal GB/s of a link, one direction."""
    ends = [topology.gpu(index).compute_capability for index in (link.a, link.b)]
    known = [end for end in ends if end is not None]
    return link_speed(link, min(known) if known else None)


def nvlinks(topology: Topology) -> tuple[Link, ...]:
    """The pairs with an NVLink path."""
    return tuple(link for link in topology.links if link.level is LinkLevel.NV)


def has_peers(link: Link) -> bool:
    """Whether peer access works, as far as the driver reports it."""
    return link.p2p in (None, "ok")


def switched(topology: Topology) -> tuple[Switched, ...]:
    """The sets of fully connected GPUs that would need more NVLinks than one GPU has: they are joined by NVSwitch."""
    links = {(link.a, link.b): link for link in nvlinks(topology)}
    found = []
    for gpus in _connected(topology, links):
        pairs = list(combinations(gpus, 2))
        if not all(pair in links for pair in pairs):
            continue
        most = _LINKS_PER_GPU.get(topology.gpu(gpus[0]).compute_capability or (0, 0), _LINKS_UNKNOWN)
        if len(gpus) > 2 and sum(links[pair].nvlinks or 1 for pair in pairs if gpus[0] in pair) > most:
            good = [links[pair] for pair in pairs if has_peers(links[pair])]
            works = frozenset(index for link in good for index in (link.a, link.b))
            found.append(Switched(gpus, (good or [links[pairs[0]]])[0], works))
    return tuple(found)


def route(topology: Topology, upper: Mapping[int, Box], lower: Mapping[int, Box], top: float) -> Channel:
    """The channel's contents, from `top` down, between the cards of two rows (`lower` may be empty)."""
    bars = switched(topology)
    hidden = {pair for bar in bars for pair in combinations(bar.gpus, 2)}
    links = [link for link in nvlinks(topology) if (link.a, link.b) not in hidden]
    ports = _ports(links, {**upper, **lower})
    facing = [link for link in links if (link.a in upper) != (link.b in upper) and len(set(_ends(link, ports))) == 1]
    zones = [[link for link in links if link not in facing and _side(link, upper) == side] for side in (2, 1, 0)]
    above, between, below = (_lanes(zone, ports) for zone in zones)
    y = top
    runs = _placed(above, ports, y)
    y += LANE * len(above)
    runs += [Run(link, _ends(link, ports), None, (ports[link, link.a], y + LANE / 2)) for link in facing]
    y += LANE * bool(facing)
    places = tuple((bar, y + LANE * (1 + 2 * position)) for position, bar in enumerate(bars))
    y += LANE * 2 * len(bars)
    runs += _placed(between, ports, y)
    y += LANE * len(between)
    runs += _placed(below[::-1], ports, y)
    y += LANE * len(below)
    height = max(2 * LANE if lower else 0.0, y - top if links or bars else 0.0)
    drops = [
        _Vertical(card.middle, *_drop(index in upper, y))
        for bar, y in places
        for index, card in ((index, upper.get(index) or lower[index]) for index in bar.gpus)
    ]
    return Channel(places, _labelled(runs, upper, drops), height)


def _side(link: Link, upper: Mapping[int, Box]) -> int:
    """How many ends of a link are in the upper row."""
    return (link.a in upper) + (link.b in upper)


def _ends(link: Link, ports: Mapping[tuple[Link, int], float]) -> tuple[float, float]:
    """The x positions of a link's two ports."""
    return ports[link, link.a], ports[link, link.b]


@dataclass(frozen=True, slots=True)
class _Vertical:
    """A vertical line of the channel: its x, and where it begins and ends."""

    x: float
    start: float
    end: float


def _drop(above: bool, y: float) -> tuple[float, float]:
    """The extent of a vertical from a card of the upper or lower row to `y`."""
    return (-math.inf, y) if above else (y, math.inf)


def _labelled(runs: Sequence[Run], upper: Mapping[int, Box], drops: Sequence[_Vertical]) -> tuple[Run, ...]:
    """The runs with their labels where no vertical crosses them, as far as there is room."""
    verticals = {run.link: _verticals(run, upper) for run in runs}
    found = []
    for run in runs:
        if run.lane is not None:
            others = [one for link, both in verticals.items() if link != run.link for one in both]
            crossing = [one.x for one in (*others, *drops) if one.start <= run.lane <= one.end]
            run = replace(run, label=(_free_x(run.ports, crossing), run.lane))
        found.append(run)
    return tuple(found)


def _verticals(run: Run, upper: Mapping[int, Box]) -> list[_Vertical]:
    """The vertical parts of a run."""
    if run.lane is None:
        return [_Vertical(run.ports[0], -math.inf, math.inf)]
    ends = zip((run.link.a, run.link.b), run.ports, strict=True)
    return [_Vertical(x, *_drop(index in upper, run.lane)) for index, x in ends]


def _free_x(ports: tuple[float, float], crossing: Sequence[float]) -> float:
    """The middle of the widest stretch of a lane that nothing crosses, the one nearest to its middle among equals."""
    left, right = min(ports), max(ports)
    marks = [left, *sorted(x for x in crossing if left < x < right), right]
    middle = (left + right) / 2
    stretches = [
        (min(end - start, 2 * PILL), -abs((start + end) / 2 - middle), (start + end) / 2)
        for start, end in pairwise(marks)
    ]
    return max(stretches)[2]


def _connected(topology: Topology, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The sets of GPUs that NVLinks join."""
    sets = [{gpu.index} for gpu in topology.gpus]
    for a, b in pairs:
        one, other = (next(found for found in sets if index in found) for index in (a, b))
        if one is not other:
            one |= other
            sets.remove(other)
    return sorted(tuple(sorted(found)) for found in sets if len(found) > 1)


def _ports(links: Sequence[Link], cards: Mapping[int, Box]) -> dict[tuple[Link, int], float]:
    """The x of each end of each link: spread evenly over the card's width, links to the left at the left.

    Two cards that face each other share one set of ports, and a link between the two has the same x at both ends.
    """
    ports: dict[tuple[Link, int], float] = {}
    columns: dict[float, list[int]] = {}
    for index, card in cards.items():
        columns.setdefault(round(card.middle, 1), []).append(index)
    for column in columns.values():
        ends = [(link, index) for index in column for link in links if index in (link.a, link.b)]
        within = {link for link, _ in ends if {link.a, link.b} <= set(column)}
        wanted = sorted(
            {(link, link.a if link in within else index) for link, index in ends},
            key=lambda end: (_heading(end, cards), end[0].a, end[0].b, end[1]),
        )
        card = cards[column[0]]
        for position, (link, index) in enumerate(wanted):
            x = card.x + card.width * (position + 1) / (len(wanted) + 1)
            for end in {link.a, link.b} if link in within else {index}:
                ports[link, end] = x
    return ports


def _heading(end: tuple[Link, int], cards: Mapping[int, Box]) -> tuple[int, float]:
    """Sort key of a card's ports: links to the left, straight on, right; the farthest innermost, to cross fewest."""
    link, index = end
    other = link.b if link.a == index else link.a
    distance = cards[other].middle - cards[index].middle
    return (distance > 1) - (distance < -1), -distance


def _lanes(links: Sequence[Link], ports: Mapping[tuple[Link, int], float]) -> list[list[Link]]:
    """The links assigned to lanes by first fit, short ones first, so that these lie nearest to the cards."""
    lanes: list[list[Link]] = []
    for link in sorted(links, key=lambda link: (_reach(link, ports)[1] - _reach(link, ports)[0], link.a, link.b)):
        room = next((lane for lane in lanes if all(_apart(link, other, ports) for other in lane)), None)
        if room is None:
            lanes.append([link])
        else:
            room.append(link)
    return lanes


def _reach(link: Link, ports: Mapping[tuple[Link, int], float]) -> tuple[float, float]:
    """The x extent that a link needs in its lane: at least that of its label."""
    a, b = ports[link, link.a], ports[link, link.b]
    middle, half = (a + b) / 2, max(abs(a - b), PILL) / 2
    return middle - half, middle + half


def _apart(link: Link, other: Link, ports: Mapping[tuple[Link, int], float]) -> bool:
    """Whether two links can share a lane without touching."""
    (left, right), (start, end) = _reach(link, ports), _reach(other, ports)
    return right + 4 <= start or end + 4 <= left


def _placed(lanes: Sequence[Sequence[Link]], ports: Mapping[tuple[Link, int], float], top: float) -> list[Run]:
    """The runs of all links, lane by lane below `top`."""
    return [
        Run(link, (ports[link, link.a], ports[link, link.b]), top + LANE * (position + 0.5))
        for position, lane in enumerate(lanes)
        for link in lane
    ]
