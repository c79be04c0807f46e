"""A machine described in JSON, for the stand-in driver and, without any driver, as a `Topology`.

Keys of a machine: `gpus`, `matrix` (nvidia-smi's notation: "NV4", "PHB", ...), `pcie_matrix` (the PCIe path beneath
NVLink; default PHB on one NUMA node, SYS across), `nvswitch` ("visible", or "hidden" as in a virtual machine), `p2p` (a
status for all pairs, or {"0-1": status}), `faults` ([{call, error, gpu, after}]), `driver_version`, `cuda_version`
(13000 is 13.0).
Keys of a GPU: those of `DEFAULTS` and `GPU_KEYS`; a key that is null or absent makes its call answer NOT_SUPPORTED.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, MigDevice, Topology

HERE = Path(__file__).parent
MIB = 2**20

DEFAULTS: dict[str, Any] = {
    "memory_used_mib": 1,
    "numa": 0,
    "mig_mode": None,
    "mig": [],
    "utilization": 0,
    "processes": [],
    "display": False,
    "compute_mode": 0,
    "pcie": [4, 16],
}
GPU_KEYS = (
    "name",
    "uuid",
    "bus_id",
    "memory_mib",
    "cc",
    "cores",
    "clock_mhz",
    "fabric_state",
    "power_watts",
    "temperature_c",
)

LEVELS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
P2P = {
    "ok": 0,
    "chipset-not-supported": 1,
    "gpu-not-supported": 2,
    "topology-not-supported": 3,
    "disabled-by-regkey": 4,
    "not-supported": 5,
    "unknown": 6,
}
ERRORS = {
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "DRIVER_NOT_LOADED": 9,
    "FUNCTION_NOT_FOUND": 13,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "LIB_RM_VERSION_MISMATCH": 18,
    "UNKNOWN": 999,
}
SWITCH_BUS_ID = {"visible": "00000000:E{:X}:00.0", "hidden": "FFFFFFFF:FF:FF.0"}
FABRIC_STATES = {1: "not-started", 2: "in-progress", 3: "completed"}
COMPUTE_MODES = {0: "default", 2: "prohibited", 3: "exclusive-process"}


def load_machine(machine: dict[str, Any] | str | Path) -> dict[str, Any]:
    """A machine by name (a JSON file beside this one), by path, or as a dict; with every default filled in."""
    if isinstance(machine, str) and not machine.endswith(".json"):
        machine = HERE / f"{machine}.json"
    data = json.loads(Path(machine).read_text()) if not isinstance(machine, dict) else dict(machine)
    data["gpus"] = [_filled(index, gpu) for index, gpu in enumerate(data.get("gpus", []))]
    size = range(len(data["gpus"]))
    data.setdefault("matrix", [["PHB" if a != b else "X" for b in size] for a in size])
    data.setdefault("driver_version", "580.65.06")
    data.setdefault("cuda_version", 13000)
    data.setdefault("p2p", "ok")
    return data


def _filled(index: int, gpu: dict[str, Any]) -> dict[str, Any]:
    named = {"uuid": f"GPU-{index:08x}-aaaa-bbbb-cccc-{index:012x}", "bus_id": f"00000000:{0x41 + 4 * index:02X}:00.0"}
    return {**dict.fromkeys(GPU_KEYS), **DEFAULTS, **named, **gpu}


def permuted(machine: dict[str, Any], order: tuple[int, ...]) -> dict[str, Any]:
    """The same machine with its GPUs counted in another order: new index i is old index order[i]."""
    data = load_machine(machine)
    data["gpus"] = [data["gpus"][old] for old in order]
    for key in ("matrix", "pcie_matrix"):
        if key in data:
            data[key] = [[data[key][a][b] for b in order] for a in order]
    if isinstance(data["p2p"], dict):
        data["p2p"] = {
            f"{a}-{b}": p2p_status({**machine, "p2p": data["p2p"]}, order[a], order[b]) for a, b in _pairs(data)
        }
    return data


def p2p_status(machine: dict[str, Any], a: int, b: int) -> str | None:
    """The status from one GPU to another; the other direction's where only that is given."""
    status = machine["p2p"]
    if isinstance(status, dict):
        return status.get(f"{a}-{b}", status.get(f"{b}-{a}", status.get("default", "ok")))
    return status


def pcie_level(machine: dict[str, Any], a: int, b: int) -> str:
    """The PCIe path between two GPUs: the matrix itself where it is no NVLink."""
    if "pcie_matrix" in machine:
        return machine["pcie_matrix"][a][b]
    cell = machine["matrix"][a][b]
    if not cell.startswith("NV"):
        return cell
    same = machine["gpus"][a]["numa"] == machine["gpus"][b]["numa"]
    return "PHB" if same else "SYS"


def nvlinks(machine: dict[str, Any], a: int, b: int) -> int:
    """How many NVLinks a pair shares."""
    cell = machine["matrix"][a][b]
    return int(cell[2:]) if cell.startswith("NV") else 0


def _pairs(machine: dict[str, Any]) -> list[tuple[int, int]]:
    size = len(machine["gpus"])
    return [(a, b) for a in range(size) for b in range(a + 1, size)]


def to_topology(machine: dict[str, Any] | str | Path) -> Topology:
    """What a right reading of this machine (without faults) gives."""
    data = load_machine(machine)
    links = []
    for a, b in _pairs(data):
        count, path, status = nvlinks(data, a, b), LinkLevel(pcie_level(data, a, b)), p2p_status(data, a, b)
        level = LinkLevel.NV if count else path
        links.append(Link(a, b, level, count, None if status == "unknown" else status, path))
    return Topology(
        gpus=tuple(_gpu(index, gpu) for index, gpu in enumerate(data["gpus"])),
        links=tuple(links),
        driver_version=data["driver_version"],
        cuda_version=f"{data['cuda_version'] // 1000}.{data['cuda_version'] % 1000 // 10}",
    )


def _gpu(index: int, gpu: dict[str, Any]) -> Gpu:
    total = gpu["memory_mib"]
    processes = gpu["processes"]
    return Gpu(
        index=index,
        uuid=gpu["uuid"],
        name=gpu["name"],
        pci_bus_id=gpu["bus_id"][4:].lower(),
        memory_total=None if total is None else total * MIB,
        memory_used=None if total is None else gpu["memory_used_mib"] * MIB,
        compute_capability=None if gpu["cc"] is None else tuple(gpu["cc"]),
        numa_node=gpu["numa"],
        mig_mode=gpu["mig_mode"],
        utilization=gpu["utilization"],
        processes=None
        if processes is None
        else tuple(GpuProcess(p["pid"], p["used_mib"] * MIB, p.get("instance")) for p in processes),
        mig_devices=tuple(
            MigDevice(one["uuid"], one["profile"], one["memory_mib"] * MIB, one["instance"], 0) for one in gpu["mig"]
        ),
        display_active=gpu["display"],
        compute_mode=COMPUTE_MODES.get(gpu["compute_mode"]),
        cores=gpu["cores"],
        clock_mhz=gpu["clock_mhz"],
        pcie_generation=gpu["pcie"][0] if gpu["pcie"] else None,
        pcie_width=gpu["pcie"][1] if gpu["pcie"] else None,
        fabric_state=FABRIC_STATES.get(gpu["fabric_state"]),
    )


def to_lines(machine: dict[str, Any] | str | Path) -> str:
    """The description that nvml.c reads: one fact a line."""
    data = load_machine(machine)
    lines = [f"driver {data['driver_version']}", f"cuda {data['cuda_version']}"]
    for fault in data.get("faults", []):
        lines.append(f"fault {fault['call']} {fault.get('gpu', -1)} {ERRORS[fault['error']]} {fault.get('after', 0)}")
    for index, gpu in enumerate(data["gpus"]):
        lines += ["gpu", *_gpu_lines(gpu), *_link_lines(data, index)]
        for one in gpu["mig"]:
            name = f"{gpu['name']} MIG {one['profile']}"
            facts = {"name": name, "uuid": one["uuid"], "total": one["memory_mib"] * MIB, "used": 0}
            facts |= {"instance": one["instance"], "compute_instance": 0}
            lines += ["slice", *(f"{key} {value}" for key, value in facts.items())]
    for a, b in _pairs(data):
        status = p2p_status(data, a, b)
        lines.append(f"pcie {a} {b} {LEVELS[pcie_level(data, a, b)]}")
        if status is not None:
            lines += [f"p2p {a} {b} {P2P[status]}", f"p2p {b} {a} {P2P[p2p_status(data, b, a) or status]}"]
    return "\n".join(lines) + "\n"


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    mib = gpu["memory_mib"]
    facts = {
        **{key: gpu[key] for key in ("name", "uuid", "bus_id", "numa", "utilization", "compute_mode", "cores")},
        "capability": gpu["cc"] and "{} {}".format(*gpu["cc"]),
        "total": mib and mib * MIB,
        "used": mib and gpu["memory_used_mib"] * MIB,
        "mig_mode": None if gpu["mig_mode"] is None else int(gpu["mig_mode"]),
        "display": None if gpu["display"] is None else int(gpu["display"]),
        "clock": gpu["clock_mhz"],
        "generation": gpu["pcie"] and gpu["pcie"][0],
        "width": gpu["pcie"] and gpu["pcie"][1],
        "fabric": gpu["fabric_state"],
        "milliwatts": gpu["power_watts"] and round(gpu["power_watts"] * 1000),
        "temperature": gpu["temperature_c"],
        "processes": None if gpu["processes"] is None else 0,
    }
    lines = [f"{key} {value}" for key, value in facts.items() if value is not None]
    none = 0xFFFFFFFF
    lines += [f"process {p['pid']} {p['used_mib'] * MIB} {p.get('instance', none)}" for p in gpu["processes"] or []]
    return lines


def _link_lines(machine: dict[str, Any], index: int) -> list[str]:
    """NVLinks one by one. Through NVSwitch a GPU has its links once, however many peers they reach."""
    counts = {peer: nvlinks(machine, index, peer) for peer in range(len(machine["gpus"]))}
    switch = machine.get("nvswitch")
    if switch:
        links = max(counts.values(), default=0)
        return [f"link {link} 2 {SWITCH_BUS_ID[switch].format(link % 6)}" for link in range(links)]
    remotes = [machine["gpus"][peer]["bus_id"] for peer, count in counts.items() for _ in range(count)]
    return [f"link {link} 0 {bus_id}" for link, bus_id in enumerate(remotes)]
