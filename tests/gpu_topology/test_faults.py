"""The fault matrix: each driver function unanswered, one at a time, costs its own fact and nothing else.

The functions are those that the stand-in driver saw called, so a call that the code learns must find its place in a
table here before these tests pass.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_topology import snapshot
from gpu_topology.cli import main
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, Topology
from tests.fake_nvml.machine import MIB, to_topology

ROOT = Path(__file__).parents[2]

_CARD: dict[str, Any] = {
    "name": "NVIDIA RTX A6000",
    "memory_mib": 49140,
    "memory_used_mib": 2100,
    "cc": [8, 6],
    "cores": 10752,
    "clock_mhz": 2100,
    "cpus": "0-19,40-59",
    "ecc": True,
    "ecc_uncorrected": 0,
    "remapped": [False, False],
    "throttle": ["power-cap"],
    "recovery": 0,
    "pcie_replays": 0,
    "mig_mode": False,
    "fabric_state": 3,
    "fabric_cluster": ["9c6f5af353bf49b5a436b66766c413c3", 7],
    "processes": [{"pid": 4321, "used_mib": 2048, "name": "/usr/bin/python3"}],
    "graphics": [{"pid": 1234, "used_mib": 12, "name": "/usr/lib/xorg/Xorg"}],
}
_SLICES = [{"uuid": f"MIG-{n}000", "profile": "3g.20gb", "memory_mib": 20096, "instance": n} for n in (1, 2)]

# Every call has something to say here: two bridged cards, and one cut into MIG slices whose memory errors are told the
# older way.
MACHINE: dict[str, Any] = {
    "gpus": [
        _CARD,
        {**_CARD, "numa": 1},
        {**_CARD, "name": "NVIDIA A100", "mig_mode": True, "mig": _SLICES, "remapped": None, "retired_pending": False},
    ],
    "matrix": [["X", "NV4", "PHB"], ["NV4", "X", "SYS"], ["PHB", "SYS", "X"]],
}
WHOLE = to_topology(MACHINE)
NO_LINKS = (2, "nvlink_errors")

# What nobody else can tell once this function does not answer.
GPU_FACTS = {
    "nvmlDeviceGetCpuAffinity": ("cpu_affinity",),
    "nvmlDeviceGetComputeMode": ("compute_mode",),
    "nvmlDeviceGetCudaComputeCapability": ("compute_capability",),
    "nvmlDeviceGetCurrPcieLinkGeneration": ("pcie_generation_now",),
    "nvmlDeviceGetCurrPcieLinkWidth": ("pcie_width_now",),
    "nvmlDeviceGetDisplayActive": ("display_active",),
    "nvmlDeviceGetFieldValues": ("recovery", "pcie_replays", "nvlink_errors"),
    "nvmlDeviceGetEccMode": ("ecc",),
    "nvmlDeviceGetGpuFabricInfoV": ("fabric_state", "fabric_cluster"),
    "nvmlDeviceGetMaxClockInfo": ("clock_mhz",),
    "nvmlDeviceGetMaxPcieLinkGeneration": ("pcie_generation",),
    "nvmlDeviceGetMaxPcieLinkWidth": ("pcie_width",),
    "nvmlDeviceGetMemoryAffinity": ("numa_node",),
    "nvmlDeviceGetMigMode": ("mig_mode",),
    "nvmlDeviceGetName": ("name",),
    "nvmlDeviceGetNumGpuCores": ("cores",),
    "nvmlDeviceGetPciInfo_v3": ("pci_bus_id",),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected",),
    "nvmlDeviceGetUUID": ("uuid",),
    "nvmlDeviceGetUtilizationRates": ("utilization",),
}
SLICE_FACTS = {
    "nvmlDeviceGetName": ("profile",),
    "nvmlDeviceGetGpuInstanceId": ("gpu_instance",),
    "nvmlDeviceGetComputeInstanceId": ("compute_instance",),
}
NO_SLICES = (
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
)
TOPOLOGY_FACTS = {"nvmlSystemGetDriverVersion": "driver_version", "nvmlSystemGetCudaDriverVersion_v2": "cuda_version"}

# Another function tells the same.
REPLACED = (
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlShutdown",
)
# A numbered field tells the same: where the function itself answers with an error, so does the field.
FIELDS = (
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetTotalEccErrors",
)
NEEDED = ("nvmlInitWithFlags",)


def _memory_v1(topology: Topology) -> Topology:
    """Version 1 counts the driver's own reserve as used."""

    def more(one: Any) -> Any:
        return replace(one, memory_used=(one.memory_used or 0) + 300 * MIB)

    gpus = tuple(replace(more(gpu), mig_devices=tuple(map(more, gpu.mig_devices))) for gpu in topology.gpus)
    return replace(topology, gpus=gpus)


def _no_faults(*indices: int) -> Callable[[Topology], Topology]:
    def change(topology: Topology) -> Topology:
        gpus = (replace(gpu, memory_faults=None) if gpu.index in indices else gpu for gpu in topology.gpus)
        return replace(topology, gpus=tuple(gpus))

    return change


def _no_bridge(topology: Topology) -> Topology:
    """NVLinks that cannot be told: unknown, which is apart from none. The third card has none, and is known to."""
    bridge = replace(topology.link(0, 1), nvlinks=None, level=LinkLevel.SYS)
    return replace(topology, links=(bridge, *topology.links[1:]))


def _no_nvlinks(topology: Topology) -> Topology:
    links = tuple(replace(link, nvlinks=None, level=link.pcie_level) for link in topology.links)
    return replace(topology, links=links)


def _no_pcie(topology: Topology) -> Topology:
    links = (replace(link, pcie_level=None, level=link.level if link.nvlinks else None) for link in topology.links)
    return replace(topology, links=tuple(links))


def _no_peers(topology: Topology) -> Topology:
    return replace(topology, links=tuple(replace(link, p2p=None, peer=None) for link in topology.links))


def _no_names(topology: Topology) -> Topology:
    def nameless(processes: tuple[GpuProcess, ...] | None) -> tuple[GpuProcess, ...]:
        return tuple(replace(process, name=None) for process in processes or ())

    gpus = (
        replace(gpu, processes=nameless(gpu.processes), graphics_processes=nameless(gpu.graphics_processes))
        for gpu in topology.gpus
    )
    return replace(topology, gpus=tuple(gpus))


# What an unanswered function does to the reading beyond the tables above.
CHANGES: dict[str, Callable[[Topology], Topology]] = {
    "nvmlSystemGetProcessName": _no_names,
    "nvmlDeviceGetMemoryInfo_v2": _memory_v1,
    "nvmlDeviceGetNvLinkRemotePciInfo_v2": _no_bridge,
    "nvmlDeviceGetNvLinkState": _no_nvlinks,
    "nvmlDeviceGetP2PStatus": _no_peers,
    "nvmlDeviceGetPciInfo_v3": _no_bridge,
    "nvmlDeviceGetRemappedRows": _no_faults(0, 1),
    "nvmlDeviceGetRetiredPagesPendingStatus": _no_faults(2),
    "nvmlDeviceGetTopologyCommonAncestor": _no_pcie,
}
NO_GPU = ("nvmlDeviceGetHandleByIndex_v2",)


def without(function: str, error: str) -> Topology:
    """What is left of the whole reading when one function answers with this error."""
    topology = WHOLE
    if function in NO_GPU:
        return topology
    gpus = [replace(gpu, **dict.fromkeys(GPU_FACTS.get(function, ()))) for gpu in topology.gpus]
    gpus = [replace(gpu, mig_devices=()) for gpu in gpus] if function in NO_SLICES else gpus
    lost = dict.fromkeys(SLICE_FACTS.get(function, ()))
    gpus = [replace(gpu, mig_devices=tuple(replace(one, **lost) for one in gpu.mig_devices)) for gpu in gpus]
    topology = replace(topology, gpus=tuple(gpus))
    if function in TOPOLOGY_FACTS:
        topology = replace(topology, **{TOPOLOGY_FACTS[function]: None})
    if function == "nvmlDeviceGetNvLinkState" and error == "NOT_SUPPORTED":  # a card without NVLink says so
        none = (replace(link, nvlinks=0, level=link.pcie_level) for link in topology.links)
        return replace(topology, links=tuple(none))
    return CHANGES.get(function, lambda same: same)(topology)


KNOWN = {*GPU_FACTS, *SLICE_FACTS, *NO_SLICES, *TOPOLOGY_FACTS, *REPLACED, *NEEDED, *CHANGES, *NO_GPU}
ERRORS = ("NOT_SUPPORTED", "UNKNOWN", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "TIMEOUT")


def machine(*faults: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(MACHINE), "faults": list(faults)}


def report(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpu_topology", *(arguments or ("report", "--json"))]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return subprocess.run(command, env={**clean, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_every_function_that_is_called_has_its_place_in_a_table(fake_driver, tmp_path):
    called = set()
    starting = ("nvmlInitWithFlags", "nvmlShutdown", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2")
    silent = [{"call": call, "error": "NOT_SUPPORTED"} for call in sorted(KNOWN - set(starting))]
    no_remote = [{"call": "nvmlDeviceGetNvLinkRemotePciInfo_v2", "error": "NOT_SUPPORTED"}]
    no_fields = [{"call": "nvmlDeviceGetFieldValues", "error": "FUNCTION_NOT_FOUND"}]
    for faults in ((), no_remote, no_fields, silent):  # where nothing answers, the older functions are asked too
        env = {**fake_driver(machine(*faults)), "FAKE_NVML_CALLS": str(tmp_path / "calls")}
        assert report(env).returncode == 0
        called |= {line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()}
    assert called == KNOWN


def test_the_whole_reading(read_machines):
    assert read_machines([MACHINE]) == [WHOLE]
    missing = [
        (gpu.index, name)
        for gpu in WHOLE.gpus
        for name in Gpu.__dataclass_fields__
        # The slot is sysfs's to tell; the third card has no NVLinks.
        if name not in ("error", "pcie_slot_width") and getattr(gpu, name) is None and (gpu.index, name) != NO_LINKS
    ]
    assert missing == [], "a fact that is unknown to begin with is not tested below"


@pytest.mark.parametrize("error", ERRORS)
def test_one_unanswered_function_costs_its_own_fact_alone(read_machines, error):
    functions = sorted(KNOWN - set(NEEDED) - set(NO_GPU))
    machines = [machine({"call": function, "error": error}) for function in functions]
    for function, topology in zip(functions, read_machines(machines), strict=True):
        assert topology == without(function, error), function


@pytest.mark.parametrize(
    ("functions", "lost"),
    [
        (("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"), ("memory_total", "memory_used")),
        (("nvmlDeviceGetRemappedRows", "nvmlDeviceGetRetiredPagesPendingStatus"), ("memory_faults",)),
        (("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"), ("throttle",)),
        (tuple(f"nvmlDeviceGetComputeRunningProcesses_v{n}" for n in (2, 3)), ("processes",)),
        (tuple(f"nvmlDeviceGetGraphicsRunningProcesses_v{n}" for n in (2, 3)), ("graphics_processes",)),
    ],
)
def test_a_fact_is_unknown_when_neither_way_to_it_answers(read_machines, functions, lost):
    faults = [{"call": function, "error": "NO_PERMISSION"} for function in functions]
    (topology,) = read_machines([machine(*faults)])
    gpus = [replace(gpu, **dict.fromkeys(lost)) for gpu in WHOLE.gpus]
    if "memory_total" in lost:
        gpus[2] = replace(
            gpus[2], mig_devices=tuple(replace(one, **dict.fromkeys(lost)) for one in gpus[2].mig_devices)
        )
    assert topology.gpus == tuple(gpus)
    assert topology.links == WHOLE.links


def test_the_cards_themselves_closed_are_rows_that_say_so(read_machines):
    errors = {"NO_PERMISSION": "no permission", "UNKNOWN": "unknown error", "GPU_IS_LOST": "GPU is lost"}
    machines = [machine({"call": "nvmlDeviceGetHandleByIndex_v2", "error": error}) for error in errors]
    for words, topology in zip(errors.values(), read_machines(machines), strict=True):
        assert [gpu.index for gpu in topology.gpus] == [0, 1, 2]
        assert all(words in (gpu.error or "") for gpu in topology.gpus)
        assert topology.links == ()
        assert topology.driver_version == WHOLE.driver_version
        (line,) = topology.warnings
        assert line.startswith("GPU 0, 1, 2: ")


@pytest.mark.parametrize("call", ["nvmlDeviceGetNvLinkState", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo_v3"])
def test_one_call_that_says_lost_is_believed(read_machines, call):
    """Also where other calls go on answering, as from a cache."""
    (topology,) = read_machines([machine({"call": call, "gpu": 1, "error": "GPU_IS_LOST"})])
    assert "lost" in (topology.gpus[1].error or "")
    assert [topology.gpus[0], topology.gpus[2]] == [WHOLE.gpus[0], WHOLE.gpus[2]]
    assert topology.links == tuple(link for link in WHOLE.links if 1 not in (link.a, link.b))
    assert topology.warnings == (f"GPU 1: {topology.gpus[1].error}",)


def test_a_lost_gpu_is_asked_nothing_more(fake_driver, tmp_path):
    """Each question to a lost GPU can take seconds."""
    fault = {"call": "nvmlDeviceGetNvLinkState", "gpu": 1, "error": "GPU_IS_LOST"}
    env = {**fake_driver(machine(fault)), "FAKE_NVML_CALLS": str(tmp_path / "calls")}
    assert report(env).returncode == 0
    calls = dict(line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines())
    assert calls["nvmlDeviceGetP2PStatus"] == "8", "four kinds, two ways, the one pair that is left"
    assert calls["nvmlDeviceGetTopologyCommonAncestor"] == "1"


def test_an_old_nvidia_ml_py_costs_what_it_does_not_know(fake_driver):
    """What nvidia-ml-py 12.535 lacks."""
    script = """
import json, pynvml
from gpu_topology import snapshot
from gpu_topology.driver import read as nvml
del pynvml.nvmlDeviceGetGpuFabricInfoV
del pynvml.nvmlDeviceGetComputeRunningProcesses_v2, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2
print(json.dumps(snapshot.to_dict(nvml.read_or_explain())))
"""
    env = {**os.environ, **fake_driver(MACHINE)}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert snapshot.from_dict(json.loads(done.stdout)) == without("nvmlDeviceGetGpuFabricInfoV", "FUNCTION_NOT_FOUND")


def test_a_gpu_lost_at_any_moment_never_ends_the_report(read_machines):
    """The moments: every call on GPU 1, in order, until it is past the last one."""
    moments = range(160)
    machines = [machine({"call": "*", "gpu": 1, "error": "GPU_IS_LOST", "after": after}) for after in moments]
    unnoticed = []
    for after, topology in zip(moments, read_machines(machines), strict=True):
        if topology == WHOLE:
            unnoticed.append(after)
            continue
        assert "lost" in (topology.gpus[1].error or ""), after
        assert [topology.gpus[0], topology.gpus[2]] == [WHOLE.gpus[0], WHOLE.gpus[2]]
        assert [(link.a, link.b) for link in topology.links] == [(0, 2)]
    assert unnoticed == list(range(unnoticed[0], moments.stop)), "once it is too late to notice it stays so"
    assert unnoticed[0] > 50


@pytest.mark.parametrize("function", sorted(KNOWN - set(NEEDED)))
def test_a_library_without_one_function_gives_the_same_report_but_for_its_fact(
    fake_driver, fake_nvml_library, tmp_path, function
):
    """A true library in which the symbol is missing, through the command itself."""
    library = (fake_nvml_library / "libnvidia-ml.so.1").read_bytes()
    symbol = b"\0" + function.encode() + b"\0"
    assert symbol in library
    (tmp_path / "libnvidia-ml.so.1").write_bytes(library.replace(symbol, symbol[:-2] + b"#\0"))
    done = report({**fake_driver(MACHINE), "LD_LIBRARY_PATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    if function in NO_GPU:
        assert [gpu["error"] for gpu in data["gpus"]] == ["function not found"] * 3
        return
    expected = snapshot.to_dict(WHOLE if function in FIELDS else without(function, "FUNCTION_NOT_FOUND"))
    assert {key: data[key] for key in ("gpus", "links", "driver_version", "cuda_version")} == {
        key: expected[key] for key in ("gpus", "links", "driver_version", "cuda_version")
    }


def _nothing_known() -> Topology:
    """As much as a driver can leave out."""
    return Topology(tuple(Gpu(index) for index in range(3)), tuple(Link(a, b) for a, b in ((0, 1), (0, 2), (1, 2))))


@pytest.mark.parametrize("command", [["report"], ["report", "--json"], ["draw"], ["env"], ["select"]])
def test_every_command_does_with_every_fact_unknown(tmp_path, capsys, monkeypatch, command):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "machine.json"
    readings = {function: without(function, "UNKNOWN") for function in sorted(KNOWN - set(NEEDED))}
    for function, topology in {**readings, "all": _nothing_known()}.items():
        snapshot.save(topology, path)
        status = main([*command, "--from", str(path)])
        printed = capsys.readouterr()
        assert status == 0 or (status == 2 and command[0] in ("select", "env")), function
        assert bool(printed.out) == (status == 0), function
        assert status == 0 or printed.err.startswith("error: "), function


def _broken_library(folder: Path) -> dict[str, str]:
    (folder / "libnvidia-ml.so.1").write_bytes(b"")
    return {"LD_LIBRARY_PATH": str(folder)}


START: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no driver library": ([], "does not load: "),
    "driver not loaded": ([{"call": "nvmlInitWithFlags", "error": "DRIVER_NOT_LOADED"}], "not loaded"),
    "mismatch": ([{"call": "nvmlInitWithFlags", "error": "LIB_RM_VERSION_MISMATCH"}], "different versions"),
    "too old": ([{"call": "nvmlInitWithFlags", "error": "FUNCTION_NOT_FOUND"}], "too old"),
    "no permission": ([{"call": "*", "error": "NO_PERMISSION"}], "no permission"),
    "zero devices": ([], "finds no GPU"),
    "unknown": ([{"call": "*", "error": "UNKNOWN"}], "does not answer"),
    "all lost": ([{"call": "nvmlDeviceGetHandleByIndex_v2", "error": "GPU_IS_LOST"}], "lost"),
}


@pytest.mark.parametrize("case", START)
def test_where_nothing_can_be_used_the_report_says_why_and_select_is_one_line(fake_driver, tmp_path, case):
    faults, reason = START[case]
    env = fake_driver("no_devices" if case == "zero devices" else machine(*faults))
    if case == "no driver library":
        env |= _broken_library(tmp_path)
    done = report(env)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert reason in data["warnings"][0]
    assert data["selection"]["indices"] == []
    page = report(env, "report")
    assert (page.returncode, page.stderr) == (0, "")
    chosen = report(env, "select")
    assert (chosen.returncode, chosen.stdout) == (2, "")
    assert chosen.stderr.startswith("error: ")
    assert chosen.stderr.count("\n") == 1
    settings = report(env, "env")
    if data["gpus"]:
        assert (settings.returncode, settings.stdout, settings.stderr) == (2, "", chosen.stderr)
    else:  # what training on the CPU wants
        assert (settings.returncode, settings.stderr) == (0, "")
        assert "CUDA" not in settings.stdout
