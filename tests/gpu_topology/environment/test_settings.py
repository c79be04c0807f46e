"""The environment: nothing without need, each variable with its reason, the user's own values kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.environment import settings as nccl
from gpu_topology.environment.settings import Setting
from gpu_topology.host.cpus import NumaNode
from gpu_topology.host.nccl_conf import ConfiguredVariable
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.topology import Topology
from gpu_topology.verify_cache import Verdict
from tests.fake_nvml.machine import load_machine, to_topology

NO_GPU = Topology(warnings=("no driver",))
MACHINES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "machines").glob("*.json"))}
NODES = (NumaNode(0, 0, 8), NumaNode(1, 1, 8))


def settings(
    topology: Topology, host: Any, ranks: int = 2, environ: dict[str, str] | None = None, **more: Any
) -> dict[str, Setting]:
    """By name, with the user's CUDA_VISIBLE_DEVICES in force."""
    environ = environ or {}
    request = SelectionRequest(
        visible=environ.get("CUDA_VISIBLE_DEVICES"), device_order=environ.get("CUDA_DEVICE_ORDER")
    )
    found = nccl.environment(topology, select(topology, request), host, ranks=ranks, environ=environ, **more)
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
    assert values(found) == {
        "OMP_NUM_THREADS": "16",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "GOMP_SPINCOUNT": "1000",
    }
    assert "32 usable CPUs / 2 ranks; torchrun would set 1" in found["OMP_NUM_THREADS"].reason


def test_a_program_of_the_users_gets_no_tuning_of_the_trainers(host):
    assert set(settings(NO_GPU, host, trainer=False)) == {"OMP_NUM_THREADS"}


def test_malloc_is_left_alone_without_glibc_or_with_another_allocator(host):
    threads = {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"}
    assert set(settings(NO_GPU, dataclasses.replace(host, glibc=False))) == threads
    assert set(settings(NO_GPU, host, environ={"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"})) == threads


def test_threads_are_never_less_than_one(host):
    assert settings(NO_GPU, host, ranks=64)["OMP_NUM_THREADS"].value == "1"


PAIR = {"name": "NVIDIA RTX A6000", "memory_mib": 49140, "cc": [8, 6]}


def pair(level: str = "PHB", p2p: str = "ok", count: int = 2) -> Topology:
    """Like GPUs, each pair linked alike."""
    matrix = [["X" if a == b else level for b in range(count)] for a in range(count)]
    return to_topology({"gpus": [dict(PAIR) for _ in range(count)], "matrix": matrix, "p2p": p2p})


VERDICT = Verdict(ok=False, problem="wrong bytes", settings=(("NCCL_P2P_DISABLE", "1", "a copy arrived wrong"),))
BOTH = {"PYTORCH_ALLOC_CONF": "a:1,b:2", "PYTORCH_CUDA_ALLOC_CONF": "b:3,c:4"}

RULES = {
    # what: (variable, topology, changes of the host, arguments, value or None where it is not set)
    "order of indices": ("CUDA_DEVICE_ORDER", pair(), {}, {}, "PCI_BUS_ID"),
    "no order on the CPU": ("CUDA_DEVICE_ORDER", NO_GPU, {}, {}, None),
    "no order for UUIDs": (
        "CUDA_DEVICE_ORDER",
        to_topology({"gpus": [PAIR, {**PAIR, "mig_mode": True}]}),
        {},
        {},
        None,
    ),
    "the chosen GPUs": ("CUDA_VISIBLE_DEVICES", pair(), {}, {}, "0,1"),
    "nothing to hide": ("CUDA_VISIBLE_DEVICES", NO_GPU, {}, {}, None),
    "threads from CPUs": ("OMP_NUM_THREADS", pair(), {}, {}, "16"),
    "threads from cores": ("OMP_NUM_THREADS", pair(), {"usable_cores": 12}, {}, "6"),
    "threads of a bound rank": (
        "OMP_NUM_THREADS",
        to_topology({"gpus": [{**PAIR, "numa": node} for node in (0, 0, 1)]}),
        {"usable_nodes": NODES, "usable_cores": 16, "numactl": True, "numa_policy": True},
        {"ranks": 3},
        "4",
    ),
    "threads of an unbound rank": (
        "OMP_NUM_THREADS",
        to_topology({"gpus": [{**PAIR, "numa": node} for node in (0, 0, 1)]}),
        {"usable_nodes": NODES, "usable_cores": 16, "numactl": True, "numa_policy": True},
        {"ranks": 3, "bound": False},
        "5",
    ),
    "NVLink refused": ("NCCL_P2P_DISABLE", pair("NV4", "not-supported"), {}, {}, "1"),
    "NVLink works": ("NCCL_P2P_DISABLE", pair("NV4"), {}, {}, None),
    "NVLink unknown": ("NCCL_P2P_DISABLE", pair("NV4", "unknown"), {}, {}, None),
    "PCIe refused": ("NCCL_P2P_DISABLE", pair("PIX", "chipset-not-supported"), {}, {}, None),
    "PCIe works": ("NCCL_P2P_DISABLE", pair("PIX"), {}, {}, None),
    "verify found a remedy": ("NCCL_P2P_DISABLE", pair("PIX"), {}, {"verdict": VERDICT}, "1"),
    "verify found nothing": ("NCCL_P2P_DISABLE", pair("PIX"), {}, {"verdict": Verdict(ok=True)}, None),
    "verify says nothing of the CPU": ("NCCL_P2P_DISABLE", NO_GPU, {}, {"verdict": VERDICT}, None),
    "NCCL on loopback": ("NCCL_SOCKET_IFNAME", pair(), {}, {"interface": "lo"}, "=lo"),
    "no NCCL on the CPU": ("NCCL_SOCKET_IFNAME", NO_GPU, {}, {"interface": "lo"}, None),
    "gloo on loopback": ("GLOO_SOCKET_IFNAME", NO_GPU, {}, {"interface": "lo"}, "lo"),
    "nobody named an interface": ("GLOO_SOCKET_IFNAME", pair(), {}, {"nodes": 2}, None),
    "one node, no loopback": ("GLOO_SOCKET_IFNAME", pair(), {}, {"interface": "eth0"}, None),
    "several nodes, several interfaces": (
        "NCCL_SOCKET_IFNAME",
        pair(),
        {"interfaces": ("eth0", "eth1")},
        {"interface": "eth1", "nodes": 2},
        "=eth1",
    ),
    "several nodes, one interface": ("NCCL_SOCKET_IFNAME", pair(), {}, {"interface": "eth0", "nodes": 2}, None),
    "gloo asks the host name": ("GLOO_SOCKET_IFNAME", pair(), {}, {"interface": "eth0", "nodes": 2}, "eth0"),
    "several nodes are not on loopback": (
        "NCCL_SOCKET_IFNAME",
        pair(),
        {"interfaces": ("lo",)},
        {"interface": "lo", "nodes": 2},
        None,
    ),
    "both allocator variables": ("PYTORCH_ALLOC_CONF", pair(), {}, {"environ": BOTH}, "a:1,b:2,c:4"),
    "one allocator variable": (
        "PYTORCH_ALLOC_CONF",
        pair(),
        {},
        {"environ": {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}},
        None,
    ),
    "the other goes": ("PYTORCH_CUDA_ALLOC_CONF", pair(), {}, {"environ": BOTH}, ""),
    "nothing to remove": ("PYTORCH_CUDA_ALLOC_CONF", pair(), {}, {}, None),
    "the heap on the CPU": ("MALLOC_TRIM_THRESHOLD_", NO_GPU, {}, {}, str(2**40)),
    "malloc on the CPU": ("MALLOC_MMAP_MAX_", NO_GPU, {}, {}, "0"),
    "malloc on the GPU": ("MALLOC_MMAP_MAX_", pair(), {}, {}, None),
    "malloc without glibc": ("MALLOC_TRIM_THRESHOLD_", NO_GPU, {"glibc": False}, {}, None),
    "spinning on the CPU": ("GOMP_SPINCOUNT", NO_GPU, {}, {}, "1000"),
    "spinning on the GPU": ("GOMP_SPINCOUNT", pair(), {}, {}, None),
    "spinning as told": ("GOMP_SPINCOUNT", NO_GPU, {}, {"environ": {"OMP_WAIT_POLICY": "active"}}, None),
}


@pytest.mark.parametrize("what", RULES)
def test_rule(what, host):
    name, topology, changes, more, value = RULES[what]
    found = settings(topology, dataclasses.replace(host, **changes), **more).get(name)
    assert (found.value if found else None) == value
    assert found is None or not found.kept


def test_every_rule_is_in_the_table():
    tried = {(name, value is not None) for name, _, _, _, value in RULES.values()}
    for rule in nccl.RULES:
        assert (rule.name, True) in tried, rule.name
        assert (rule.name, False) in tried or rule.name == "OMP_NUM_THREADS", rule.name


@pytest.mark.parametrize("count", [None, 1, 2])
@pytest.mark.parametrize("name", MACHINES)
def test_no_variable_is_set_without_need(name, count, host):
    """On all the machines, for all of the group, one GPU, and the best two."""
    topology = to_topology(json.loads(MACHINES[name].read_text()))
    if count and len(select(topology, SelectionRequest()).indices) < count:
        return
    chosen = select(topology, SelectionRequest(count=count))
    found = nccl.environment(topology, chosen, host, ranks=len(chosen.indices), environ={}, interface="lo")
    names = {setting.name for setting in found}
    by_index = not any(gpu.mig_mode for gpu in topology.gpus)
    links = topology.links_within(chosen.indices)
    broken = any(link.nvlinks and link.p2p not in (None, "ok") for link in links)
    always = {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"}
    order = {"CUDA_DEVICE_ORDER"} if by_index else set()
    assert names == always | order | ({"NCCL_P2P_DISABLE"} if broken else set())


def test_two_allocator_variables_become_one(host):
    found = settings(pair(), host, environ=BOTH)
    assert found["PYTORCH_ALLOC_CONF"].reason.endswith("b as in PYTORCH_ALLOC_CONF")
    gone = found["PYTORCH_CUDA_ALLOC_CONF"]
    assert (gone.value, gone.unset, gone.kept) == ("", True, False)
    assert not any(setting.unset for setting in settings(pair(), host).values())


@pytest.mark.parametrize(
    ("topology", "environ"),
    [
        (pair(), {"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "a:1"}),
        (pair(), {"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "nonsense"}),
        (NO_GPU, BOTH),
    ],
    ids=["equal", "malformed", "cpu"],
)
def test_allocator_variables_that_stay_as_they_are(topology, environ, host):
    found = settings(topology, host, environ=environ)
    assert {name: found[name].value for name in environ} == environ
    assert all(found[name].kept for name in environ)
    assert ("put all into one" in found["PYTORCH_CUDA_ALLOC_CONF"].reason) == ("nonsense" in environ.values())


def test_a_remedy_of_verify_has_its_date_and_yields_to_the_user(host):
    dated = dataclasses.replace(VERDICT, when="2026-11-20T10:00:00+00:00")
    reason = settings(pair("NV4", "not-supported"), host, verdict=dated)["NCCL_P2P_DISABLE"].reason
    assert reason == "verified on 2026-11-20: a copy arrived wrong"
    own = settings(pair(), host, verdict=dated, environ={"NCCL_P2P_DISABLE": "0"})["NCCL_P2P_DISABLE"]
    assert (own.value, own.kept) == ("0", True)
    assert "otherwise it would be 1 (verified on 2026-11-20" in own.reason


def test_values_of_nccls_own_files_are_kept_with_the_file(host):
    conf = (
        ConfiguredVariable("NCCL_P2P_DISABLE", "0", "/etc/nccl.conf"),
        ConfiguredVariable("NCCL_DEBUG", "WARN", "/etc/nccl.conf"),
    )
    host = dataclasses.replace(host, nccl_conf=conf)
    found = settings(pair("NV4", "not-supported"), host, environ={"NCCL_DEBUG": "INFO"})
    assert (found["NCCL_P2P_DISABLE"].value, found["NCCL_P2P_DISABLE"].kept) == ("0", True)
    assert found["NCCL_P2P_DISABLE"].reason.startswith("set in /etc/nccl.conf; has no effect: NCCL acts on exactly 1")
    assert "otherwise it would be 1" in found["NCCL_P2P_DISABLE"].reason
    assert (found["NCCL_DEBUG"].value, found["NCCL_DEBUG"].reason) == ("INFO", "set by you")
    assert "NCCL_DEBUG" not in settings(NO_GPU, host)


def test_threads_say_where_they_come_from(host):
    def reason(**changes: Any) -> str:
        return settings(NO_GPU, dataclasses.replace(host, **changes))["OMP_NUM_THREADS"].reason

    assert reason(usable_cores=16) == "16 usable physical cores / 2 ranks; torchrun would set 1 when it is unset"
    assert reason(usable_cores=32) == "32 usable CPUs / 2 ranks; torchrun would set 1 when it is unset"
    assert reason(usable_cores=1) == "1 usable physical core / 2 ranks, at least 1"


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


def test_slices_have_no_peer_access_by_design_which_is_no_broken_nvlink(host):
    gpus = [
        {
            "name": "NVIDIA A100 80GB",
            "memory_mib": 81920,
            "cc": [8, 0],
            "mig_mode": True,
            "mig": [{"uuid": f"MIG-{index}", "profile": "7g.80gb", "memory_mib": 80000, "instance": 0}],
        }
        for index in range(2)
    ]
    topology = to_topology({"gpus": gpus, "matrix": [["X", "NV12"], ["NV12", "X"]], "p2p": "not-supported"})
    found = settings(topology, host)
    assert values(found) == {"CUDA_VISIBLE_DEVICES": "MIG-0,MIG-1", "OMP_NUM_THREADS": "16"}
    assert found["CUDA_VISIBLE_DEVICES"].reason == "the chosen GPUs: NVIDIA A100 80GB MIG 7g.80gb x 2"
    whole = [{**gpu, "mig_mode": False, "mig": []} for gpu in gpus]
    topology = to_topology({"gpus": whole, "matrix": [["X", "NV12"], ["NV12", "X"]], "p2p": "not-supported"})
    assert settings(topology, host)["NCCL_P2P_DISABLE"].value == "1"


def test_the_reason_names_what_is_chosen_and_pairs_in_order(host):
    topology = pair("NV4", "not-supported", 4)
    topology = dataclasses.replace(topology, links=topology.links[::-1])
    some = select(topology, SelectionRequest(count=3))
    found = {one.name: one for one in nccl.environment(topology, some, host, ranks=3, environ={})}
    assert found["CUDA_VISIBLE_DEVICES"].reason == "the chosen GPUs: NVIDIA RTX A6000 x 3"
    assert "between GPUs 0-1, 0-2, 1-2 (not-supported)" in found["NCCL_P2P_DISABLE"].reason


def test_every_rule_names_its_source():
    assert all(rule.source for rule in nccl.RULES)
    assert "NCCL_IB_DISABLE" not in {rule.name for rule in nccl.RULES}
