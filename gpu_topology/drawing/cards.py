"""The card of one GPU in a picture: its number, name, memory, MIG slices, and why it is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpu_topology.drawing.shapes import Box, Label, Shape, shorten, text_width, wrap
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, short_name

WIDTH = 144.0
PADDING = 10.0
_INNER = WIDTH - 2 * PADDING
_TITLE, _TEXT, _SMALL = 15.0, 12.0, 10.5
_SLICES = 12.0


@dataclass(frozen=True, slots=True)
class Card:
    """The text on one card, line by line: (text, size, style)."""

    gpu: Gpu
    ranks: tuple[int, ...]
    style: str
    lines: tuple[tuple[str, float, str], ...]
    hint: str

    @property
    def height(self) -> float:
        """The height that the contents need."""
        slices = _SLICES + 6 if self.gpu.mig_devices else 0
        return PADDING + _TITLE + sum(size * 1.4 for _, size, _ in self.lines) + slices + PADDING


def make_card(gpu: Gpu, selection: Selection | None) -> Card:
    """The card's contents; without a selection no GPU is chosen or left out."""
    ranks = tuple(rank for rank, index in enumerate(selection.indices) if index == gpu.index) if selection else ()
    excluded = {one.index: one.reason for one in selection.excluded} if selection else {}
    # In MIG mode one slice of a GPU may be chosen and another left out.
    reason = gpu.error or (None if ranks else excluded.get(gpu.index))
    style = "lost" if gpu.error else "chosen" if ranks else "left" if reason else "plain"
    name = short_name(gpu.name) if gpu.name else "name not known"
    lines = [(line, _TEXT, "text") for line in wrap(name, _INNER, _TEXT, 2)]
    memory = "" if gpu.memory_total is None else f"{gpu.memory_total / 2**30:.1f} GiB"
    lines += [(shorten(fact, _INNER, _SMALL), _SMALL, "quiet") for fact in (memory, _pcie(gpu)) if fact]
    if gpu.mig_mode:
        counts = Counter(one.profile or "slice" for one in gpu.mig_devices)
        slices = ", ".join(f"{count} x {profile}" for profile, count in counts.items()) or "no slices"
        lines += [(line, _SMALL, "quiet") for line in wrap(f"MIG: {slices}", _INNER, _SMALL, 2)]
    if reason:
        gist = reason.partition(" (")[0].partition(": ")[0]  # the legend has the full reason
        lines += [(line, _SMALL, "bad" if gpu.error else "reason") for line in wrap(gist, _INNER, _SMALL, 3)]
    hints = (f"GPU {gpu.index}: {gpu.name or name}", gpu.uuid, gpu.pci_bus_id, memory, reason)
    return Card(gpu, ranks, style, tuple(lines), "\n".join(hint for hint in hints if hint))


def card_shapes(card: Card, place: Box, selection: Selection | None) -> list[Shape]:
    """The card drawn at `place`, which is `WIDTH` wide."""
    left, y = place.x + PADDING, place.y + PADDING + _TITLE * 0.8
    quiet = card.style in ("left", "lost")
    shapes: list[Shape] = [replace(place, style=f"card {card.style}", name=f"GPU {card.gpu.index}", hint=card.hint)]
    shapes.append(Label(left, y, f"GPU {card.gpu.index}", _TITLE, "quiet" if quiet else "text", bold=True))
    if card.ranks:
        shapes += _badge(place, card.ranks)
    y += _TITLE * 0.2
    for text, size, style in card.lines:
        y += size * 1.4
        shapes.append(Label(left, y, text, size, "quiet" if quiet and style == "text" else style))
    if card.gpu.mig_devices:
        shapes += _slice_boxes(card, left, y + 8, set(selection.uuids) if selection else set())
    return shapes


def _badge(place: Box, ranks: tuple[int, ...]) -> list[Shape]:
    """The badge with the ranks that use a device, in the corner of its card."""
    word = "rank" if len(ranks) == 1 else "ranks"
    together = len(ranks) > 1 and ranks[-1] - ranks[0] == len(ranks) - 1
    span = f"{ranks[0]}-{ranks[-1]}" if together else ",".join(map(str, ranks))
    text = shorten(f"{word} {span}", place.width * 0.5, _SMALL, bold=True)
    width = text_width(text, _SMALL, bold=True) + 10
    x, y = place.right - PADDING - width + 4, place.y + PADDING - 2
    return [
        Box(x, y, width, _TITLE + 2, "badge"),
        Label(x + width / 2, y + 12, text, _SMALL, "badge text", "middle", bold=True),
    ]


def _slice_boxes(card: Card, left: float, top: float, chosen: Mapping[str, object] | set[str]) -> list[Shape]:
    """The MIG slices side by side, as wide as their share of the memory."""
    slices = card.gpu.mig_devices
    gap = 2.0
    room = _INNER - gap * (len(slices) - 1)
    known = [one.memory_total or 0 for one in slices]
    total = sum(known)
    shapes: list[Shape] = []
    x = left
    for one, size in zip(slices, known, strict=True):
        width = room * (size / total if total and all(known) else 1 / len(slices))
        style = "slice chosen" if one.uuid in chosen else "slice"
        shapes.append(Box(x, top, width, _SLICES, style, f"MIG {one.profile or 'slice'}", one.uuid))
        x += width + gap
    return shapes


def _pcie(gpu: Gpu) -> str:
    """`PCIe gen4 x16`, with the lanes in use where they are fewer; empty where unknown."""
    if gpu.pcie_generation is None or gpu.pcie_width is None:
        return ""
    fewer = f"{gpu.pcie_width_now}/" if (gpu.pcie_width_now or gpu.pcie_width) < gpu.pcie_width else ""
    return f"PCIe gen{gpu.pcie_generation} x{fewer}{gpu.pcie_width}"
