"""NVLinks that are down, and those that only seem to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.select.nvlinks import all_inactive, some_down, without_any
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import to_topology

HERE = Path(__file__).parents[1] / "machines"
SOUND = sorted(HERE.glob("*.json"))


def board(name: str, links: list[int], capability: tuple[int, int] = (9, 0), **machine: Any) -> Topology:
    """Cards behind NVSwitch, each with so many links up."""
    size = range(len(links))
    matrix = [["X" if a == b else cell(min(links[a], links[b])) for b in size] for a in size]
    gpus = [{"name": name, "memory_mib": 80000, "cc": list(capability)} for _ in size]
    return to_topology({"gpus": gpus, "matrix": matrix, "nvswitch": "hidden", **machine})


def cell(links: int) -> str:
    return f"NV{links}" if links else "PHB"


def down(topology: Topology) -> list[tuple[int, int, int]]:
    return [(missing.index, missing.down, missing.total) for missing in some_down(topology)]


H100, B200, PCIE = "NVIDIA H100 80GB HBM3", "NVIDIA B200", "NVIDIA H100 PCIe"


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.stem)
def test_nothing_is_missing_on_real_machines(path: Path) -> None:
    topology = to_topology(json.loads(path.read_text()))
    assert (down(topology), without_any(topology), all_inactive(topology)) == ([], frozenset(), ())


@pytest.mark.parametrize(
    ("topology", "missing"),
    [
        (board(H100, [18, 18, 18, 17, 18, 18, 18, 18]), [(3, 1, 18)]),
        (board(H100, [16] * 8), [(index, 2, 18) for index in range(8)]),  # by the card's own number
        (board(H100, [18, 16, 16, 18]), [(1, 2, 18), (2, 2, 18)]),
        (board("NVIDIA H800", [8] * 8), []),
        (board("NVIDIA A100-SXM4-80GB", [12, 12, 11, 12], (8, 0)), [(2, 1, 12)]),
        (board(H100, [6, 6]), []),  # a part of a board that has fewer links to each
        (board("NVIDIA RTX A6000", [3, 3], (8, 6)), [(0, 1, 4), (1, 1, 4)]),
        (board("Tesla V100-SXM2-16GB", [2, 2], (7, 0)), []),
        (board("Tesla V100-SXM3-32GB", [6, 6, 5, 6, 6, 6], (7, 0)), [(2, 1, 6)]),  # all alike behind NVSwitch
    ],
)
def test_links_that_are_down(topology: Topology, missing: list[tuple[int, int, int]]) -> None:
    assert down(topology) == missing


def mesh(name: str, cards: int, each: int, capability: tuple[int, int], *beside: dict[str, Any]) -> Topology:
    """Cards that NVLinks join directly, so many to each, and others without a link."""
    gpus = [{"name": name, "memory_mib": 80000, "cc": list(capability)}] * cards + list(beside)
    size = range(len(gpus))
    matrix = [["X" if a == b else cell(each if max(a, b) < cards else 0) for b in size] for a in size]
    return to_topology({"gpus": gpus, "matrix": matrix})


DISPLAY = {"name": "NVIDIA DGX Display", "memory_mib": 4096, "cc": [7, 5]}


@pytest.mark.parametrize(
    ("topology", "missing"),
    [
        # Three of four, as Slurm gives them: 12 links of an A100 and 18 of an H100 or GH200 lead to three others each.
        (mesh("NVIDIA A100-SXM4-40GB", 3, 4, (8, 0)), 0),
        (mesh("NVIDIA A100-SXM4-40GB", 3, 4, (8, 0), DISPLAY), 0),
        (mesh(H100, 3, 6, (9, 0)), 0),
        (mesh("NVIDIA GH200 120GB", 3, 6, (9, 0)), 0),
        (mesh("NVIDIA A100-SXM4-40GB", 4, 3, (8, 0)), 4),  # the whole board with a link of each pair down
        # 900 GB/s of an H200 NVL are 18 links: 6 to each of three, or all to one.
        (mesh("NVIDIA H200 NVL", 4, 6, (9, 0)), 0),
        (mesh("NVIDIA H200 NVL", 2, 18, (9, 0)), 0),
        (mesh("NVIDIA H200 NVL", 2, 17, (9, 0)), 2),
        (mesh("NVIDIA H100 NVL", 2, 11, (9, 0)), 2),
    ],
)
def test_direct_links_of_a_part_and_of_larger_bridges(topology: Topology, missing: int) -> None:
    assert len(down(topology)) == missing


def test_a_card_without_any_link_on_a_board_of_linked_ones() -> None:
    assert without_any(board(B200, [18, 18, 0, 18], (10, 0))) == {2}
    assert without_any(board("Tesla V100-SXM3-32GB", [6, 6, 0, 6], (7, 0))) == {2}, "NVSwitch"
    assert without_any(board(PCIE, [12, 12, 0])) == frozenset(), "two with a bridge, one without"
    assert without_any(board(PCIE, [12, 12, 12, 0])) == {3}, "three in a full mesh are no bridge"
    assert without_any(board(B200, [0, 0, 0, 0], (10, 0))) == frozenset()


@pytest.mark.parametrize("seen", [(0, 1, 2, 7), (0, 1, 6), (0, 2, 5), (0, 6)])
def test_a_part_of_a_board_without_nvswitch_has_no_fault(seen: tuple[int, ...]) -> None:
    """The links of a DGX-1's GPU may all lead to GPUs that this job does not see."""
    machine = json.loads((HERE / "dgx1v_8xv100.json").read_text())
    machine["gpus"] = [machine["gpus"][index] for index in seen]
    for key in ("matrix", "pcie_matrix"):
        machine[key] = [[machine[key][a][b] for b in seen] for a in seen]
    topology = to_topology(machine)
    assert (down(topology), without_any(topology), all_inactive(topology)) == ([], frozenset(), ())


@pytest.mark.parametrize(("dead", "alone", "inactive"), [({3}, {3}, 0), ({3, 5}, {3, 5}, 0), ({*range(8)}, set(), 8)])
def test_dead_links_on_a_whole_board_without_nvswitch(dead: set[int], alone: set[int], inactive: int) -> None:
    topology = to_topology(json.loads((HERE / "dgx1v_8xv100.json").read_text()))
    links = tuple(replace(link, nvlinks=0) if {link.a, link.b} & dead else link for link in topology.links)
    topology = replace(topology, links=links)
    assert without_any(topology) == alone
    assert all_inactive(topology) == tuple(range(inactive))


def test_a_board_whose_links_are_all_inactive() -> None:
    assert all_inactive(board(H100, [0, 0, 0, 0])) == (0, 1, 2, 3)
    assert all_inactive(board("Tesla V100-SXM3-32GB", [0, 0], (7, 0))) == (0, 1)
    assert all_inactive(board(PCIE, [0, 0, 0, 0])) == ()
    assert all_inactive(board(H100, [0])) == (), "one card has nothing to be linked to"
