"""The page in a terminal: complete at 80 and at 160 columns, without colour where none is wanted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpu_topology.environment import settings as nccl
from gpu_topology.report import report
from gpu_topology.report.link_matrix import peer_words
from gpu_topology.report.terminal_table import Screen
from gpu_topology.select.select import SelectionRequest, eligible, groups, select
from gpu_topology.topology import Link, PeerAccess, Topology
from tests.fake_nvml.machine import load_machine, to_topology


def page(topology: Topology, host: Any, width: int, environ: dict[str, str] | None = None) -> str:
    """The whole report at a width, as plain text."""
    request = SelectionRequest()
    chosen = select(topology, request)
    settings = nccl.environment(topology, chosen, host, ranks=len(chosen.indices) or 1, environ=environ or {})
    found = groups(topology, eligible(topology, request))
    screen = Screen(width)
    report.render(screen, topology, host, chosen, found, settings)
    return "\n".join(screen.lines)


def sixteen(cell: str, **more: Any) -> dict[str, Any]:
    """Sixteen GPUs, every pair with the same cell in the link matrix."""
    gpu = {"name": "Tesla V100-SXM3-32GB", "memory_mib": 32768, "memory_used_mib": 31000, "cc": [7, 0]}
    matrix = [["X" if a == b else cell for b in range(16)] for a in range(16)]
    return {"gpus": [gpu] * 16, "matrix": matrix, **more}


PAGES: dict[str, Any] = {
    **{name: name for name in ("a100_a5000_t400", "rtx3090_2x_nvlink", "h100_8x_nvswitch", "no_devices")},
    "16 with NVLink": sixteen("NV6"),
    "16 without peer access": sixteen("NODE", p2p="chipset-not-supported"),
}


@pytest.mark.parametrize("width", [50, 80, 160])
@pytest.mark.parametrize("name", PAGES)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(name, width, host):
    topology = to_topology(PAGES[name])
    text = page(topology, host, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for gpu in topology.gpus:
        row = next(line for line in text.splitlines() if line[1:7].split()[-1:] == [str(gpu.index)])
        assert width < 80 or (gpu.pci_bus_id or "").removeprefix("0000:") in row.split()
    cells = {link.label + ("*" if link.p2p != "ok" else "") for link in topology.links}
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        head, *words = line.split() or [""]
        if head in {f"GPU{gpu.index}" for gpu in topology.gpus} and set(words) <= {*cells, "X"}:
            rows.setdefault(head, []).extend(words)
    if len(topology.gpus) > 1:
        assert all(len(rows[f"GPU{gpu.index}"]) == len(topology.gpus) for gpu in topology.gpus), rows


def test_a_gpu_in_mig_mode_has_no_nvlinks(host):
    machine = load_machine("rtx3090_2x_nvlink")
    assert "NV4" in page(to_topology(machine), host, 80)
    slices = [{"uuid": f"MIG-{n}", "profile": "1g.5gb", "memory_mib": 4864, "instance": n} for n in (1, 2)]
    machine["gpus"][1] |= {"mig_mode": True, "mig": slices}
    topology = to_topology(machine)
    text = page(topology, host, 80)
    assert "NV4" not in text
    assert f"{topology.link(0, 1).path}*" in text
    assert "no peer access (not-supported)" in text


def test_a_gpu_of_unknown_name_is_left_out_by_its_number(host):
    topology = to_topology("rtx3090_2x_nvlink")
    lost = dataclasses.replace(topology.gpus[1], name=None, error="GPU is lost: it has fallen off the bus")
    text = page(dataclasses.replace(topology, gpus=(topology.gpus[0], lost), links=()), host, 80)
    assert "not GPU 1: GPU is lost" in text


def test_everything_a_reader_looks_for_is_on_the_page(host):
    text = page(to_topology("a100_a5000_t400"), host, 160, {"NCCL_DEBUG": "INFO"})
    for part in (
        "driver 580.65.06, CUDA up to 13.0",
        "RTX A5000",
        "drives a display",
        "0.3 / 4.0",
        "4d:00.0",
        "NODE host bridges within one NUMA node",
        "NVIDIA RTX A5000 x 3",
        "GPU 0, 2, 4: the largest group of identical GPUs",
        "not GPU 3 A100-PCIE-40GB: in another group",
        "gen3 x16",
        "CUDA_VISIBLE_DEVICES=0,2,4",
        "kept: set by you",
        "32 usable CPUs",
    ):
        assert part in text, part
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == ["GPU2"]]
    assert rows == [["GPU2", "SYS", "SYS", "X", "NODE", "PHB"]]


def test_links_without_peer_access_carry_a_star_with_its_meaning(host):
    machine = {**load_machine("rtx3090_2x_nvlink"), "matrix": [["X", "PHB"], ["PHB", "X"]], "p2p": "gpu-not-supported"}
    text = page(to_topology(machine), host, 80)
    assert "PHB*" in text
    assert "no peer access (gpu-not-supported): by way of host memory" in text
    assert "through host memory" in " ".join(text.split())  # in the selection's reason
    assert "NCCL_P2P_DISABLE would be redundant" in " ".join(text.split())


def test_the_unknown_is_a_question_mark(host):
    silent = {"numa": None, "utilization": None, "processes": None, "memory_mib": None, "cc": None}
    topology = to_topology({"gpus": [{"name": "NVIDIA GB10", **silent}]})
    row = next(line for line in page(topology, host, 80).splitlines() if "GB10" in line)
    assert row.split() == [">", "0", "GB10", "?", "/", "?", "?", "?", "?", "gen4", "x16", "41:00.0"]


def test_a_gpu_that_failed_is_red_and_says_why(host):
    topology = to_topology("rtx3090_2x_nvlink")
    lost = dataclasses.replace(topology.gpus[0], error="GPU is lost")
    topology = dataclasses.replace(topology, gpus=(lost, topology.gpus[1]))
    assert "GPU is lost" in page(topology, host, 80)


def test_without_a_gpu_the_page_says_why_and_what_happens_instead(host):
    topology = Topology(warnings=("no NVIDIA driver on this machine", "to use a GPU: install its driver"))
    text = page(topology, host, 80)
    assert "Why: no NVIDIA driver on this machine." in text
    assert "To use a GPU: install its driver." in text
    assert "gloo" in text
    assert "CUDA_VISIBLE_DEVICES" not in text


def test_brackets_in_names_are_text_and_not_markup(host):
    topology = to_topology({"gpus": [{"name": "Quadro [bold]X[/bold]", "memory_mib": 8192, "cc": [7, 5]}]})
    text = page(topology, host, 160, {"NCCL_DEBUG": "[red]INFO"})
    assert text.count("Quadro [bold]X[/bold]") == 4  # device, group, selection, environment
    assert "NCCL_DEBUG=[red]INFO" in text


def test_what_is_wrong_with_a_gpu_stands_beside_its_name(host):
    machine = load_machine("rtx3090_2x_nvlink")
    machine["gpus"][0] |= {
        "ecc": True,
        "ecc_uncorrected": 3,
        "throttle": ["hw-thermal", "power-cap"],
        "pcie_now": [4, 8],
    }
    machine["gpus"][1] |= {"remapped": [False, True]}
    lines = page(to_topology(machine), host, 80).splitlines()
    first = next(at for at, line in enumerate(lines) if "RTX 3090" in line)
    assert "gen4 x8/16" in lines[first]
    words = " ".join(" ".join(lines[first : first + 8]).split())
    assert "3 memory errors" in words
    assert "held back: hw-thermal" in words
    assert "power-cap" not in words  # a limit that somebody chose
    assert "row-remap-failed" in words


def test_the_cpus_of_each_node_are_listed(host):
    machine = load_machine("a100_a5000_t400")
    for gpu in machine["gpus"]:
        gpu["cpus"] = "16-31" if gpu.get("numa") else "0-15"
    text = page(to_topology(machine), host, 80)
    assert "NUMA node 0: CPUs 0-15, GPU 0, 1" in text
    assert "NUMA node 1: CPUs 16-31, GPU 2, 3, 4" in text
    assert "NUMA node 0" not in page(to_topology("a100_a5000_t400"), host, 80)


def test_gpus_left_out_for_one_reason_share_a_line(host):
    machine = load_machine("h100_8x_nvswitch")
    for index in (1, 4, 6):
        machine["gpus"][index]["processes"] = [{"pid": 9, "used_mib": 70000}]
    text = " ".join(page(to_topology(machine), host, 160).split())
    assert "not GPU 1, 4, 6 H100 80GB HBM3: busy" in text


def test_kinds_of_peer_access_are_summed_up():
    machine = load_machine("a100_a5000_t400")
    assert peer_words(to_topology({**machine, "p2p": "ok"})).startswith("read, write ok")
    kinds = {"read": "ok", "write": "ok", "atomics": "not-supported"}
    bridged = {**machine, "p2p": {"default": kinds, "2-4": {**kinds, "atomics": "ok"}}}
    assert peer_words(to_topology(bridged)) == "read, write ok; atomics ok for 2-4, else not-supported"
    one_way = dataclasses.replace(Link(0, 1), peer=PeerAccess(read=("ok", "not-supported")))
    assert peer_words(Topology(links=(one_way,))) == "read ok one way, not-supported back"
    assert peer_words(Topology(links=(Link(0, 1),))) == ""


def test_nvlink_without_peer_access_is_not_said_to_use_host_memory(host):
    text = page(to_topology({**load_machine("rtx3090_2x_nvlink"), "p2p": "not-supported"}), host, 80)
    assert "NV4*" in text
    assert "NVLink without peer access (not-supported)" in text
