"""The page in a terminal: complete at 80 and at 160 columns, without colour where none is wanted."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from gpu_topology import nccl, report
from gpu_topology.selection import SelectionRequest, eligible, groups, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, to_topology


def page(topology: Topology, host: Any, width: int, environ: dict[str, str] | None = None) -> str:
    """The whole report at a width, as plain text."""
    request = SelectionRequest()
    chosen = select(topology, request)
    settings = nccl.environment(topology, chosen, host, ranks=len(chosen.indices) or 1, environ=environ or {})
    found = groups(topology, eligible(topology, request))
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    report.render(console, topology, host, chosen, found, settings)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("name", ["a100_a5000_t400", "rtx3090_2x_nvlink", "h100_8x_nvswitch", "no_devices"])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(name, width, host):
    text = page(to_topology(name), host, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


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
        "GPU 0, 2, 4: the largest group of like GPUs",
        "not GPU 3 A100-PCIE-40GB: in another group",
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
    assert "through host memory" in text  # in the selection's reason
    assert "NCCL_P2P_DISABLE would be redundant" in " ".join(text.split())


def test_the_unknown_is_a_question_mark(host):
    silent = {"numa": None, "utilization": None, "processes": None, "memory_mib": None, "cc": None}
    topology = to_topology({"gpus": [{"name": "NVIDIA GB10", **silent}]})
    row = next(line for line in page(topology, host, 80).splitlines() if "GB10" in line)
    assert row.split() == [">", "0", "GB10", "?", "/", "?", "?", "?", "41:00.0", "?", "?"]


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
