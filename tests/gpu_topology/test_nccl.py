"""The environment: nothing without need, each variable with its reason, the user's own values kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpu_topology import nccl
from gpu_topology.nccl import Setting
from gpu_topology.selection import SelectionRequest, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, to_topology

NO_GPU = Topology(warnings=("no driver",))


def settings(
    topology: Topology, host: Any, ranks: int = 2, environ: dict[str, str] | None = None
) -> dict[str, Setting]:
    """By name, with the user's CUDA_VISIBLE_DEVICES in force."""
    environ = environ or {}
    request = SelectionRequest(
        visible=environ.get("CUDA_VISIBLE_DEVICES"), device_order=environ.get("CUDA_DEVICE_ORDER")
    )
    found = nccl.environment(topology, select(topology, request), host, ranks=ranks, environ=environ)
    assert len({setting.name for setting in found}) == len(found)
    assert all(setting.reason and "\n" not in setting.reason for setting in found)
    return {setting.name: setting for setting in found}


def values(found: dict[str, Setting]) -> dict[str, str]:
    return {name: setting.value for name, setting in found.items()}


@pytest.mark.parametrize("name", ["a100_a5000_t400", "rtx3090_2x_nvlink", "h100_8x_nvswitch"])
def test_a_healthy_machine_needs_no_nccl_variable(name, host):
    topology = to_topology(name)
    chosen = select(topology, SelectionRequest()).indices
    assert values(settings(topology, host, ranks=len(chosen))) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, chosen)),
        "OMP_NUM_THREADS": str(32 // len(chosen)),
    }


def test_a_cpu_plan_sets_threads_and_malloc_and_nothing_of_cuda(host):
    found = settings(NO_GPU, host)
    assert values(found) == {"OMP_NUM_THREADS": "16", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    assert "32 usable CPUs / 2 ranks; torchrun would set 1" in found["OMP_NUM_THREADS"].reason


def test_malloc_is_left_alone_without_glibc_or_with_another_allocator(host):
    assert set(settings(NO_GPU, dataclasses.replace(host, glibc=False))) == {"OMP_NUM_THREADS"}
    assert set(settings(NO_GPU, host, environ={"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"})) == {"OMP_NUM_THREADS"}


def test_threads_are_never_less_than_one(host):
    assert settings(NO_GPU, host, ranks=64)["OMP_NUM_THREADS"].value == "1"


def test_a_cpu_plan_on_a_machine_with_gpus_hides_them(host):
    machine = load_machine("rtx3090_2x_nvlink")
    for gpu in machine["gpus"]:
        gpu["processes"] = [{"pid": 1, "used_mib": 1}]
    assert values(settings(to_topology(machine), host))["CUDA_VISIBLE_DEVICES"] == ""


def test_p2p_is_disabled_only_where_nvlink_lacks_peer_access(host):
    machine = load_machine("rtx3090_2x_nvlink")
    broken = settings(to_topology({**machine, "p2p": "chipset-not-supported"}), host)["NCCL_P2P_DISABLE"]
    assert broken.value == "1"
    assert "0-1 (chipset-not-supported)" in broken.reason
    assert "NCCL_P2P_DISABLE" not in settings(to_topology({**machine, "p2p": "unknown"}), host)
    over_pcie = {**machine, "p2p": "chipset-not-supported", "matrix": [["X", "PHB"], ["PHB", "X"]]}
    assert "NCCL_P2P_DISABLE" not in settings(to_topology(over_pcie), host)


def test_what_stays_unset_is_said(host):
    machine = {**load_machine("rtx3090_2x_nvlink"), "matrix": [["X", "PHB"], ["PHB", "X"]]}

    def notes(machine: dict[str, Any], **changes: Any) -> str:
        topology = to_topology(machine)
        chosen = select(topology, SelectionRequest())
        return "\n".join(nccl.notes(topology, chosen, dataclasses.replace(host, **changes)))

    assert notes(machine) == ""
    assert "(gpu-not-supported): NCCL uses host memory by itself" in notes({**machine, "p2p": "gpu-not-supported"})
    assert "/dev/shm has 64 MiB" in notes(machine, shm_total=64 * 2**20)
    assert "--shm-size" in notes(machine, shm_total=64 * 2**20)
    machine["gpus"][1]["fabric_state"] = 1
    assert "fabric of GPU 1 is not up" in notes(machine)


def test_the_users_values_are_kept_and_shown(host):
    topology = to_topology("rtx3090_2x_nvlink")
    environ = {
        "OMP_NUM_THREADS": "3",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_IB_DISABLE": "1",
        "NCCL_DEBUG": "INFO",
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "HOME": "/root",
    }
    found = settings(topology, dataclasses.replace(host, infiniband=("mlx5_0",)), environ=environ)
    assert {name for name, setting in found.items() if setting.kept} == set(environ) - {"HOME"}
    assert all(found[name].value == environ[name] for name in environ if name in found)
    assert found["OMP_NUM_THREADS"].reason.startswith("set by you; otherwise it would be 16")
    assert found["CUDA_DEVICE_ORDER"].reason == "set by you"
    assert "costs speed" in found["NCCL_P2P_DISABLE"].reason
    assert "InfiniBand off" in found["NCCL_IB_DISABLE"].reason
    assert "debugging only" in found["CUDA_LAUNCH_BLOCKING"].reason
    assert found["NCCL_DEBUG"].reason == "set by you"


def test_folklore_that_costs_nothing_here_is_not_blamed(host):
    machine = {**load_machine("rtx3090_2x_nvlink"), "matrix": [["X", "SYS"], ["SYS", "X"]]}
    found = settings(to_topology(machine), host, environ={"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"})
    assert found["NCCL_P2P_DISABLE"].reason == found["NCCL_IB_DISABLE"].reason == "set by you"


def test_a_cpu_plan_does_not_list_the_users_nccl_variables(host):
    found = settings(NO_GPU, host, environ={"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0"})
    assert "NCCL_DEBUG" not in found
    assert found["GLOO_SOCKET_IFNAME"].kept


UUID = [gpu.uuid or "" for gpu in to_topology("a100_a5000_t400").gpus]

MASKS = {
    # the user's CUDA_VISIBLE_DEVICES: (value, kept)
    "0,2": ("0,2", True),
    "4,0": ("4,0", True),
    f"{UUID[2]},{UUID[4]}": (f"{UUID[2]},{UUID[4]}", True),
    "GPU-00000002,GPU-00000004": ("GPU-00000002,GPU-00000004", True),
    "0,1,2": ("0,2", False),
    "4,3,2": ("4,2", False),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_is_kept_or_narrowed_never_widened(mask, host):
    environ = {"CUDA_VISIBLE_DEVICES": mask}
    found = settings(to_topology("a100_a5000_t400"), host, environ=environ)["CUDA_VISIBLE_DEVICES"]
    assert (found.value, found.kept) == MASKS[mask]
    assert found.kept or f"chosen within your CUDA_VISIBLE_DEVICES={mask}" in found.reason


def test_another_device_order_of_the_users_makes_it_uuids(host):
    environ = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "0,2"}
    found = settings(to_topology("a100_a5000_t400"), host, environ=environ)
    assert found["CUDA_DEVICE_ORDER"].kept
    assert (found["CUDA_VISIBLE_DEVICES"].value, found["CUDA_VISIBLE_DEVICES"].kept) == (f"{UUID[0]},{UUID[2]}", False)


def test_mig_slices_are_named_by_uuid(host):
    one = {"uuid": "MIG-1", "profile": "7g.80gb", "memory_mib": 80000, "instance": 0}
    a100 = {"name": "NVIDIA A100 80GB", "memory_mib": 81920, "cc": [8, 0], "mig_mode": True, "mig": [one]}
    found = settings(to_topology({"gpus": [a100]}), host, ranks=1)
    assert found["CUDA_VISIBLE_DEVICES"].value == "MIG-1"
    assert "CUDA_DEVICE_ORDER" not in found


def test_every_rule_names_its_source():
    assert all(rule.source for rule in nccl.RULES)
    assert "NCCL_IB_DISABLE" not in {rule.name for rule in nccl.RULES}
