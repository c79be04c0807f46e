"""The text below a picture: the meaning of its colours and words, and why GPUs are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gpu_topology.drawing.numa_boxes import all_links, tag, without_peers
from gpu_topology.drawing.nvlink_shapes import BROKEN, thickness
from gpu_topology.drawing.nvlink_wires import has_peers, nvlinks, speed
from gpu_topology.drawing.pcie_tree import pcie_tree
from gpu_topology.drawing.shapes import Box, Label, Shape, Wire, wrap
from gpu_topology.select.select import Selection
from gpu_topology.topology import Link, LinkLevel, Topology

_TEXT, _LINE, _SAMPLE = 11.5, 19.0, 52.0
_COLUMN = 430.0
_PAIRS_NAMED = 6

Entry = tuple[list[Shape], str]


def legend(topology: Topology, selection: Selection | None, x: float, top: float, width: float) -> list[Shape]:
    """The legend in as many columns as fit into `width`, and below it the reasons why GPUs are left out."""
    entries = [*_card_entries(topology, selection), *_nvlink_entries(topology, selection), *_path_entries(topology)]
    columns = max(1, int(width // _COLUMN))
    rows = math.ceil(len(entries) / columns)
    shapes: list[Shape] = []
    bottom = top
    for column in range(columns):
        y = top
        for sample, text in entries[column * rows : (column + 1) * rows]:
            left = x + column * width / columns
            shapes += [_moved(shape, left, y) for shape in sample]
            for line in wrap(text, width / columns - _SAMPLE - 16, _TEXT, 2):
                shapes.append(Label(left + _SAMPLE, y + 4, line, _TEXT, "quiet"))
                y += _LINE
        bottom = max(bottom, y)
    return [*shapes, *_left_out(selection, x, bottom + 6, width)]


def _card_entries(topology: Topology, selection: Selection | None) -> list[Entry]:
    """The meaning of the card colours that occur in the picture."""
    swatch: dict[str, list[Shape]] = {
        style: [Box(6, -7, 28, 14, f"card {style}")] for style in ("chosen", "left", "lost")
    }
    entries: list[Entry] = []
    if selection and selection.indices:
        entries.append((swatch["chosen"], "selected, with the rank that it gets"))
    if selection and any(not topology.gpu(one.index).error for one in selection.excluded):
        entries.append((swatch["left"], "left out, for the reason on it"))
    if any(gpu.error for gpu in topology.gpus):
        entries.append((swatch["lost"], "does not answer"))
    return entries


def _nvlink_entries(topology: Topology, selection: Selection | None) -> list[Entry]:
    """A sample of each kind of NVLink connection, the fastest first."""
    kinds: dict[tuple[str, float], Link] = {}
    for link in nvlinks(topology):
        if has_peers(link):
            kinds.setdefault((link.label, speed(topology, link)), link)
    entries: list[Entry] = []
    for (label, rate), link in sorted(kinds.items(), key=lambda kind: -kind[0][1]):
        sample = Wire(((0, 0), (40, 0)), "nvlink", thickness(rate))
        count = f"{link.nvlinks} NVLinks" if link.nvlinks != 1 else "1 NVLink"
        entries.append(([sample], f"{label}: {count}, {rate:g} GB/s each way by the data sheet"))
    refused = sorted({str(link.p2p) for link in nvlinks(topology) if not has_peers(link)})
    if refused:
        sample = Wire(((0, 0), (40, 0)), "nvlink bad", BROKEN)
        entries.append(([sample], f"NVLink without peer access ({', '.join(refused)})"))
    if selection and any(not {link.a, link.b} <= set(selection.indices) for link in nvlinks(topology)):
        entries.append(([Wire(((0, 0), (40, 0)), "nvlink idle", 3)], "NVLink that the selection does not use"))
    return entries


def _path_entries(topology: Topology) -> list[Entry]:
    """A sample of each PCIe path, and of one without peer access."""
    links = list(all_links(pcie_tree(topology)))
    seen = {link.path for link in links}
    entries: list[Entry] = [
        (tag([Link(0, 1, level)], 20, 0), f"GPUs that meet here: {level.meaning}")
        for level in LinkLevel
        if level in seen
    ]
    refused = [link for link in links if without_peers(link)]
    if refused:
        words = ", ".join(sorted({str(link.p2p) for link in refused}))
        which = "" if len(refused) == len(links) else f", {_pairs(refused)}"
        text = f"no peer access ({words}){which}: by way of host memory"
        entries.append(([Label(20, 5, "*", 15, "bad", "middle", bold=True)], text))
    if None in seen and len(topology.gpus) > 1:
        entries.append((tag([], 20, 0), "the driver does not report the path"))
    return entries


def _pairs(links: Sequence[Link]) -> str:
    """The pairs of GPUs by index, or only their number where they are many."""
    if len(links) > _PAIRS_NAMED:
        return f"{len(links)} pairs of GPUs"
    return "GPUs " + ", ".join(f"{a}-{b}" for a, b in sorted((link.a, link.b) for link in links))


def _left_out(selection: Selection | None, x: float, y: float, width: float) -> list[Shape]:
    """The full reasons why GPUs are left out, those with the same reason together."""
    reasons: dict[str, list[int]] = {}
    for one in selection.excluded if selection else ():
        reasons.setdefault(one.reason, []).append(one.index)
    shapes: list[Shape] = []
    for reason, indices in reasons.items():
        text = f"Not GPU {', '.join(map(str, indices))}: {reason}"
        for line in wrap(text, width, _TEXT, 2):
            shapes.append(Label(x, y + 4, line, _TEXT, "reason"))
            y += _LINE
    return shapes


def _moved(shape: Shape, x: float, y: float) -> Shape:
    """The shape, moved by (x, y)."""
    if isinstance(shape, Wire):
        return replace(shape, points=tuple((a + x, b + y) for a, b in shape.points))
    return replace(shape, x=shape.x + x, y=shape.y + y)
