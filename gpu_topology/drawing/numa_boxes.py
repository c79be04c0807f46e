"""The boxes of a picture: NUMA nodes with their CPUs, host bridges, PCIe switches, and the place of each GPU's card.

A node's box is drawn from its CPUs down to its GPUs, or the other way round when its row faces another above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gpu_topology.drawing.cards import WIDTH
from gpu_topology.drawing.pcie_tree import Branch, at_level
from gpu_topology.drawing.shapes import Box, Label, Shape, Wire, shorten, text_width
from gpu_topology.topology import Link, LinkLevel, Topology

PADDING, GAP = 12.0, 14.0
HEAD, BAR, STEP = 28.0, 24.0, 14.0
BETWEEN, LINE = 62.0, 15.0
_TITLE, _TEXT, _TAG = 12.5, 11.5, 10.0
TAG_STEP = 18.0

_NAMES = {LinkLevel.PHB: "host bridge", LinkLevel.PXB: "PCIe switches", LinkLevel.PIX: "PCIe switch"}


@dataclass(frozen=True, slots=True)
class Node:
    """One box: a NUMA node, or a part of one that is too wide for a row (`part` is "1/2")."""

    branch: Branch
    part: str = ""

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        count = len(self.branch.gpus)
        return count * WIDTH + (count - 1) * GAP + 2 * PADDING


@dataclass(slots=True)
class Drawn:
    """A drawn row: its shapes in painting order, and the place of each GPU's card."""

    boxes: list[Shape] = field(default_factory=list)
    wires: list[Shape] = field(default_factory=list)
    labels: list[Shape] = field(default_factory=list)
    cards: dict[int, Box] = field(default_factory=dict)
    heads: list[Box] = field(default_factory=list)


def bar_levels(root: Branch) -> tuple[LinkLevel, ...]:
    """The levels, from the CPU to the GPU, that get a row of bars in the picture: those where some pair meets.

    Every GPU is below a host bridge, which is drawn once the driver reports any path.
    """
    paths = {link.path for link in all_links(root)} - {None}
    below = [level for level in (LinkLevel.PXB, LinkLevel.PIX) if level in paths]
    return (LinkLevel.PHB, *below) if paths else ()


def all_links(branch: Branch) -> Iterator[Link]:
    """The links of every pair in a branch."""
    yield from branch.meets
    for part in branch.parts:
        yield from all_links(part)


def head_height(topology: Topology, nodes: Iterable[Node]) -> float:
    """The height of the strip with the node's name and CPUs: two lines where one is too narrow for some node."""
    for node in nodes:
        name = text_width(_node_name(topology, node), _TITLE, bold=True)
        cpus = text_width(cpu_text(topology, node.branch.gpus), _TEXT)
        if cpus and name + 10 + cpus > node.width - 2 * PADDING - 18 - _mark_width(node):
            return HEAD + LINE
    return HEAD


class Row:
    """Draws nodes side by side; `upside_down` puts the CPUs at the bottom."""

    def __init__(
        self, topology: Topology, levels: Sequence[LinkLevel], head: float, card_height: float, upside_down: bool
    ) -> None:
        self.topology = topology
        self.levels = tuple(levels)
        self.head = head
        self.card_height = card_height
        self.height = 2 * PADDING + self.head + len(levels) * (STEP + BAR) + STEP + card_height
        self.upside_down = upside_down
        placed = {index for link in topology.links if link.path for index in (link.a, link.b)}
        self.placeless = {gpu.index for gpu in topology.gpus} - placed

    def draw(self, nodes: Sequence[Node], x: float, top: float) -> Drawn:
        """The row with its upper left corner at (x, top)."""
        drawn = Drawn()
        for node in nodes:
            drawn.boxes.append(Box(x, top, node.width, self.height, "node", _node_name(self.topology, node)))
            head = self._place(x + PADDING, node.width - 2 * PADDING, top, PADDING, self.head)
            self._head(drawn, node, head)
            for bridge in at_level(node.branch, LinkLevel.PHB):
                start = x + PADDING + node.branch.gpus.index(bridge.gpus[0]) * (WIDTH + GAP)
                self._branch(drawn, bridge, start, top, head)
            x += node.width + BETWEEN
        for one, other, left, right in zip(nodes, nodes[1:], drawn.heads, drawn.heads[1:], strict=False):
            y = left.y + self.head / 2
            drawn.wires.append(Wire(((left.right, y), (right.x, y)), "pcie", 2.5))
            down = -1 if self.upside_down else 1
            drawn.labels += tags(between(self.topology, one, other), (left.right + right.x) / 2, y, down * TAG_STEP)
        return drawn

    def _place(self, x: float, width: float, top: float, offset: float, height: float) -> Box:
        """A box `offset` pixels from the CPUs' side of the row."""
        y = top + self.height - offset - height if self.upside_down else top + offset
        return Box(x, y, width, height, "")

    def _head(self, drawn: Drawn, node: Node, head: Box) -> None:
        """Draw the title strip of a node: its name, its CPUs, and a tag for the paths that meet there."""
        drawn.heads.append(head)
        drawn.boxes.append(Box(head.x, head.y, head.width, head.height, "node head"))
        base = head.y + HEAD / 2 + 4.5
        left, right = head.x + 10, head.right - 8 - _mark_width(node)
        if node.branch.meets:
            drawn.labels += tag(
                node.branch.meets, head.right - 8 - tag_width(node.branch.meets) / 2, head.y + self.head / 2
            )
        name = shorten(_node_name(self.topology, node), right - left, _TITLE, bold=True)
        title = Label(left, base, name, _TITLE, bold=True)
        drawn.labels.append(title)
        cpus = cpu_text(self.topology, node.branch.gpus)
        if cpus and self.head > HEAD:
            drawn.labels.append(Label(left, base + LINE, shorten(cpus, right - left, _TEXT), _TEXT, "quiet"))
        elif cpus:
            drawn.labels.append(Label(title.right + 10, base, cpus, _TEXT, "quiet"))

    def _branch(self, drawn: Drawn, branch: Branch, x: float, top: float, parent: Box) -> None:
        """Draw a branch, with its first card at x, below `parent`."""
        if self._is_bar(branch):
            offset = PADDING + self.head + STEP + self.levels.index(branch.level) * (BAR + STEP)
            width = len(branch.gpus) * (WIDTH + GAP) - GAP
            place = self._place(x, width, top, offset, BAR)
            self._hang(drawn, place, parent)
            self._bar(drawn, branch, place)
            parent = place
        for part in branch.parts:
            self._branch(drawn, part, x, top, parent)
            x += len(part.gpus) * (WIDTH + GAP)
        if branch.parts:
            return
        for index in branch.gpus:
            offset = self.height - PADDING - self.card_height
            card = self._place(x, WIDTH, top, offset, self.card_height)
            drawn.cards[index] = card
            self._hang(drawn, card, parent)
            x += WIDTH + GAP

    def _is_bar(self, branch: Branch) -> bool:
        """Whether a branch is drawn as a bar with wires to its parts."""
        if branch.level is LinkLevel.PHB:
            return bool(self.levels) and not self.placeless.issuperset(branch.gpus)
        return branch.level in self.levels and bool(branch.meets)

    def _hang(self, drawn: Drawn, child: Box, parent: Box) -> None:
        """Draw the wire between a part and its parent."""
        ends = (parent.y, child.bottom) if self.upside_down else (parent.bottom, child.y)
        drawn.wires.append(Wire(((child.middle, ends[0]), (child.middle, ends[1])), "pcie", 1.8))

    def _bar(self, drawn: Drawn, branch: Branch, place: Box) -> None:
        """Draw a bridge or switch, with the path that GPUs below it take."""
        style = "bridge" if branch.level is LinkLevel.PHB else "switch"
        drawn.boxes.append(Box(place.x, place.y, place.width, place.height, style, _NAMES[branch.level]))
        name, base = _NAMES[branch.level], place.y + BAR / 2 + 4
        width = text_width(name, _TEXT)
        if not branch.meets:
            drawn.labels.append(Label(place.middle, base, name, _TEXT, "quiet", "middle"))
            return
        room = width + 8 + tag_width(branch.meets)
        left = place.middle - room / 2
        drawn.labels.append(Label(left, base, name, _TEXT, "quiet"))
        drawn.labels += tag(branch.meets, left + room - (room - width - 8) / 2, place.y + BAR / 2)


def between(topology: Topology, one: Node, other: Node) -> tuple[Link, ...]:
    """The links from the GPUs of one node to those of another."""
    return tuple(topology.link(a, b) for a in one.branch.gpus for b in other.branch.gpus)


def tag(links: Sequence[Link], x: float, y: float) -> list[Shape]:
    """nvidia-smi's words for the paths that meet here, as one coloured tag around (x, y); a star: no peer access."""
    return _tag("/".join(tag_words(links)), x, y)


def tags(links: Sequence[Link], x: float, y: float, step: float) -> list[Shape]:
    """Like `tag`, but one tag per word, `step` pixels apart from (x, y) on, where a wide one has no room."""
    return [shape for at, word in enumerate(tag_words(links)) for shape in _tag(word, x, y + at * step)]


def _tag(text: str, x: float, y: float) -> list[Shape]:
    """A path on a pill, its middle at (x, y)."""
    width = text_width(text, _TAG, bold=True) + 10
    level = text.rpartition("/")[2].rstrip("*")
    return [
        Box(x - width / 2, y - 8, width, 16, "tag" if level == "?" else f"tag {level}"),
        Label(x, y + 3.6, text, _TAG, "badge text", "middle", bold=True),
    ]


def tag_words(links: Sequence[Link]) -> list[str]:
    """ "PXB", or "PXB*" without peer access, or both where only some of the pairs are without; the nearest first."""
    found = {(link.path, without_peers(link)) for link in links}
    words = [f"{level.value}{'*' * star}" for level in LinkLevel for star in (False, True) if (level, star) in found]
    return words or ["?*" if (None, True) in found else "?"]


def tag_width(links: Sequence[Link]) -> float:
    """The width of `tag`."""
    return text_width("/".join(tag_words(links)), _TAG, bold=True) + 10


def _mark_width(node: Node) -> float:
    """Width of the tag in a node's title strip, with the gap before it; 0 without a tag."""
    return tag_width(node.branch.meets) + 8 if node.branch.meets else 0.0


def without_peers(link: Link) -> bool:
    """Whether the driver reports that peer access over this pair's PCIe path does not work."""
    return link.level is not LinkLevel.NV and link.p2p not in (None, "ok")


def cpu_text(topology: Topology, gpus: Sequence[int]) -> str:
    """ "CPUs 0-19,40-59" where the driver names the same CPUs for all of them, else ""."""
    known = {topology.gpu(index).cpu_affinity for index in gpus} - {None}
    return f"CPUs {known.pop()}" if len(known) == 1 else ""


def _node_name(topology: Topology, node: Node) -> str:
    """The title of a node: its number, or "CPU" or "not reachable" where that is unknown."""
    gpus = [topology.gpu(index) for index in node.branch.gpus]
    known = sorted({gpu.numa_node for gpu in gpus if gpu.numa_node is not None})
    suffix = f" ({node.part})" if node.part else ""
    if not known:
        return ("not reachable" if all(gpu.error is not None for gpu in gpus) else "CPU") + suffix
    return f"NUMA node{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}{suffix}"
