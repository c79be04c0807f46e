"""The link matrix of the report, in nvidia-smi's notation, legible from 2 to 16 GPUs on 80 columns; and its legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_topology.report.terminal_table import Column, Content, Screen
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, Link, LinkLevel, PeerAccess, Topology

_LEVEL_STYLES = {
    LinkLevel.NV: "bold green",
    LinkLevel.PIX: "cyan",
    LinkLevel.PXB: "cyan",
    LinkLevel.PHB: "yellow",
    LinkLevel.NODE: "yellow",
    LinkLevel.SYS: "magenta",
}


def links(screen: Screen, topology: Topology, selection: Selection | None = None) -> None:
    """The matrix; a star marks pairs without working peer access.

    A matrix wider than the screen gets narrower columns or, where that is not enough, is split into stacked blocks.
    """
    gpus = topology.gpus
    row_head = len(f"GPU{gpus[-1].index}")
    cell = max((len(link.label) + _refused(link) for link in topology.links), default=1)
    wide, slim = max(cell, row_head) + 2, max(cell, len(str(gpus[-1].index))) + 1
    if row_head + 1 + len(gpus) * wide > screen.width and row_head + 1 + len(gpus) * slim <= screen.width:
        _block(screen, topology, selection, gpus, close=True)
        return
    fit = max(1, (screen.width - row_head - 1) // wide)
    size = -(-len(gpus) // -(-len(gpus) // fit))  # the blocks are about as wide as each other
    for at in range(0, len(gpus), size):
        _block(screen, topology, selection, gpus[at : at + size], close=False)


def _block(
    screen: Screen, topology: Topology, selection: Selection | None, gpus: Sequence[Gpu], *, close: bool
) -> None:
    """Some columns of the matrix, with every row."""
    styles = {
        gpu.index: "bold green" if selection and gpu.index in selection.indices else "bold" for gpu in topology.gpus
    }
    columns = [Column(f"{gpu.index}" if close else f"GPU{gpu.index}", style=styles[gpu.index]) for gpu in gpus]
    rows: list[list[Content]] = [
        [
            (f"GPU{row.index}", styles[row.index]),
            *(_link_cell(topology.link(row.index, gpu.index)) for gpu in gpus),
        ]
        for row in topology.gpus
    ]
    screen.table([Column(), *columns], rows, left=0 if close else 1, gap=1 if close else 2)


def _refused(link: Link) -> bool:
    """Whether the driver reports that peer access does not work."""
    return link.p2p not in (None, "ok")


def _link_cell(link: Link) -> Content:
    """The cell of the matrix for one pair."""
    if link.a == link.b:
        return "X", "dim"
    label = (link.label, _LEVEL_STYLES[link.level] if link.level else "dim")
    return [label, ("*", "red")] if _refused(link) else label


def legend(screen: Screen, topology: Topology) -> None:
    """The meaning of the labels that occur in the matrix, and the kinds of peer access that the driver reports."""
    seen = {link.level for link in topology.links}
    lines = [f"{level.value:<5}{level.meaning}" for level in LinkLevel if level in seen]
    over_pcie = _reasons(link for link in topology.links if link.level is not LinkLevel.NV)
    over_nvlink = _reasons(link for link in topology.links if link.level is LinkLevel.NV)
    if over_pcie:
        lines.append(f"*    no peer access ({over_pcie}): by way of host memory")
    if over_nvlink:
        lines.append(f"*    NVLink without peer access ({over_nvlink})")
    if None in seen:
        lines.append("?    not reported by the driver")
    kinds = peer_words(topology)
    if kinds:
        lines.append(f"peer access, as the driver reports it: {kinds}")
    screen.text(("\n".join(lines), "dim"), indent=2)


def _reasons(links: Iterable[Link]) -> str:
    """The driver's reasons for refusing peer access, each once."""
    return ", ".join(sorted({str(link.p2p) for link in links if _refused(link)}))


def peer_words(topology: Topology) -> str:
    """Peer access in words: "read, write ok; atomics ok for 0-1, 2-3, else not-supported"; "" where unreported."""
    said: dict[str, list[str]] = {}
    for kind, statuses in _statuses(topology).items():
        if statuses:
            said.setdefault(_sum_up(statuses), []).append(kind)
    return "; ".join(f"{', '.join(kinds)} {words}" for words, kinds in said.items())


def _statuses(topology: Topology) -> dict[str, dict[str, str]]:
    """For each kind of access, pair -> status; where the two directions differ, both."""
    found: dict[str, dict[str, str]] = {"read": {}, "write": {}, "atomics": {}}
    for link in topology.links:
        for kind, statuses in found.items():
            there, back = getattr(link.peer or PeerAccess(), kind)
            if there is not None or back is not None:
                same = there == back or back is None or there is None
                statuses[f"{link.a}-{link.b}"] = str(there or back) if same else f"{there} one way, {back} back"
    return found


def _sum_up(statuses: dict[str, str]) -> str:
    """Statuses by pair in one phrase: `ok for 0-1, else not-supported`."""
    kinds = sorted(set(statuses.values()), key=lambda status: (status != "ok", status))
    if len(kinds) == 1:
        return kinds[0]
    parts = []
    for status in kinds[:-1]:
        pairs = [pair for pair, one in statuses.items() if one == status]
        parts.append(
            f"{status} for {', '.join(pairs) if len(pairs) <= 4 else f'{len(pairs)} of {len(statuses)} pairs'}"
        )
    return f"{', '.join(parts)}, else {kinds[-1]}"
