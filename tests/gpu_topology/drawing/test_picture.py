"""The picture of a machine: everything drawn once, nothing on top of something else, valid SVG on its own."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.drawing.nvlink_wires import nvlinks, switched
from gpu_topology.drawing.pcie_tree import pcie_tree
from gpu_topology.drawing.picture import layout
from gpu_topology.drawing.shapes import Box, Label, Picture, Wire, shorten, text_width, wrap
from gpu_topology.drawing.svg import to_svg
from gpu_topology.select.select import Selection, SelectionRequest, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, permuted, to_topology

SAVED = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parents[1] / "machines").glob("*.json")}


def machine(size: int, name: str, level: Callable[[int, int], str], numa: Callable[[int], int], **more: Any) -> Any:
    """`size` GPUs of one name, with the link matrix cell by cell."""
    cc = more.pop("cc", [8, 0])
    gpus = [
        {"name": name, "memory_mib": 40960, "cc": cc, "numa": numa(index), "cpus": f"{numa(index)},64-95,128-255"}
        for index in range(size)
    ]
    matrix = [["X" if a == b else level(a, b) for b in range(size)] for a in range(size)]
    return {"gpus": gpus, "matrix": matrix, **more}


def nested(a: int, b: int) -> str:
    """The PCIe path in a machine of two sockets, each with host bridges of four GPUs behind two switches."""
    near = next(
        ((width, word) for width, word in ((2, "PIX"), (4, "PXB"), (8, "NODE")) if a // width == b // width), None
    )
    return near[1] if near else "SYS"


def anywhere(seed: int, words: tuple[str, ...]) -> Callable[[int, int], str]:
    """A random level for each pair, which no tree of switches and bridges has."""
    return lambda a, b: random.Random(f"{seed} {min(a, b)} {max(a, b)}").choice(words)


PCIE = ("PIX", "PXB", "PHB", "NODE", "SYS")

MIG = {
    "name": "NVIDIA A100-PCIE-40GB",
    "memory_mib": 40960,
    "cc": [8, 0],
    "mig_mode": True,
    "mig": [{"uuid": f"MIG-{i}", "profile": "1g.5gb", "memory_mib": 4864, "instance": i} for i in range(7)],
}

MACHINES: dict[str, Any] = {
    **SAVED,
    **{name: load_machine(name) for name in ("a100_a5000_t400", "h100_8x_nvswitch", "no_devices", "rtx3090_2x_nvlink")},
    "one": {"gpus": [{"name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564, "cc": [8, 9], "cpus": "0-15"}]},
    "nothing known": {"gpus": [{"name": None, "memory_mib": None, "cc": None, "numa": None, "pcie": None}]},
    "dgx2": machine(
        16,
        "Tesla V100-SXM3-32GB",
        lambda a, b: "NV6",
        lambda i: i // 8,
        cc=[7, 0],
        nvswitch="visible",
        pcie_matrix=[[nested(a, b) for b in range(16)] for a in range(16)],
    ),
    "16 of one node": machine(16, "Tesla K80", lambda a, b: "PHB" if a // 8 == b // 8 else "NODE", lambda i: 0),
    "16 bridged": machine(16, "RTX A6000", lambda a, b: "NV4" if a // 2 == b // 2 else nested(a, b), lambda i: i // 8),
    "7 of one node": machine(7, "L40S", nested, lambda i: 0, p2p="chipset-not-supported"),
    "every pair directly": machine(12, "A" * 40, lambda a, b: "NV1", lambda i: i // 6),
    "bridged across rows": machine(
        8, "A100", lambda a, b: "NV4" if (a + b) % 8 == 7 else nested(a, b), lambda i: i // 4
    ),
    "four nodes": machine(8, "A100", lambda a, b: "PXB" if a // 2 == b // 2 else "SYS", lambda i: i // 2),
    "three rows asked": machine(10, "A100", lambda a, b: "PHB" if a // 3 == b // 3 else "SYS", lambda i: i // 3),
    "16 at random levels": machine(16, "A100", anywhere(1, ("NV1", "NV2", "NV4", *PCIE)), lambda i: i * 7 % 2),
    "8 at random levels": machine(
        8, "A100", anywhere(2, PCIE), lambda i: i // 2, p2p={"0-1": "ok", "default": "unknown"}
    ),
    "16 of four nodes at random": machine(16, "A100", anywhere(3, PCIE), lambda i: i // 4, p2p="not-supported"),
    "some without peers": machine(
        16,
        "A100",
        anywhere(4, PCIE),
        lambda i: i // 8,
        p2p={f"{i}-{i + 1}": "chipset-not-supported" for i in range(15)},
    ),
    "slices": {"gpus": [MIG, {**MIG, "mig": MIG["mig"][:2]}]},
    "names": {
        "gpus": [
            {"name": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "memory_mib": 97887, "cc": [12, 0]},
            {"name": "<&>\"' \x01 " + "W" * 60, "memory_mib": 97887, "cc": [12, 0]},
        ]
    },
}


def choice(topology: Topology, **request: Any) -> Selection:
    return select(topology, SelectionRequest(**request))


def pictures(name: str) -> list[tuple[Topology, Picture]]:
    """The machine with all of its best group chosen, with one GPU chosen, with one lost, and in another order."""
    first = to_topology(MACHINES[name])
    found = [(first, choice(first)), (first, None)]
    if first.gpus:
        found.append((first, choice(first, count=1)))
        lost = dataclasses.replace(first.gpus[-1], error="GPU is lost: it has fallen off the bus", numa_node=None)
        gone = first.gpus[-1].index
        links = tuple(link for link in first.links if gone not in (link.a, link.b))
        without = dataclasses.replace(first, gpus=(*first.gpus[:-1], lost), links=links)
        found.append((without, choice(without)))
        order = random.Random(name).sample(range(len(first.gpus)), len(first.gpus))
        other = to_topology(permuted(MACHINES[name], tuple(order)))
        found.append((other, choice(other)))
    return [(topology, layout(topology, selection)) for topology, selection in found]


@pytest.mark.parametrize("name", MACHINES)
def test_each_gpu_and_each_nvlink_is_drawn_once(name):
    for topology, picture in pictures(name):
        boxes = [shape for shape in picture.shapes if isinstance(shape, Box) and shape.name.startswith("GPU ")]
        assert sorted(box.name for box in boxes) == sorted(f"GPU {gpu.index}" for gpu in topology.gpus)
        wires = [shape.name for shape in picture.shapes if isinstance(shape, Wire) and shape.name]
        topology = topology.for_programs()
        bars = switched(topology)
        hidden = {pair for bar in bars for pair in combinations(bar.gpus, 2)}
        wanted = [f"GPU {i} to NVSwitch" for bar in bars for i in bar.gpus]
        wanted += [f"GPU {one.a} to GPU {one.b}" for one in nvlinks(topology) if (one.a, one.b) not in hidden]
        assert sorted(wire.partition(":")[0] for wire in wires) == sorted(wanted)


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_overlaps_and_nothing_sticks_out(name):
    for _, picture in pictures(name):
        page, *boxes = (shape for shape in picture.shapes if isinstance(shape, Box))
        labels = [shape for shape in picture.shapes if isinstance(shape, Label)]
        assert picture.width < 1500  # on a page 900 pixels wide the smallest text is still six pixels high
        assert 0 <= page.x < page.right <= picture.width
        assert 0 <= page.y < page.bottom <= picture.height
        for box in boxes:
            assert page.x <= box.x < box.right <= page.right, box
            assert page.y <= box.y < box.bottom <= page.bottom, box
        for one, other in combinations([box for box in boxes if not box.style.startswith("pill")], 2):
            assert apart(one, other) or within(one, other) or within(other, one), (one, other)
        pills = [box for box in boxes if box.style.startswith(("pill", "card", "tag", "nvswitch"))]
        for one, other in combinations(pills, 2):
            small = "badge" in (one.style, other.style)
            assert small or apart(one, other), (one, other)
        areas = [
            Box(label.left, label.y - label.size * 0.8, label.right - label.left, label.size, "") for label in labels
        ]
        for label, taken in zip(labels, areas, strict=True):
            assert within(taken, page), label
        for (one, a), (other, b) in combinations(zip(labels, areas, strict=True), 2):
            assert apart(a, b), (one, other)
        cards = [box for box in boxes if box.style.startswith("card ") and box.name]
        for label, taken in zip(labels, areas, strict=True):
            for card in cards:
                assert apart(taken, card) or within(taken, card), (label, card)


def area(label: Label) -> Box:
    """What a line of text may cover at most."""
    return Box(label.left, label.y - label.size * 0.8, label.right - label.left, label.size, "")


def apart(one: Box, other: Box) -> bool:
    return one.right <= other.x or other.right <= one.x or one.bottom <= other.y or other.bottom <= one.y


def within(one: Box, other: Box) -> bool:
    return other.x <= one.x and one.right <= other.right and other.y <= one.y and one.bottom <= other.bottom


@pytest.mark.parametrize("name", MACHINES)
def test_nvlinks_never_share_a_line(name):
    """Stretches of two links that run on top of each other could not be told apart."""
    for _, picture in pictures(name):
        wires = [shape for shape in picture.shapes if isinstance(shape, Wire) and shape.style.startswith("nvlink")]
        direct = [wire for wire in wires if wire.name and "NVSwitch" not in wire.name]
        for one, other in combinations(direct, 2):
            for a, b in ((a, b) for a in stretches(one) for b in stretches(other)):
                assert not overlap(a, b), (one.name, other.name)


def stretches(wire: Wire) -> list[tuple[bool, float, float, float]]:
    """(is vertical, the place across, from, to) of each straight piece."""
    found = []
    for (ax, ay), (bx, by) in zip(wire.points, wire.points[1:], strict=False):
        upright = ax == bx
        across, start, end = (ax, ay, by) if upright else (ay, ax, bx)
        found.append((upright, across, min(start, end), max(start, end)))
    return found


def overlap(a: tuple[bool, float, float, float], b: tuple[bool, float, float, float]) -> bool:
    return a[0] == b[0] and abs(a[1] - b[1]) < 1 and a[2] < b[3] and b[2] < a[3]


@pytest.mark.parametrize("name", MACHINES)
def test_the_svg_is_valid_and_needs_nothing_from_elsewhere(name):
    for _, picture in pictures(name):
        text = to_svg(picture)
        root = ElementTree.fromstring(text)
        space = "{http://www.w3.org/2000/svg}"
        used = {child.tag.removeprefix(space) for child in root.iter()}
        assert root.tag == f"{space}svg"
        assert root[0].tag == f"{space}title"
        assert root[0].text
        assert used <= {"svg", "title", "desc", "rect", "path", "text"}
        assert text.count("http") == 1  # the name space
        assert not re.search(r"url\(|href|@import|javascript", text)


def test_a_switch_is_one_bar_and_direct_links_are_not():
    assert [bar.gpus for bar in switched(to_topology("h100_8x_nvswitch"))] == [tuple(range(8))]
    four = machine(4, "A100", lambda a, b: "NV4", lambda i: 0)  # 3 x 4 = 12 links: each pair has its own
    assert switched(to_topology(four)) == ()
    assert switched(to_topology(SAVED["dgx1v_8xv100"])) == ()


def test_the_tree_follows_the_paths_also_beneath_nvlink():
    tree = pcie_tree(to_topology(MACHINES["dgx2"]))
    assert [part.gpus for part in tree.parts] == [tuple(range(8)), tuple(range(8, 16))]
    bridge = tree.parts[0].parts[0]
    assert (bridge.gpus, [part.gpus for part in bridge.parts[0].parts]) == ((0, 1, 2, 3), [(0, 1), (2, 3)])
    assert {link.pcie_level for link in tree.parts[0].meets} == {"NODE"}


def test_faster_links_are_thicker_and_chosen_ones_stand_out():
    topology = to_topology(SAVED["dgx1v_8xv100"])
    picture = layout(topology, choice(topology, gpus=("0", "3")))
    wires = {shape.name: shape for shape in picture.shapes if isinstance(shape, Wire)}
    fast, slow = wires["GPU 0 to GPU 3: NV2, 50 GB/s"], wires["GPU 0 to GPU 1: NV1, 25 GB/s"]
    assert fast.thickness > slow.thickness
    assert (fast.style, slow.style) == ("nvlink", "nvlink idle")
    cards = {shape.name: shape.style for shape in picture.shapes if isinstance(shape, Box)}
    assert (cards["GPU 0"], cards["GPU 1"]) == ("card chosen", "card left")


def test_a_bad_nvlink_and_missing_peer_access_show():
    machine = {**MACHINES["rtx3090_2x_nvlink"], "p2p": "gpu-not-supported"}
    words = [shape.text for shape in layout(to_topology(machine)).shapes if isinstance(shape, Label)]
    assert "NVLink without peer access (gpu-not-supported)" in words
    plain = {**machine, "matrix": [["X", "PHB"], ["PHB", "X"]]}
    words = [shape.text for shape in layout(to_topology(plain)).shapes if isinstance(shape, Label)]
    assert "PHB*" in words
    assert any("no peer access (gpu-not-supported)" in word for word in words)


def stars(topology: Topology) -> list[str]:
    words = [shape.text for shape in layout(topology).shapes if isinstance(shape, Label)]
    return [word for word in words if re.match(r"(PIX|PXB|PHB|NODE|SYS)\b", word) or "no peer access" in word]


def test_a_star_marks_the_pairs_that_it_concerns():
    """Four GPUs behind two switches: peer access works between 0 and 1, and not between 2 and 3."""
    levels = machine(4, "L40S", lambda a, b: "PIX" if a // 2 == b // 2 else "PXB", lambda i: 0)
    one = {**levels, "p2p": {"2-3": "chipset-not-supported", "default": "ok"}}
    assert stars(to_topology(one)) == [
        "PXB", "PIX", "PIX*", "PIX", "PXB", "no peer access (chipset-not-supported), GPUs 2-3: by way of host memory"
    ]  # fmt: skip
    mixed = {**levels, "p2p": {"0-2": "not-supported", "default": "ok"}}
    assert "PXB/PXB*" in stars(to_topology(mixed))
    assert "no peer access (not-supported), GPUs 0-2: by way of host memory" in stars(to_topology(mixed))
    every = {**levels, "p2p": "not-supported"}
    assert stars(to_topology(every))[-1] == "no peer access (not-supported): by way of host memory"


def test_gpus_in_mig_mode_have_no_nvlinks():
    machine = load_machine("rtx3090_2x_nvlink")
    assert any(isinstance(shape, Wire) and shape.style == "nvlink" for shape in layout(to_topology(machine)).shapes)
    machine["gpus"][1] |= {"mig_mode": True, "mig": MIG["mig"][:2]}
    picture = layout(to_topology(machine))
    assert not any(isinstance(shape, Wire) and "nvlink" in shape.style for shape in picture.shapes)
    assert "NV" not in " ".join(shape.text for shape in picture.shapes if isinstance(shape, Label)).replace(
        "NVIDIA", ""
    )
    assert "NV4" not in picture.description


def test_lanes_that_are_not_in_use_and_unknown_models_show():
    gpus = [{"name": "NVIDIA L40S", "pcie": [4, 16], "pcie_now": [4, 8]}, {"name": None}, {"name": None}]
    picture = layout(to_topology({"gpus": gpus}))
    assert picture.title == "1 x L40S, 2 of unknown model"
    assert any(isinstance(shape, Label) and shape.text == "PCIe gen4 x8/16" for shape in picture.shapes)


def test_a_fabric_that_failed_shows_on_its_switch():
    picture = layout(to_topology(SAVED["gb200_4x_failed_fabric"]))
    wires = {shape.name: shape.style for shape in picture.shapes if isinstance(shape, Wire) and shape.name}
    assert set(wires.values()) == {"nvlink bad"}
    assert any("no peer access" in shape.text for shape in picture.shapes if isinstance(shape, Label))
    one = layout(to_topology(SAVED["h100_hgx_8x_one_failed"]))
    styles = [shape.style for shape in one.shapes if isinstance(shape, Wire) and "NVSwitch" in shape.name]
    assert sorted(styles) == ["nvlink"] * 7 + ["nvlink bad"]


def test_the_cpus_of_a_node_are_on_it():
    words = [shape.text for shape in layout(to_topology(MACHINES["one"])).shapes if isinstance(shape, Label)]
    assert "CPUs 0-15" in words


def test_slices_that_are_chosen_show_with_all_their_ranks():
    machine = MACHINES["slices"]
    machine["gpus"][1]["mig"] = [{**one, "uuid": f"{one['uuid']}b"} for one in machine["gpus"][1]["mig"]]
    topology = to_topology(machine)
    picture = layout(topology, choice(topology, gpus=("MIG-0", "MIG-1", "MIG-3")))
    words = [shape.text for shape in picture.shapes if isinstance(shape, Label)]
    slices = [shape.style for shape in picture.shapes if isinstance(shape, Box) and shape.style.startswith("slice")]
    assert "ranks 0-2" in words
    assert slices == [*["slice chosen"] * 2, "slice", "slice chosen", *["slice"] * 5]


def test_text_is_cut_where_it_does_not_fit():
    assert shorten("RTX 4090", 200, 12) == "RTX 4090"
    cut = shorten("RTX PRO 6000 Blackwell", 80, 12)
    assert cut.endswith("…")
    assert text_width(cut, 12) <= 80
    lines = wrap("one two three four five six seven", 60, 12, 2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
