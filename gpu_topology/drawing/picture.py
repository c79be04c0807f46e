"""`python -m gpu_topology draw`: the NUMA nodes with their PCIe tree, GPUs, NVLinks, selection and a legend, as shapes.

    topology, selection -> pcie_tree.py (which GPUs share what) -> numa_boxes.py (boxes and places of the cards)
    -> nvlink_wires.py (lanes between the cards), nvlink_shapes.py -> cards.py, legend.py -> a `Picture` for svg.py

Up to four GPUs are in one row, as are up to eight on NUMA nodes that do not divide into two rows of similar length;
others are in two rows that face each other, with the NVLinks between.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ddp_core.errors import TopologyError
from ddp_core.files import write_text
from gpu_topology.cli_options import add_output, add_selection, add_source, answer
from gpu_topology.drawing.cards import card_shapes, make_card
from gpu_topology.drawing.legend import legend
from gpu_topology.drawing.numa_boxes import (
    BETWEEN,
    TAG_STEP,
    Drawn,
    Node,
    Row,
    bar_levels,
    between,
    head_height,
    tag_words,
    tags,
)
from gpu_topology.drawing.nvlink_shapes import nvlink_shapes
from gpu_topology.drawing.nvlink_wires import route
from gpu_topology.drawing.pcie_tree import Branch, node_of, pcie_tree
from gpu_topology.drawing.shapes import Box, Label, Picture, Shape, Wire, wrap
from gpu_topology.drawing.svg import to_svg
from gpu_topology.select.select import Selection
from gpu_topology.topology import Link, Topology, short_name

# Endings of other kinds of picture: programs that go by the name could not open an SVG in such a file.
_OTHER_KINDS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".pdf", ".eps", ".ps")

MARGIN, LEAST_WIDTH, BRACKET = 26.0, 640.0, 34.0
ONE_ROW, WIDEST_ROW = 4, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology draw`."""
    add_source(parser)
    add_output(parser)
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture to the file, or to stdout. TopologyError naming the file when it cannot be written, or is named
    as another kind of picture."""
    if (arguments.output or "").lower().endswith(_OTHER_KINDS):
        raise TopologyError(f"{arguments.output}: the picture is an SVG, so its name must end in .svg")
    answers = answer(arguments)
    text = to_svg(layout(answers.topology, answers.selection))
    if arguments.output is None:
        print(text, end="")
        return 0
    write_text(arguments.output, text, TopologyError)
    count = len(answers.topology.gpus)
    print(f"wrote {arguments.output}: {count} GPU{'s' * (count != 1)}", file=sys.stderr)
    return 0


def layout(topology: Topology, selection: Selection | None = None) -> Picture:
    """The machine as a picture; with a selection, the chosen GPUs stand out and the others say why not."""
    topology = topology.for_programs()
    title = machine_title(topology)
    rows = node_rows(topology)
    # Several tags one below the other may reach beyond the channel between the rows, beside the boxes.
    bracket = (len(rows) - 1) * BRACKET * min(2, len(tag_words(_between_rows(topology, rows))))
    machine = max((_row_width(row) for row in rows), default=0.0) + bracket
    width = max(machine, LEAST_WIDTH)
    header, y = _header(topology, selection, title, width)
    body, y = _machine(topology, selection, rows, MARGIN + (width - machine) / 2 + bracket, y)
    notes = legend(topology, selection, MARGIN, y + 30, width) if topology.gpus else []
    y = max([y, *(shape.y for shape in notes if isinstance(shape, Label))])
    page = Box(1, 1, width + 2 * MARGIN - 2, y + MARGIN - 2, "page")
    shapes = (page, *header, *body, *notes)
    return Picture(width + 2 * MARGIN, y + MARGIN, title, _description(topology, selection), shapes)


def machine_title(topology: Topology) -> str:
    """ "8 x V100-SXM2-32GB"; on a mixed machine the most frequent model first, unknown ones last."""
    names = Counter(short_name(gpu.name) for gpu in topology.gpus if gpu.name)
    parts = [f"{count} x {name}" for name, count in names.most_common()]
    if unknown := len(topology.gpus) - names.total():
        parts.append(f"{unknown} of unknown model")
    return ", ".join(parts) or "No NVIDIA GPU can be used here"


def node_rows(topology: Topology) -> tuple[tuple[Node, ...], ...]:
    """The NUMA nodes in one row or two; a node that is too wide for a row is cut, at a host bridge if possible."""
    branches = pcie_tree(topology).parts
    count = len(topology.gpus)
    if count <= ONE_ROW or (count <= WIDEST_ROW and len(branches) == 1):
        return (tuple(Node(branch) for branch in branches),) if branches else ()
    half = min(range(1, len(branches) + 1), key=lambda cut: (_uneven(branches[:cut], count), cut))
    if _uneven(branches[:half], count) <= count / 4 and half < len(branches):
        return tuple(Node(branch) for branch in branches[:half]), tuple(Node(branch) for branch in branches[half:])
    if count <= WIDEST_ROW:
        return (tuple(Node(branch) for branch in branches),)
    return _cut(topology, branches, count)


def _uneven(upper: Sequence[Branch], count: int) -> float:
    """By how many GPUs the upper row differs from half of all."""
    return abs(sum(len(branch.gpus) for branch in upper) - count / 2)


def _cut(topology: Topology, branches: Sequence[Branch], count: int) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Two rows with one node divided between them, after a whole host bridge if one ends near the middle."""
    upper: list[Node] = []
    lower: list[Node] = []
    room = (count + 1) // 2
    for branch in branches:
        if len(branch.gpus) <= room:
            upper.append(Node(branch))
            room -= len(branch.gpus)
        elif room > 0:
            ends = [sum(len(part.gpus) for part in branch.parts[:cut]) for cut in range(1, len(branch.parts))]
            cut = min(ends, key=lambda end: abs(end - room), default=room)
            cut = cut if abs(cut - room) <= 2 else room
            upper.append(Node(node_of(topology, branch.gpus[:cut]), "1/2"))
            lower.append(Node(node_of(topology, branch.gpus[cut:]), "2/2"))
            room = 0
        else:
            lower.append(Node(branch))
    return tuple(upper), tuple(lower)


def _row_width(row: Sequence[Node]) -> float:
    """The width of a row of nodes with the gaps between them."""
    return sum(node.width for node in row) + BETWEEN * (len(row) - 1)


def _header(topology: Topology, selection: Selection | None, title: str, width: float) -> tuple[list[Shape], float]:
    """Title, versions and selection; and the y where the machine may begin."""
    y = MARGIN + 18
    shapes: list[Shape] = []
    for line in wrap(title, width, 20, 2, bold=True):
        shapes.append(Label(MARGIN, y, line, 20, bold=True))
        y += 25
    texts = [(topology.versions, "quiet")] if topology.versions else []
    if selection is not None:
        chosen = f"GPU {_chosen(selection)}: " if selection.indices else ""
        texts.append((f"{chosen}{selection.reason}", "good" if selection.indices else "bad"))
    for text, style in texts:
        for line in wrap(text, width, 12.5, 3):
            shapes.append(Label(MARGIN, y, line, 12.5, style))
            y += 18
    return shapes, y + 6


def _machine(
    topology: Topology, selection: Selection | None, rows: Sequence[Sequence[Node]], left: float, top: float
) -> tuple[list[Shape], float]:
    """Boxes, lines and cards from `top` down; and the y where they end."""
    if not rows:
        return [], top
    cards = {gpu.index: make_card(gpu, selection) for gpu in topology.gpus}
    tallest = max(card.height for card in cards.values())
    levels = bar_levels(pcie_tree(topology))
    widest = max(map(_row_width, rows))
    starts = [left + (widest - _row_width(row)) / 2 for row in rows]
    head = head_height(topology, (node for row in rows for node in row))
    first = Row(topology, levels, head, tallest, upside_down=False)
    upper = first.draw(rows[0], starts[0], top)
    middle = top + first.height
    lower = Drawn()
    shadow = Row(topology, levels, head, tallest, upside_down=True)
    if len(rows) > 1:  # the x of the cards decides the lanes, and the lanes decide the y of the lower row
        lower = shadow.draw(rows[1], starts[1], middle)
    channel = route(topology, upper.cards, lower.cards, middle + 4)
    bottom = middle + (channel.height + 8 if channel.height else 0.0)
    if len(rows) > 1:
        lower = shadow.draw(rows[1], starts[1], bottom)
        bottom += shadow.height
    places = {**upper.cards, **lower.cards}
    chosen = set(selection.indices) if selection else {gpu.index for gpu in topology.gpus}
    lines, names = nvlink_shapes(topology, channel, places, upper.cards, chosen)
    bracket, mark = _bracket(topology, rows, upper, lower, left) if len(rows) > 1 else ([], [])
    faces = [shape for index, card in cards.items() for shape in card_shapes(card, places[index], selection)]
    return [
        *upper.boxes, *lower.boxes, *bracket, *upper.wires, *lower.wires, *lines, *faces, *names,
        *upper.labels, *lower.labels, *mark,
    ], bottom  # fmt: skip


def _bracket(
    topology: Topology, rows: Sequence[Sequence[Node]], upper: Drawn, lower: Drawn, left: float
) -> tuple[list[Shape], list[Shape]]:
    """The path between the CPUs of the two rows, along the left side."""
    links = _between_rows(topology, rows)
    more = len(tag_words(links)) - 1
    x = left - (BRACKET if more else BRACKET - 14)
    ends = [(drawn.heads[0].x, drawn.heads[0].y + drawn.heads[0].height / 2) for drawn in (upper, lower)]
    points = (ends[0], (x, ends[0][1]), (x, ends[1][1]), ends[1])
    middle = (ends[0][1] + ends[1][1]) / 2
    return [Wire(points, "pcie", 2.5)], tags(links, x, middle - TAG_STEP * more / 2, TAG_STEP)


def _between_rows(topology: Topology, rows: Sequence[Sequence[Node]]) -> list[Link]:
    """The links between nodes of the upper and the lower row."""
    return [link for one, other in pairwise(rows) for a in one for b in other for link in between(topology, a, b)]


def _description(topology: Topology, selection: Selection | None) -> str:
    """The picture in words."""
    count = len(topology.gpus)
    sentences = [f"{count} GPU{'s' * (count != 1)}: {machine_title(topology)}."]
    if selection is not None and selection.indices:
        sentences.append(f"Selected: GPU {_chosen(selection)}, {selection.reason}.")
    links = [f"GPU {link.a} and GPU {link.b}: {link.label}" for link in topology.links]
    return " ".join([*sentences, f"Links: {'; '.join(links)}." if links else ""]).strip()


def _chosen(selection: Selection) -> str:
    """Each GPU once, however many of its slices are chosen."""
    return ", ".join(map(str, dict.fromkeys(selection.indices)))
