"""Generated machines: random models, links, unknowns, faults and loads. What holds for every one of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_topology.environment import settings as nccl
from gpu_topology.host.host import Host
from gpu_topology.host.torch_build import BUILDS, TorchBuild
from gpu_topology.report.report import render
from gpu_topology.report.terminal_table import Screen
from gpu_topology.select.select import SelectionError, SelectionRequest, eligible, groups, select
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, MigDevice, Topology

GIB = 2**30
MODELS = (
    ("NVIDIA GeForce RTX 3090", 24, (8, 6)),
    ("NVIDIA H100 80GB HBM3", 80, (9, 0)),
    ("NVIDIA A100-SXM4-80GB", 80, (8, 0)),
    ("Tesla P40", 24, (6, 1)),
    ("Quadro K620", 2, (5, 0)),
    ("NVIDIA GB10", 128, (12, 1)),
    ("A card of tomorrow", 999, (99, 0)),
)
PROGRAMS = (None, "python", "Xorg", "nvidia-cuda-mps-server")
WORDS = ("ok", "not-supported", "chipset-not-supported", None)


def unknown(strategy: st.SearchStrategy[object], often: int = 4) -> st.SearchStrategy[object]:
    """None one time in `often`."""
    return st.integers(1, often).flatmap(lambda draw: st.none() if draw == 1 else strategy)


processes = st.lists(
    st.builds(
        GpuProcess,
        pid=st.integers(1, 99_999),
        used_memory=unknown(st.integers(0, 90 * GIB)),
        name=st.sampled_from(PROGRAMS),
        mps_client=st.booleans(),
    ),
    max_size=3,
).map(tuple)


@st.composite
def gpus(draw: st.DrawFn, index: int) -> Gpu:
    name, memory, capability = draw(st.sampled_from(MODELS))
    total = draw(unknown(st.just(memory * GIB), 8))
    sliced = draw(st.integers(0, 9)) == 0
    return Gpu(
        index,
        uuid=draw(unknown(st.just(f"GPU-{index:04}"), 9)),
        name=draw(unknown(st.just(name), 8)),
        pci_bus_id=f"0000:{index:02x}:00.0",
        memory_total=total,
        memory_used=draw(unknown(st.integers(0, (total or 0)))),
        compute_capability=draw(unknown(st.just(capability), 8)),
        numa_node=draw(unknown(st.integers(0, 3))),
        mig_mode=draw(st.sampled_from((None, False))) if not sliced else True,
        utilization=draw(unknown(st.integers(0, 100))),
        processes=draw(unknown(processes)),
        mig_devices=(MigDevice(f"MIG-{index}", "1g.10gb", draw(unknown(st.just(10 * GIB))), 1, 0),) if sliced else (),
        display_active=draw(st.sampled_from((None, False, True))),
        compute_mode=draw(st.sampled_from((None, "default", "exclusive-process", "prohibited"))),
        pcie_generation=draw(unknown(st.integers(0, 7))),
        pcie_width=draw(unknown(st.sampled_from((0, 1, 4, 8, 16)))),
        pcie_width_now=draw(unknown(st.sampled_from((0, 1, 4, 8, 16)))),
        pcie_slot_width=draw(unknown(st.sampled_from((1, 4, 8, 16)))),
        fabric_state=draw(st.sampled_from((None, None, "completed", "failed", "in-progress"))),
        ecc_uncorrected=draw(unknown(st.sampled_from((0, 0, 0, 2)))),
        memory_faults=draw(st.sampled_from((None, (), ("row-remap-pending",), ("row-remap-failed",)))),
        graphics_processes=draw(unknown(processes)),
        error=draw(st.sampled_from((None, None, None, None, "GPU is lost"))),
    )


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    size = draw(st.integers(1, 20) if draw(st.integers(0, 3)) == 0 else st.integers(1, 8))
    found = tuple(draw(gpus(index)) for index in range(size))
    if draw(st.booleans()):  # most machines have one model
        name, memory, capability = draw(st.sampled_from(MODELS))
        found = tuple(
            replace(
                gpu,
                name=gpu.name and name,
                memory_total=gpu.memory_total and memory * GIB,
                compute_capability=gpu.compute_capability and capability,
            )
            for gpu in found
        )
    kinds = draw(st.lists(st.sampled_from(list(LinkLevel)), min_size=1, max_size=3))
    links = []
    for a, b in combinations(range(size), 2):
        level = draw(st.sampled_from([*kinds, None]))
        nvlinks = draw(st.sampled_from((1, 4, 16, 18, None))) if level is LinkLevel.NV else draw(unknown(st.just(0)))
        links.append(Link(a, b, level, nvlinks, draw(st.sampled_from(WORDS)), draw(unknown(st.just(LinkLevel.PHB)))))
    links = [link for link in links if draw(st.integers(0, 9))]
    return Topology(found, tuple(links), "550.54.15", draw(st.sampled_from((None, "11.4", "12.4", "13.0"))))


requests = st.builds(
    SelectionRequest,
    count=unknown(st.integers(1, 4), 2),
    policy=st.sampled_from(("largest", "fastest", "mixed")),
    allow_busy=st.booleans(),
    min_memory=st.sampled_from((0, 0, 20 * GIB)),
    torch=st.sampled_from((None, TorchBuild("2.14.1+cu130", "13.0", BUILDS["13.0"]), TorchBuild("2.9", "12.6"))),
)


def test_generated_machines(pytestconfig: pytest.Config, host: Host) -> None:
    @settings(
        max_examples=10_000 if pytestconfig.getoption("--whole") else 200,
        derandomize=not pytestconfig.getoption("--whole"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(machines(), requests)
    def holds(topology: Topology, request: SelectionRequest) -> None:
        check(topology, request, host)

    holds()


def check(topology: Topology, request: SelectionRequest, host: Host) -> None:
    try:
        selection = select(topology, request)
    except SelectionError as error:
        assert "GPUs were requested" in str(error) and "\n" not in str(error)
        return
    chosen = [topology.gpu(index) for index in selection.indices]
    left = {excluded.index for excluded in selection.excluded}
    assert left | set(selection.indices) == {gpu.index for gpu in topology.gpus} and not left & set(selection.indices)
    assert all(excluded.reason for excluded in selection.excluded)
    whole = [gpu for gpu in topology.gpus if gpu.error is None and not gpu.mig_mode]
    for gpu in chosen:
        assert gpu.error is None and gpu.compute_mode != "prohibited"
        for fact in ("name", "memory_total", "compute_capability"):
            told = any(getattr(other, fact) is not None for other in whole)
            assert gpu.mig_mode or getattr(gpu, fact) is not None or not told, "others answer, this one does not"
    if not request.allow_busy:
        assert not any(process.name == "python" for gpu in chosen for process in strangers(gpu))
    found = groups(topology, eligible(topology, request), request.policy)
    excluded = (one.reason for one in selection.excluded)
    named = {selection.reason, *selection.warnings, *excluded, *(group.label for group in found)}
    unread = any(gpu.memory_total is None for gpu in topology.gpus)
    assert not unread or not any(" 0 GiB" in words or " 0.0 GiB" in words for words in named)
    settled = nccl.environment(topology, selection, host, ranks=max(1, len(chosen)), environ={})
    render(screen := Screen(), topology, host, selection, found, settled)
    assert screen.lines


def strangers(gpu: Gpu) -> list[GpuProcess]:
    drawing = {process.pid for process in gpu.graphics_processes or ()}
    here = () if gpu.mig_mode else gpu.processes or ()
    return [process for process in here if process.pid not in drawing]
