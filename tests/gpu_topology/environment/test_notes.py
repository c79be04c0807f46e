"""What is said beside the environment: doubt with its evidence, what stays unset, what no variable mends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpu_topology.environment import notes as made
from gpu_topology.environment.settings import Setting
from gpu_topology.host.host import Host
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.topology import Topology
from gpu_topology.verify_cache import Verdict
from tests.fake_nvml.machine import to_topology

A6000 = {"name": "NVIDIA RTX A6000", "memory_mib": 49140, "cc": [8, 6]}
IOMMU = {"iommu": ("dmar0",), "iommu_types": ("DMA-FQ",)}
AMD = {"cpu_vendor": "AuthenticAMD"}
OFF = (Setting("NCCL_P2P_DISABLE", "1", "set by you", kept=True),)


def pair(level: str = "PIX", p2p: Any = "ok", count: int = 2, **gpu: Any) -> Topology:
    matrix = [["X" if a == b else level for b in range(count)] for a in range(count)]
    return to_topology({"gpus": [A6000 | gpu for _ in range(count)], "matrix": matrix, "p2p": p2p})


def doubt(topology: Topology, host: Host, **changes: Any) -> str:
    line = made.needs_verify(topology, select(topology, SelectionRequest()), dataclasses.replace(host, **changes))
    assert line is None or "\n" not in line
    return line or ""


def notes(topology: Topology, host: Host, **more: Any) -> str:
    return "\n".join(made.notes(topology, select(topology, SelectionRequest()), host, **more))


DOUBTS = {
    # what: (topology, changes of the host, words of the doubt; "" where there is none)
    "one switch, an IOMMU": (pair(), IOMMU, "an IOMMU is on (dmar0; groups of type DMA-FQ)"),
    "several switches": (pair("PXB"), IOMMU, "GPUs 0-1"),
    "some groups translate": (pair(), {"iommu": ("ivhd0",), "iommu_types": ("DMA", "identity")}, "needs verify"),
    "a kernel that does not tell types": (pair(), {"iommu": ("dmar0",)}, "of unknown type"),
    "addresses pass through": (pair(), {"iommu": ("dmar0",), "iommu_types": ("identity",)}, ""),
    "no IOMMU": (pair(), {}, ""),
    "a virtual machine": (pair(), {"virtual_machine": "kvm"}, "virtual machine (kvm)"),
    "beyond NCCL's reach": (pair("PHB"), IOMMU, ""),
    "two GPUs on an AMD CPU": (pair("PHB"), IOMMU | AMD, "needs verify"),
    "the farthest path on an AMD CPU": (pair("SYS"), IOMMU | AMD, "needs verify"),
    "three GPUs on an AMD CPU": (pair("PHB", count=3), IOMMU | AMD, ""),
    "NVLink": (pair("NV4"), IOMMU | AMD, ""),
    "refused": (pair(p2p="chipset-not-supported"), IOMMU, ""),
    "unknown": (pair(p2p="unknown"), IOMMU, ""),
    "one GPU": (pair(count=1), IOMMU, ""),
    "MIG slices": (
        pair(mig_mode=True, mig=[{"uuid": "MIG-1", "profile": "3g.20gb", "memory_mib": 20000, "instance": 1}]),
        IOMMU,
        "",
    ),
    "no GPU": (Topology(), IOMMU, ""),
}


@pytest.mark.parametrize("what", DOUBTS)
def test_doubt(what: str, host: Host) -> None:
    topology, changes, words = DOUBTS[what]
    line = doubt(topology, host, **changes)
    assert words in line
    assert bool(line) == bool(words)
    said = notes(topology, dataclasses.replace(host, **changes))
    assert ("needs verify" in said) == bool(words)
    assert line in said


def test_a_verdict_takes_the_place_of_the_doubt(host: Host) -> None:
    host = dataclasses.replace(host, iommu=("dmar0",), iommu_types=("DMA",))
    good = Verdict(ok=True, when="2026-11-20T10:00:00+00:00")
    assert "was verified on 2026-11-20" in notes(pair(), host, verdict=good)
    assert "needs verify" not in notes(pair(), host, verdict=good)
    mended = Verdict(ok=False, problem="wrong bytes", settings=(("NCCL_P2P_DISABLE", "1", "why"),))
    assert notes(pair(), host, verdict=mended) == ""
    hopeless = Verdict(ok=False, problem="GPU 1 hangs", remedy="reset GPU 1", when="2026-11-20")
    assert notes(pair(), host, verdict=hopeless) == (
        "verify failed on these GPUs on 2026-11-20: GPU 1 hangs; reset GPU 1"
    )
    assert notes(pair("NV4"), host, verdict=good) == ""


def test_no_doubt_about_what_the_user_has_turned_off(host: Host) -> None:
    host = dataclasses.replace(host, iommu=("dmar0",))
    assert notes(pair(), host, settings=OFF) == ""


def test_a_variable_that_is_redundant(host: Host) -> None:
    refused = pair("PHB", "gpu-not-supported")
    assert "(gpu-not-supported): NCCL uses host memory by itself" in notes(refused, host)
    assert notes(refused, host).endswith("would be redundant and stays unset")
    assert notes(refused, host, settings=OFF).endswith("NCCL_P2P_DISABLE is redundant")
    assert notes(pair("PHB"), host) == notes(pair("NV4", "not-supported"), host) == ""


def test_the_gpu_at_which_every_broken_nvlink_ends(host: Host) -> None:
    topology = pair("NV4", {"default": "ok", "0-1": "not-supported", "1-2": "not-supported"}, count=3)
    assert notes(topology, host) == "", "it is left out"
    by_name = select(topology, SelectionRequest(gpus=("0", "1", "2")))
    assert "ends at GPU 1: without it (--exclude 1)" in "".join(made.notes(topology, by_name, host))
    assert notes(pair("NV4", "not-supported", count=3), host) == ""
    assert notes(pair("NV4", {"default": "ok", "0-1": "not-supported"}, count=3), host) == ""


SHM = {
    # container: words of the remedy
    "docker": "--shm-size=8g` or `--ipc=host`",
    "kubernetes": "emptyDir with `medium: Memory`",
    None: "remount",
}


@pytest.mark.parametrize("container", SHM)
def test_shared_memory(container: str | None, host: Host) -> None:
    small = dataclasses.replace(host, shm_total=64 * 2**20, container=container)
    assert notes(pair(), small).startswith("/dev/shm has 64 MiB")
    assert SHM[container] in notes(pair(), small)
    assert notes(pair(), dataclasses.replace(small, shm_total=2**30)) == ""
    assert notes(pair(), dataclasses.replace(small, shm_total=None)) == ""


FABRIC = {"not-started": "is not up", "in-progress": "is not up", "failed": "has failed", "degraded": "has degraded"}


@pytest.mark.parametrize("state", [*FABRIC, "completed", None])
def test_fabric(state: str | None, host: Host) -> None:
    topology = pair("NV18")
    gpus = (topology.gpus[0], dataclasses.replace(topology.gpus[1], fabric_state=state))
    selection = select(topology, SelectionRequest())
    said = "\n".join(made.notes(dataclasses.replace(topology, gpus=gpus), selection, host))
    assert (f"the NVSwitch fabric of GPU 1 {FABRIC[state]}" in said) if state in FABRIC else said == ""


def test_folklore_that_is_left_unset(host: Host) -> None:
    def unset(topology: Topology, settings: tuple[Setting, ...] = ()) -> dict[str, str]:
        return dict(made.left_unset(topology, select(topology, SelectionRequest()), host, settings))

    assert list(unset(pair())) == ["NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "CUDA_LAUNCH_BLOCKING"]
    assert "NCCL_P2P_DISABLE" not in unset(pair(), OFF)
    assert "redundant" in unset(pair("PHB", "not-supported"))["NCCL_P2P_DISABLE"]
    assert "working" in unset(pair())["NCCL_P2P_DISABLE"]
    assert "asks" in unset(pair(p2p="unknown"))["NCCL_P2P_DISABLE"]
    assert unset(pair(count=1)) == unset(Topology()) == {}
