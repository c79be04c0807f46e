"""The path from the driver's C functions to a Topology, and every way in which the driver can fail."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.topology import Gpu, LinkLevel, PeerAccess, Topology
from tests.fake_nvml.machine import load_machine, permuted, to_topology

ROOT = Path(__file__).parents[3]
MACHINES = sorted((Path(__file__).parents[1] / "machines").glob("*.json"))

PAIR: dict[str, Any] = {
    "gpus": [
        {
            "name": "NVIDIA RTX A6000",
            "memory_mib": 49140,
            "cc": [8, 6],
            "numa": node,
            "cores": 10752,
            "clock_mhz": 2100,
            "mig_mode": False,
            "fabric_state": 3,
            "processes": [{"pid": 4321, "used_mib": 2048}],
            "memory_used_mib": 2100,
        }
        for node in (0, 1)
    ],
    "matrix": [["X", "NV4"], ["NV4", "X"]],
}


def pair(**changes: Any) -> dict[str, Any]:
    """Two bridged GPUs on two sockets, changed."""
    return {**copy.deepcopy(PAIR), **changes}


def test_every_machine_is_read_as_it_is(read_machines):
    names = ["a100_a5000_t400", "rtx3090_2x_nvlink", "h100_8x_nvswitch"]
    machines = [load_machine(name) for name in (*names, *MACHINES)]
    for machine, topology in zip(machines, read_machines(machines), strict=True):
        assert topology == to_topology(machine)


def test_nvlinks_are_counted_through_a_switch_that_a_virtual_machine_hides(read_machines):
    visible, hidden = read_machines(["h100_8x_nvswitch", {**load_machine("h100_8x_nvswitch"), "nvswitch": "hidden"}])
    assert {link.label for link in visible.links} == {"NV18"}
    assert hidden.links == visible.links


def test_a_hidden_switch_is_known_by_its_bus_id_where_the_type_is_not_told(read_machines):
    fault = {"call": "nvmlDeviceGetNvLinkRemoteDeviceType", "error": "FUNCTION_NOT_FOUND"}
    machine = {**load_machine("h100_8x_nvswitch"), "nvswitch": "hidden", "faults": [fault]}
    assert {link.label for link in read_machines([machine])[0].links} == {"NV18"}


def test_a_switch_whose_type_is_not_told_leaves_the_links_unknown(read_machines):
    fault = {"call": "nvmlDeviceGetNvLinkRemoteDeviceType", "error": "FUNCTION_NOT_FOUND"}
    topology = read_machines([{**load_machine("h100_8x_nvswitch"), "faults": [fault]}])[0]
    assert {(link.nvlinks, link.level) for link in topology.links} == {(None, "NODE"), (None, "SYS")}


def test_a_switch_joins_the_gpus_of_one_fabric_partition(read_machines):
    machine = load_machine("h100_8x_nvswitch")
    for index, gpu in enumerate(machine["gpus"]):
        gpu["fabric_cluster"] = ["9c6f5af353bf49b5a436b66766c413c3", 1 + index // 4]
    topology = read_machines([machine])[0]
    assert topology.gpus[5].fabric_cluster == "9c6f5af353bf49b5a436b66766c413c3/2"
    assert [topology.link(0, peer).label for peer in (1, 3, 4, 7)] == ["NV18", "NV18", "SYS", "SYS"]


# state, status, health mask as the driver gives them -> what is reported
FABRICS = {
    (0, 0, 0): None,
    (1, 0, 0): "not-started",
    (2, 0, 0): "in-progress",
    (3, 0, 0): "completed",
    (3, 999, 0): "failed",
    (3, 10, 0): "failed",
    (3, 0, 0b00000001): "degraded",  # bandwidth degraded
    (3, 0, 0b00010000): "degraded",  # route unhealthy
    (3, 0, 5 << 8): "degraded",  # incorrect configuration: too few NVLinks
    (3, 0, 0b10101010 | 1 << 8): "completed",  # each in its good state
}


def test_the_fabric_that_did_not_come_up_or_is_ill(read_machines):
    machines = []
    for state, status, health in FABRICS:
        machine = pair()
        machine["gpus"][1] |= {"fabric_state": state, "fabric_status": status, "fabric_health": health}
        machines.append(machine)
    for said, topology in zip(FABRICS.values(), read_machines(machines), strict=True):
        assert [gpu.fabric_state for gpu in topology.gpus] == ["completed", said]


def test_fewer_links_to_the_switch_at_one_end_bound_the_pair(read_machines):
    machine = load_machine("h100_8x_nvswitch")
    for peer in range(1, 8):
        machine["matrix"][0][peer] = "NV12"  # what GPU 0 itself has; its peers have 18
    topology = read_machines([machine])[0]
    assert topology.link(0, 1).nvlinks == 12
    assert topology.link(1, 2).nvlinks == 18


def test_mig_slices(read_machines):
    slices = [
        {"uuid": f"MIG-{n}000", "profile": "3g.20gb", "memory_mib": 20096, "instance": n} for n in (1, 2)
    ]  # fmt: skip
    machine = pair()
    machine["gpus"][0] |= {"mig_mode": True, "mig": slices, "processes": [{"pid": 7, "used_mib": 9, "instance": 2}]}
    topology = read_machines([machine])[0]
    assert topology == to_topology(machine)
    assert [(one.profile, one.gpu_instance) for one in topology.gpus[0].mig_devices] == [("3g.20gb", 1), ("3g.20gb", 2)]
    assert topology.gpus[0].processes[0].gpu_instance == 2


START_FAULTS = {
    "nvmlInitWithFlags DRIVER_NOT_LOADED": ("kernel module is not loaded", "modprobe"),
    "nvmlInitWithFlags LIB_RM_VERSION_MISMATCH": ("different versions", "reboot"),
    "nvmlInitWithFlags NO_PERMISSION": ("no permission", "/dev/nvidia"),
    "nvmlInitWithFlags FUNCTION_NOT_FOUND": ("too old for the installed nvidia-ml-py", "update the driver"),
    "nvmlInitWithFlags UNKNOWN": ("does not answer (unknown)", "nvidia-smi"),
    "* NO_PERMISSION": ("no permission", "/dev/nvidia"),
}


def test_a_driver_that_does_not_start_is_explained(read_machines):
    faults = [key.split() for key in START_FAULTS]
    machines = [pair(faults=[{"call": call, "error": error}]) for call, error in faults]
    for (key, (reason, remedy)), topology in zip(START_FAULTS.items(), read_machines(machines), strict=True):
        assert topology.gpus == (), key
        assert reason in topology.warnings[0], key
        assert remedy in topology.warnings[1], key


def test_a_driver_without_devices_is_explained(read_machines):
    topology = read_machines(["no_devices"])[0]
    assert topology == Topology(driver_version="580.65.06", cuda_version="13.0", warnings=topology.warnings)
    assert "finds no GPU" in topology.warnings[0]


def test_version_1_of_the_memory_call_stands_in(read_machines):
    fault = {"call": "nvmlDeviceGetMemoryInfo_v2", "error": "FUNCTION_NOT_FOUND"}
    old, neither = read_machines(
        [pair(faults=[fault]), pair(faults=[fault, {"call": "nvmlDeviceGetMemoryInfo", "error": "NOT_SUPPORTED"}])]
    )
    # Version 1 counts what the driver keeps for itself as used.
    assert [gpu.memory_used for gpu in old.gpus] == [(2100 + 300) * 2**20] * 2
    assert [(gpu.memory_total, gpu.memory_used) for gpu in neither.gpus] == [(None, None)] * 2


def test_unknown_processes_are_not_no_processes(read_machines):
    calls = [f"nvmlDeviceGetComputeRunningProcesses_v{version}" for version in (2, 3)]
    silent = pair(faults=[{"call": call, "error": "NO_PERMISSION"} for call in calls])
    idle = pair()
    for gpu in idle["gpus"]:
        gpu["processes"] = []
    unknown, none = read_machines([silent, idle])
    assert unknown.gpus[0].processes is None
    assert none.gpus[0].processes == ()


LINK_FAULTS = {
    # call: (level, nvlinks, p2p, pcie_level) of the bridged pair
    "nvmlDeviceGetNvLinkState NOT_SUPPORTED": (LinkLevel.SYS, 0, "ok", LinkLevel.SYS),
    "nvmlDeviceGetNvLinkState UNKNOWN": (LinkLevel.SYS, None, "ok", LinkLevel.SYS),
    "nvmlDeviceGetNvLinkRemoteDeviceType NOT_SUPPORTED": (LinkLevel.NV, 4, "ok", LinkLevel.SYS),
    "nvmlDeviceGetNvLinkRemotePciInfo_v2 UNKNOWN": (LinkLevel.SYS, None, "ok", LinkLevel.SYS),
    "nvmlDeviceGetTopologyCommonAncestor NOT_SUPPORTED": (LinkLevel.NV, 4, "ok", None),
    "nvmlDeviceGetP2PStatus NOT_SUPPORTED": (LinkLevel.NV, 4, None, LinkLevel.SYS),
    "nvmlDeviceGetPciInfo_v3 NOT_SUPPORTED": (LinkLevel.SYS, None, "ok", LinkLevel.SYS),
}


def test_what_the_links_do_not_tell_is_unknown(read_machines):
    keys = [key.split() for key in LINK_FAULTS]
    machines = [pair(faults=[{"call": call, "error": error}]) for call, error in keys]
    for (key, expected), topology in zip(LINK_FAULTS.items(), read_machines(machines), strict=True):
        link = topology.link(0, 1)
        assert (link.level, link.nvlinks, link.p2p, link.pcie_level) == expected, key


def test_p2p_status_has_nvidia_smis_meaning(read_machines):
    statuses = ["ok", "chipset-not-supported", "gpu-not-supported", "not-supported", "unknown"]
    topologies = read_machines([pair(p2p=status) for status in statuses])
    assert [topology.link(0, 1).p2p for topology in topologies] == [*statuses[:-1], None]


def test_each_kind_of_peer_access_is_told_in_each_direction(read_machines):
    told = {"read": "ok", "write": "ok", "nvlink": "not-supported", "atomics": "chipset-not-supported"}
    machine = pair(p2p={"0-1": told, "1-0": {**told, "write": "disabled-by-regkey", "atomics": "unknown"}})
    link = read_machines([machine])[0].link(0, 1)
    assert link.peer == PeerAccess(
        read=("ok", "ok"),
        write=("ok", "disabled-by-regkey"),
        nvlink=("not-supported", "not-supported"),
        atomics=("chipset-not-supported", None),
    )
    assert link.p2p == "disabled-by-regkey"


def test_peer_access_counts_in_both_directions(read_machines):
    there, back = ({"0-1": "ok", "1-0": "not-supported"}, {"0-1": "not-supported", "1-0": "ok"})
    assert [t.link(0, 1).p2p for t in read_machines([pair(p2p=there), pair(p2p=back)])] == ["not-supported"] * 2


@pytest.mark.parametrize("error", ["GPU_IS_LOST", "RESET_REQUIRED"])
def test_a_lost_gpu_is_a_row_that_says_so(read_machines, error):
    machine = permuted(load_machine("a100_a5000_t400"), (0, 1, 2, 3, 4))
    topology = read_machines([{**machine, "faults": [{"call": "*", "gpu": 2, "error": error}]}])[0]
    whole = to_topology(machine)
    assert topology.gpus[2] == Gpu(2, error=topology.gpus[2].error)
    assert ("lost" if error == "GPU_IS_LOST" else "reset") in topology.gpus[2].error
    assert [gpu for gpu in topology.gpus if gpu.index != 2] == [gpu for gpu in whole.gpus if gpu.index != 2]
    assert list(topology.links) == [link for link in whole.links if 2 not in (link.a, link.b)]
    assert topology.warnings == (f"GPU 2: {topology.gpus[2].error}",)


def test_a_gpu_without_permission_is_a_row_that_says_so(read_machines):
    closed = [{"call": "nvmlDeviceGetHandleByIndex_v2", "gpu": 0, "error": "NO_PERMISSION"}]
    topology = read_machines([pair(faults=closed)])[0]
    assert topology.gpus[0] == Gpu(0, error="no permission to use this GPU")
    assert topology.gpus[1].error is None


def test_the_nvlinks_that_repeat_transmissions_are_named(read_machines):
    machine = load_machine("h100_8x_nvswitch")
    machine["gpus"][2] |= {"bad_link": 5, "pcie_replays": 1250, "recovery": 1}
    (topology,) = read_machines([machine])
    assert [gpu.nvlink_errors for gpu in topology.gpus] == [(), (), (5,), (), (), (), (), ()]
    assert (topology.gpus[2].pcie_replays, topology.gpus[2].recovery) == (1250, "reset")
    assert [warning.split(":")[0] for warning in topology.warnings] == ["GPU 2"] * 3


@pytest.mark.parametrize(("name", "most"), [("h100_8x_nvswitch", 240), ("dgx1v_8xv100", 325), ("l40s_8x", 280)])
def test_eight_gpus_take_few_calls(fake_driver, tmp_path, name, most):
    """Each fact once: fields together, the far end of one link to a switch, peer access by kinds of pairs."""
    machine = name if name == "h100_8x_nvswitch" else json.loads((MACHINES[0].parent / f"{name}.json").read_text())
    env = {**os.environ, **fake_driver(machine), "FAKE_NVML_CALLS": str(tmp_path / "calls")}
    subprocess.run([sys.executable, "-m", "gpu_topology", "report"], env=env, cwd=ROOT, check=True, capture_output=True)
    calls = {line.split()[0]: int(line.split()[1]) for line in (tmp_path / "calls").read_text().splitlines()}
    assert 200 < sum(calls.values()) <= most, calls


def test_pairs_of_the_same_kind_that_answer_otherwise_are_asked_for_themselves(read_machines):
    machine = load_machine("h100_8x_nvswitch")
    refused = {"read": "not-supported", "write": "disabled-by-regkey", "nvlink": "ok", "atomics": "ok"}
    machine["p2p"] = {"default": "ok", "2-5": refused, "5-2": refused}
    topology = read_machines([machine])[0]
    assert topology == to_topology(machine)
    assert topology.link(2, 5).p2p == "not-supported"


def loader_case(folder: Path, case: str, library: Path) -> str:
    """A library that is there and does not load; what the message has to say of it."""
    path, whole = folder / "libnvidia-ml.so.1", library.read_bytes()
    if case == "a link to nothing":
        path.symlink_to(folder / "gone")
        return f"a link to {folder / 'gone'}, which does not exist"
    cut, other, narrow = whole[:3000], bytearray(whole), bytearray(whole)
    other[18] = 183 if other[18] != 183 else 62  # e_machine
    narrow[4] = 1  # ELFCLASS32
    content, words = {
        "empty": (b"", "file too short"),
        "text": (b"Not found." * 99, "invalid ELF header"),
        "cut short": (cut, "is cut short or damaged"),
        "another processor": (
            bytes(other),
            f"it is there, and is built for {'aarch64' if other[18] == 183 else 'x86_64'}",
        ),
        "32 bits": (bytes(narrow), "wrong ELF class: ELFCLASS32"),
    }[case]
    path.write_bytes(content)
    return words


@pytest.mark.parametrize("case", ["empty", "text", "cut short", "another processor", "32 bits", "a link to nothing"])
def test_a_library_that_does_not_load_is_reported_in_the_loaders_words(fake_nvml_library, tmp_path, case):
    words = loader_case(tmp_path, case, fake_nvml_library / "libnvidia-ml.so.1")
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "gpu_topology", "report", "--json"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    warning, remedy = json.loads(done.stdout)["warnings"][:2]
    assert warning.startswith("the NVIDIA driver library does not load: ")
    assert words in warning
    assert "install the driver again" in remedy


SOURCES = {
    "undefined symbol: no_such": "int no_such(void); int nvmlInitWithFlags(unsigned f) { return no_such() + (int)f; }",
    "undefined symbol: nvmlInitWithFlags": "int nvmlInit(void) { return 0; }",
}


@pytest.mark.parametrize("words", SOURCES)
def test_a_library_without_a_symbol_is_reported_by_its_name(tmp_path, words):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SOURCES[words], text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "gpu_topology", "select"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the NVIDIA driver library does not load: ")
    assert words in done.stderr
