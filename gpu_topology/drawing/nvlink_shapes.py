"""The NVLinks of a picture as shapes: lines (thicker for faster links), bars for NVSwitches, and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpu_topology.drawing.numa_boxes import PADDING
from gpu_topology.drawing.nvlink_wires import Channel, Run, Switched, has_peers, speed
from gpu_topology.drawing.shapes import Box, Label, Point, Shape, Wire, text_width
from gpu_topology.topology import Topology

Places = Mapping[int, Box]

BROKEN = 3.0
"""Thickness in pixels of a link that does not work."""


def thickness(gb_s: float) -> float:
    """Thickness of a line in pixels, by the square root of the speed, so that NV1 and NV18 fit in one picture."""
    return max(1.5, 0.6 * math.sqrt(gb_s))


def nvlink_shapes(
    topology: Topology, channel: Channel, places: Places, upper: Places, chosen: set[int]
) -> tuple[list[Shape], list[Shape]]:
    """The lines, faint ones first, and the bars and labels that go on top of them.

    `places` are the cards of both rows, `upper` those of the first; links between two `chosen` GPUs stand out.
    """
    lines: list[tuple[bool, list[Shape]]] = []
    names: list[Shape] = []
    for switch, y in channel.switched:
        lines += _drops(topology, switch, y, places, upper, chosen)
        names += _bar(topology, switch, y, places, bool(switch.works & chosen))
    for run in channel.runs:
        link, rate = run.link, speed(topology, run.link)
        works, lively = has_peers(link), {link.a, link.b} <= chosen
        kind = ("" if lively else " idle") if works else " bad"
        width = thickness(rate) if works else BROKEN
        name = f"GPU {link.a} to GPU {link.b}: {link.label}, {f'{rate:g} GB/s' if works else f'{link.p2p}'}"
        line = Wire(_points(run, places, upper), f"nvlink{kind}", width, name)
        # A gap around a line that crosses another shows that the two do not meet.
        gap = Wire(_points(run, places, upper, PADDING + 1.5), "gap", width + 5)
        lines.append((lively, [gap, line]))
        names += _pill(link.label, run.label, f"pill{kind}")
    return [shape for _, shapes in sorted(lines, key=lambda line: line[0]) for shape in shapes], names


def _drops(
    topology: Topology, switch: Switched, y: float, places: Places, upper: Places, chosen: set[int]
) -> list[tuple[bool, list[Shape]]]:
    """The wires between a switch and its GPUs, each with whether the GPU is selected."""
    width = thickness(speed(topology, switch.link))
    drops: list[tuple[bool, list[Shape]]] = []
    for index in switch.gpus:
        card, lively = places[index], index in chosen
        style = "nvlink bad" if index not in switch.works else "nvlink" if lively else "nvlink idle"
        ends = ((card.middle, card.bottom if index in upper else card.y), (card.middle, y))
        name = f"GPU {index} to NVSwitch: {switch.link.label}"
        drops.append((lively, [Wire(ends, style, width if index in switch.works else BROKEN, name)]))
    return drops


def _bar(topology: Topology, switch: Switched, y: float, places: Places, lively: bool) -> list[Shape]:
    """The bar of a switch, with its speed."""
    cards = [places[index] for index in switch.gpus]
    left, right = min(card.x for card in cards), max(card.right for card in cards)
    rate = f"{speed(topology, switch.link):g} GB/s each way" if switch.works else f"no peer access ({switch.link.p2p})"
    text = f"NVSwitch: {switch.link.label}, {rate}"
    style = ("nvswitch" if lively else "nvswitch idle") if switch.works else "nvswitch bad"
    return [
        Box(left, y - 15, right - left, 30, style, "NVSwitch"),
        Label((left + right) / 2, y + 4.5, text, 12.5, "badge text", "middle", bold=True),
    ]


def _points(run: Run, places: Places, upper: Places, inset: float = 0.0) -> tuple[Point, ...]:
    """The corner points of a link, from card to card, or starting and ending `inset` pixels away from the cards."""
    ends = (run.link.a, run.link.b)
    (start, end) = (places[index].bottom + inset if index in upper else places[index].y - inset for index in ends)
    (a, b) = run.ports
    return ((a, start), (b, end)) if run.lane is None else ((a, start), (a, run.lane), (b, run.lane), (b, end))


def _pill(text: str, at: Point, style: str) -> Sequence[Shape]:
    """A short text in a rounded box around a point."""
    width = text_width(text, 10.5, bold=True) + 10
    return [
        Box(at[0] - width / 2, at[1] - 8.5, width, 17, style),
        Label(at[0], at[1] + 3.8, text, 10.5, "good" if style == "pill" else "quiet", "middle", bold=True),
    ]
