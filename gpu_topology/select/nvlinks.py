"""NVLinks that should work but do not, judged by the other GPUs of the board and by the number that the model has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gpu_topology.topology import Gpu, Topology

# Number of NVLinks of cards that a board connects, directly or by NVSwitch, by the driver's name for the card (NVIDIA's
# architecture white papers; A800 and H800 have fewer because of export rules). The first pattern that matches counts.
_BOARD_CARDS = (
    (r"G?B[123]00\b|H200\b(?!.*NVL)|H20\b|H100\b.*(HBM3|SXM)", 18),
    (r"A800\b.*SXM|H800\b(?!.*(PCIe|NVL))", 8),
    (r"A100\b.*SXM", 12),
    (r"V100\b.*SXM", 6),
    (r"P100\b.*SXM", 4),
)

# Before Ampere, cards on a board without NVSwitch may have fewer links to their peers by design, or none to those that
# a job sees (DGX-1; some lead to the CPU in an AC922). NVSwitch connects V100-SXM3 cards (DGX-2).
_UNIFORM_SINCE = (8, 0)
# On those boards (DGX-1, AC922) two of any three cards are linked, and any card with one of any four others.
_UNLINKED_BY_DESIGN, _ALONE_BY_DESIGN = 2, 4

# The cards that each card of a board without NVSwitch is linked to, from Ampere on (HGX A100 and H100 with four cards).
_BOARD_PEERS = 3

# The links of a bridge between two cards of Ampere or later. Bridges of Hopper's NVL cards may also join 6 links of a
# pair: an H200 NVL has 900 GB/s (data sheet), which is 18 links to one card or 6 to each of three.
_BRIDGE_LINKS, _NVL_LINKS = 4, 6
_NVL_SINCE = (9, 0)


@dataclass(frozen=True, slots=True)
class Missing:
    """`down` of a GPU's `total` NVLinks do not work."""

    index: int
    down: int
    total: int


def card_links(gpu: Gpu) -> int | None:
    """The number of NVLinks of a card that is soldered or mounted on a board; None for a card that uses bridges."""
    return next((links for pattern, links in _BOARD_CARDS if re.search(pattern, gpu.name or "")), None)


def active(topology: Topology, gpu: Gpu) -> int | None:
    """How many NVLinks of a GPU lead to other GPUs; None where the driver does not report all of them.

    Through NVSwitch each link reaches every peer, so the largest number to one peer counts; otherwise the sum.
    """
    counts = _to_each(topology, gpu)
    if not counts:
        return None
    return max(counts) if _switched(gpu, counts) else sum(counts)


def _to_each(topology: Topology, gpu: Gpu) -> list[int]:
    """The number of NVLinks to each other GPU; empty where the driver does not report all of them."""
    found = [topology.link(gpu.index, other.index).nvlinks for other in _readable(topology) if other is not gpu]
    return [count for count in found if count is not None] if None not in found else []


def _switched(gpu: Gpu, counts: list[int]) -> bool:
    """Whether the links to all peers add up to more than a card has: then each link reaches all of them."""
    return sum(counts) > (card_links(gpu) or _BRIDGE_LINKS * 3)


def _uniform(topology: Topology, gpu: Gpu) -> bool:
    """Whether all cards of this GPU's board have the same number of links, whatever part of the board is visible."""
    since = (gpu.compute_capability or (0, 0)) >= _UNIFORM_SINCE
    return since or "SXM3" in (gpu.name or "") or _switched(gpu, _to_each(topology, gpu))


def without_any(topology: Topology) -> frozenset[int]:
    """GPUs without an active NVLink although identical GPUs on the board have some."""
    counts = _counts(topology)
    return frozenset(index for index, count in counts.items() if count == 0 and _alone(topology, index, counts))


def _alone(topology: Topology, index: int, counts: dict[int, int]) -> bool:
    """Whether identical GPUs with NVLinks show that a GPU without any should have some too."""
    gpu = topology.gpu(index)
    equals = [one.index for one in _readable(topology) if one.name == gpu.name and counts.get(one.index)]
    if card_links(gpu) is not None:
        uniform = any(_uniform(topology, topology.gpu(other)) for other in equals)
        visible = sum(topology.gpu(other).name == gpu.name for other in counts)
        return len(equals) > 1 and (uniform or visible > _ALONE_BY_DESIGN)
    # A card without a bridge is no fault; a card that is missing from a full mesh of the others is.
    linked = (topology.link(a, b).nvlinks for a in equals for b in equals if a < b)
    return len(equals) > 2 and all(linked)


def all_inactive(topology: Topology) -> tuple[int, ...]:
    """The cards of a board with no working NVLink on any of them; () where one works, or none are reported, or the
    links may all lead to cards that are not visible."""
    counts = _counts(topology)
    cards = tuple(index for index in counts if card_links(topology.gpu(index)) is not None)
    uniform = any(_uniform(topology, topology.gpu(index)) for index in cards)
    enough = len(cards) > (1 if uniform else _UNLINKED_BY_DESIGN)
    return cards if enough and not any(counts[index] for index in cards) else ()


def some_down(topology: Topology) -> Iterator[Missing]:
    """GPUs with some of their NVLinks down."""
    counts = _counts(topology)
    whole = len(_readable(topology)) == len(topology.gpus)
    for index, up in counts.items():
        gpu = topology.gpu(index)
        if not up or not _uniform(topology, gpu):
            continue
        of_card = card_links(gpu)
        if of_card is None:
            total = _of_bridges(gpu, up)
        else:
            equals = [count for other, count in counts.items() if topology.gpu(other).name == gpu.name]
            total = max(*equals, of_card)
            # Links to a GPU that cannot be read, or that this machine was not given, are not down; and faults are
            # rare on a board.
            if max(equals) < total and (min(equals) < max(equals) or 2 * up < total or not whole):
                continue
            if max(equals) == total and 2 * equals.count(total) < len(equals):
                continue
        if up < total and not _lead_elsewhere(topology, gpu, total):
            yield Missing(index, total - up, total)


def _of_bridges(gpu: Gpu, up: int) -> int:
    """The number of links of a card's bridges if `up` of them work."""
    sizes = (_BRIDGE_LINKS, _NVL_LINKS) if (gpu.compute_capability or (0, 0)) >= _NVL_SINCE else (_BRIDGE_LINKS,)
    return min(-(-up // size) * size for size in sizes)


def _lead_elsewhere(topology: Topology, gpu: Gpu, total: int) -> bool:
    """Whether the other links may lead to cards that a job does not see: from Ampere on a board without NVSwitch has
    four cards, each with a third of its links to every other one."""
    alike = [other.index for other in _readable(topology) if other is not gpu and other.name == gpu.name]
    counts = {topology.link(gpu.index, other).nvlinks for other in alike}
    return len(alike) < _BOARD_PEERS and counts == {total / _BOARD_PEERS}


def _readable(topology: Topology) -> tuple[Gpu, ...]:
    """The GPUs with meaningful links; MIG slices have none by design."""
    return tuple(gpu for gpu in topology.gpus if gpu.error is None and not gpu.mig_mode)


def _counts(topology: Topology) -> dict[int, int]:
    """NVML index -> number of active NVLinks, for GPUs with all links known."""
    counts = {gpu.index: active(topology, gpu) for gpu in _readable(topology)}
    return {index: count for index, count in counts.items() if count is not None}
