"""NVLinks that should be there and are not: by the other GPUs of a board, and by what a card of its model has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gpu_topology.topology import Gpu, Topology

# NVLinks of the cards that a board joins by NVSwitch or directly, by the driver's names (NVIDIA's architecture white
# papers; A800 and H800 have fewer by export rules). The first pattern that matches counts.
_BOARD_CARDS = (
    (r"G?B[123]00\b|H200\b(?!.*NVL)|H20\b|H100\b.*(HBM3|SXM)", 18),
    (r"A800\b.*SXM|H800\b(?!.*(PCIe|NVL))", 8),
    (r"A100\b.*SXM", 12),
    (r"V100\b.*SXM", 6),
    (r"P100\b.*SXM", 4),
)

# Before Ampere a board without NVSwitch has cards with fewer links to their peers by design (DGX-1, AC922: some lead to
# the CPU).
_UNIFORM_SINCE = (8, 0)

# A bridge between two cards of Ampere or later carries so many links.
_BRIDGE_LINKS = 4


@dataclass(frozen=True, slots=True)
class Missing:
    """Of a GPU's `total` NVLinks `down` do not work."""

    index: int
    down: int
    total: int


def card_links(gpu: Gpu) -> int | None:
    """The NVLinks of a card that is soldered or mezzanine-mounted to a board; None for a card that bridges join."""
    return next((links for pattern, links in _BOARD_CARDS if re.search(pattern, gpu.name or "")), None)


def active(topology: Topology, gpu: Gpu) -> int | None:
    """How many NVLinks of a GPU lead to another GPU; None where the driver does not tell all of them.

    Through NVSwitch each link reaches every peer, so the most to one peer counts; without, their sum.
    """
    counts = _to_each(topology, gpu)
    if not counts:
        return None
    return max(counts) if _switched(gpu, counts) else sum(counts)


def _to_each(topology: Topology, gpu: Gpu) -> list[int]:
    """The NVLinks to each other GPU; none where the driver does not tell all of them."""
    found = [topology.link(gpu.index, other.index).nvlinks for other in _readable(topology) if other is not gpu]
    return [count for count in found if count is not None] if None not in found else []


def _switched(gpu: Gpu, counts: list[int]) -> bool:
    """Whether there are more links to the others together than a card has: each leads to all of them."""
    return sum(counts) > (card_links(gpu) or _BRIDGE_LINKS * 3)


def without_any(topology: Topology) -> frozenset[int]:
    """GPUs without an NVLink although their equals on the same board have theirs."""
    counts = _counts(topology)
    return frozenset(index for index, count in counts.items() if count == 0 and _alone(topology, index, counts))


def _alone(topology: Topology, index: int, counts: dict[int, int]) -> bool:
    gpu = topology.gpu(index)
    equals = [one.index for one in _readable(topology) if one.name == gpu.name and counts.get(one.index)]
    if card_links(gpu) is not None:
        return len(equals) > 1
    # A card without its bridge is no fault; one that alone is missing in a full mesh is.
    linked = (topology.link(a, b).nvlinks for a in equals for b in equals if a < b)
    return len(equals) > 2 and all(linked)


def all_inactive(topology: Topology) -> tuple[int, ...]:
    """The cards of a board, where not one of their NVLinks works; () where any does, or where that is not told."""
    counts = _counts(topology)
    cards = tuple(index for index in counts if card_links(topology.gpu(index)) is not None)
    return cards if len(cards) > 1 and not any(counts[index] for index in cards) else ()


def some_down(topology: Topology) -> Iterator[Missing]:
    """GPUs of which a part of the NVLinks is down."""
    counts = _counts(topology)
    whole = len(_readable(topology)) == len(topology.gpus)
    for index, up in counts.items():
        gpu = topology.gpu(index)
        uniform = (gpu.compute_capability or (0, 0)) >= _UNIFORM_SINCE or _switched(gpu, _to_each(topology, gpu))
        if not up or not uniform:
            continue
        of_card = card_links(gpu)
        if of_card is None:
            total = -(-up // _BRIDGE_LINKS) * _BRIDGE_LINKS
        else:
            equals = [count for other, count in counts.items() if topology.gpu(other).name == gpu.name]
            total = max(*equals, of_card)
            # Links that lead to a GPU which cannot be read, or which this machine was not given, are not down; and a
            # board has few faults.
            if max(equals) < total and (min(equals) < max(equals) or 2 * up < total or not whole):
                continue
            if max(equals) == total and 2 * equals.count(total) < len(equals):
                continue
        if up < total:
            yield Missing(index, total - up, total)


def _readable(topology: Topology) -> tuple[Gpu, ...]:
    """The GPUs whose links mean something: MIG slices have none by design."""
    return tuple(gpu for gpu in topology.gpus if gpu.error is None and not gpu.mig_mode)


def _counts(topology: Topology) -> dict[int, int]:
    counts = {gpu.index: active(topology, gpu) for gpu in _readable(topology)}
    return {index: count for index, count in counts.items() if count is not None}
