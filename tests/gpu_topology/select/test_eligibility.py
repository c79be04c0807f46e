"""Who else is on a GPU, and which GPUs are not to be trusted: each reason on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from gpu_topology.select.from_environment import own_family
from gpu_topology.select.select import Inherited, SelectionRequest, select
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, Topology

GIB = 2**30
CARD = Gpu(0, "GPU-0", "NVIDIA RTX A5000", memory_total=24 * GIB, memory_used=0, processes=())
OWN, OTHER = 100, 200


def reason(**changes: Any) -> str | None:
    """Why the changed card is left out beside a sound one, None when it is taken."""
    request = changes.pop("request", {})
    topology = Topology((replace(CARD, **changes), replace(CARD, index=1, uuid="GPU-1")))
    selection = select(topology, SelectionRequest(policy="mixed", **request))
    return next((excluded.reason for excluded in selection.excluded), None)


def holds(*pids: int, used: int = GIB) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(pid, used) for pid in pids)


OURS = {"own_pids": frozenset({OWN})}

CASES: dict[str, tuple[dict[str, Any], str | None]] = {
    "free": ({}, None),
    "one process": ({"processes": holds(OTHER)}, "busy: in use by process 200 with 1.0 GiB"),
    "two": ({"processes": holds(OTHER, 300)}, "busy: in use by process 200 with 1.0 GiB and 1 more"),
    "its memory is not told": ({"processes": (GpuProcess(OTHER),)}, "busy: in use by process 200"),
    "a tenth is a desktop's": ({"memory_used": int(2.4 * GIB)}, None),
    "more than a tenth": ({"memory_used": int(2.6 * GIB)}, "busy: 11% of its memory is in use"),
    "half a GiB of a small card": ({"memory_total": 2 * GIB, "memory_used": GIB // 2}, None),
    "its use is unknown": ({"processes": None, "memory_used": None, "utilization": None}, None),
    "a screen is attached": ({"memory_used": int(4.2 * GIB), "display_active": True}, None),
    "more than a screen takes": (
        {"memory_used": int(4.8 * GIB), "display_active": True},
        "busy: 20% of its memory is in use",
    ),
    "the driver lists no processes": ({"memory_used": int(4.2 * GIB), "processes": None}, None),
    "Windows around WSL": ({"memory_used": int(4.2 * GIB), "request": {"hidden_desktop": True}}, None),
    "the memory of desktops is explained": (
        {"memory_used": 10 * GIB, "graphics_processes": holds(OTHER, used=8 * GIB)},
        None,
    ),
    "an MPS server without clients": (
        {"processes": (GpuProcess(OTHER, 26 * 2**20, name="nvidia-cuda-mps-server"),)},
        None,
    ),
    "a client of an MPS server": (
        {
            "processes": (
                GpuProcess(OTHER, 26 * 2**20, name="nvidia-cuda-mps-server"),
                GpuProcess(300, GIB, name="python", mps_client=True),
            )
        },
        "busy: in use by MPS client process 300 (python) with 1.0 GiB",
    ),
    "its owner is known": (
        {"processes": (GpuProcess(OTHER, 30 * 2**20, name="python"),), "request": {"owners": {OTHER: "alice"}}},
        "busy: in use by process 200 (python, alice) with 30 MiB",
    ),
    "hidden processes work": ({"utilization": 78}, "busy: 78% utilization with the processes hidden"),
    "hidden processes hold memory too": (
        {"utilization": 99, "memory_used": 12 * GIB},
        "busy: 50% of its memory is in use and 99% utilization with the processes hidden",
    ),
    "a desktop is drawn": ({"utilization": 40, "graphics_processes": holds(OTHER)}, None),
    "a game is": (
        {"utilization": 95, "graphics_processes": holds(OTHER)},
        "busy: 95% utilization while process 200 draws with 1.0 GiB",
    ),
    "a screen whose processes are not shown": (
        {"utilization": 95, "display_active": True},
        "busy: 95% utilization",
    ),
    "its memory is not told, that of others is": ({"memory_total": None}, "its memory cannot be read"),
    "its name and memory": ({"name": None, "memory_total": None}, "its name and memory cannot be read"),
    "our own process": ({"processes": holds(OWN, used=9 * GIB), "memory_used": 9 * GIB, "request": OURS}, None),
    "ours and another": ({"processes": holds(OWN, OTHER), "request": OURS}, "busy: in use by process 200 with 1.0 GiB"),
    "ours and memory of nobody": (
        {"processes": holds(OWN), "memory_used": 7 * GIB, "request": OURS},
        "busy: 25% of its memory is in use",
    ),
    "a browser draws and computes": (
        {"processes": holds(OTHER, used=GIB // 4), "graphics_processes": holds(OTHER), "memory_used": GIB},
        None,
    ),
    "a renderer does, in earnest": (
        {"processes": holds(OTHER), "graphics_processes": holds(OTHER), "memory_used": 12 * GIB},
        "busy: 50% of its memory is in use",
    ),
    "a desktop beside a computation": (
        {"processes": holds(OTHER), "graphics_processes": holds(300)},
        "busy: in use by process 200 with 1.0 GiB",
    ),
    "busy but allowed": ({"processes": holds(OTHER), "request": {"allow_busy": True}}, None),
    "lost": ({"error": "the GPU is lost: reset it"}, "the GPU is lost: reset it"),
    "memory errors": (
        {"ecc_uncorrected": 2},
        "2 uncorrectable memory errors since the driver was loaded: it needs a reset"
        " (name it with --gpus to use it anyway)",
    ),
    "no memory error": ({"ecc_uncorrected": 0}, None),
    "defective memory": (
        {"memory_faults": ("row-remap-failed",)},
        "its memory is defective: a bad row could not be replaced (name it with --gpus to use it anyway)",
    ),
    "a reset is due": (
        {"recovery": "drain-and-reset"},
        "the driver asks for a drain and reset first (name it with --gpus to use it anyway)",
    ),
    "peer access is to end": ({"recovery": "drain-p2p"}, None),
    "a row waits for its replacement": ({"memory_faults": ("row-remap-pending",)}, None),
}


BROKEN = {
    # pairs without peer access, of four GPUs with NVLinks between all: the GPUs that are taken
    "nothing": ((), (0, 1, 2, 3)),
    "all at one GPU": (((0, 2), (1, 2), (2, 3)), (0, 1, 3)),
    "one pair, of which either may be bad": (((0, 2),), (0, 1, 2, 3)),
    "all but one at a GPU": (((0, 2), (1, 2)), (0, 1, 2, 3)),
    "everything": (tuple(combinations(range(4), 2)), (0, 1, 2, 3)),
    "all but one pair": (tuple(pair for pair in combinations(range(4), 2) if pair != (0, 1)), (0, 1, 2, 3)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_gpu_none_of_whose_nvlinks_works_is_left_out(what):
    broken, taken = BROKEN[what]
    gpus = tuple(replace(CARD, index=index, uuid=f"GPU-{index}") for index in range(4))
    links = tuple(
        Link(a, b, LinkLevel.NV, 4, "not-supported" if (a, b) in broken else "ok") for a, b in combinations(range(4), 2)
    )
    selection = select(Topology(gpus, links), SelectionRequest())
    assert selection.indices == taken
    assert all("none of its NVLinks gives peer access" in one.reason for one in selection.excluded)
    assert select(Topology(gpus, links), SelectionRequest(gpus=("0", "2"))).indices == (0, 2)


def test_a_gpu_that_alone_has_lost_the_fabric_is_left_out():
    def taken(*states: str | None) -> tuple[int, ...]:
        gpus = tuple(replace(CARD, index=i, uuid=f"GPU-{i}", fabric_state=state) for i, state in enumerate(states))
        return select(Topology(gpus), SelectionRequest()).indices

    assert taken("completed", "failed", "degraded", "in-progress") == (0, 2)
    assert taken("failed", "failed") == (0, 1), "all of them: the report says so, and what NCCL needs"
    assert taken(None, "completed", None) == (0, 1, 2)


@pytest.mark.parametrize("what", CASES)
def test_reasons(what):
    changes, expected = CASES[what]
    way_out = " (--allow-busy uses it anyway)" if (expected or "").startswith("busy: ") else ""
    assert reason(**changes) == (expected and expected + way_out)


@pytest.mark.parametrize("what", ["one process", "memory errors", "defective memory"])
def test_a_card_that_is_asked_for_by_name_is_taken_all_the_same(what):
    topology = Topology((replace(CARD, **CASES[what][0]),))
    assert select(topology, SelectionRequest(gpus=("0",))).indices == (0,)
    assert select(topology, SelectionRequest()).indices == ()


def test_the_weightiest_reason_is_given():
    assert reason(error="lost", processes=holds(OTHER), request={"exclude": ("0",)}) == "lost"


def test_a_family_is_a_process_its_ancestors_and_its_descendants(tmp_path):
    parents = {1: 0, 10: 1, 20: 10, 21: 10, 30: 20, 40: 30, 41: 21}
    for pid, parent in parents.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (strange) name) S {parent} 1 1\n")
    (tmp_path / "50").mkdir()  # it has ended meanwhile
    every = {*parents, 50, 99}
    assert own_family(every, 20, tmp_path) == {1, 10, 20, 30, 40}, "not the siblings 21 and 41"
    assert own_family({21, 30, 99}, 20, tmp_path) == {30}
    assert own_family(every, 99, tmp_path) == own_family(every, 99, tmp_path / "nowhere") == {99}


def test_the_process_that_asks_does_not_make_a_gpu_busy(fake_driver):
    def chosen(pid: int) -> str:
        busy = {"name": "NVIDIA A30", "memory_mib": 24576, "processes": [{"pid": pid, "used_mib": 9000}]}
        machine = {"gpus": [busy | {"memory_used_mib": 9000}, {"name": "NVIDIA A30", "memory_mib": 24576}]}
        command = [sys.executable, "-m", "gpu_topology", "select"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        environ |= fake_driver(machine)
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout

    assert chosen(os.getpid()) == "0,1\n", "the parent of the process that selects"
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        assert chosen(stranger.pid) == "1\n", "a sibling is a stranger"
    finally:
        stranger.kill()
        stranger.wait()


def test_what_is_inherited_completes_a_request():
    inherited = Inherited("0,1", "PCI_BUS_ID", ("GPU-0",), frozenset({OWN}))
    request = inherited.completes(SelectionRequest(count=1))
    assert (request.count, request.visible, request.device_order) == (1, "0,1", "PCI_BUS_ID")
    assert (request.cuda_order, request.own_pids) == (("GPU-0",), frozenset({OWN}))
