"""A machine described in JSON, for the stand-in driver and, without any driver, as a `Topology`.

Keys of a machine: `gpus`, `matrix` (nvidia-smi's notation: "NV4", "PHB", ...), `pcie_matrix` (the PCIe path beneath
NVLink; default PHB on one NUMA node, SYS across), `nvswitch` ("visible", or "hidden" as in a virtual machine), `p2p` (a
status for all pairs, or {"0-1": status}; a status is a word for reading and writing, or {"read", "write", "nvlink",
"atomics"}), `faults` ([{call, error, gpu, after}]: every call after the first `after` that match), `delay_us` (what
each call takes), `driver_version`, `cuda_version` (13000 is 13.0).
Keys of a GPU: those of `DEFAULTS` and `GPU_KEYS`; a key that is null or absent makes its call answer NOT_SUPPORTED.
`utilization` may be a list: one reading after the other, the last one for ever. A process has a `pid`, `used_mib`, and
maybe a MIG `instance` and a `name`; `mps_clients` are those that compute through an MPS server. A slice of `mig` may
have `used_mib` and `processes` of its own: NVML lists a whole GPU's only for administrators.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_topology.driver.health_warnings import concerns
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, MigDevice, PeerAccess, Topology

HERE = Path(__file__).parent
MIB = 2**20

DEFAULTS: dict[str, Any] = {
    "memory_used_mib": 1,
    "numa": 0,
    "mig_mode": None,
    "mig": [],
    "utilization": 0,
    "processes": [],
    "graphics": [],
    "mps_clients": [],
    "throttle": [],
    "display": False,
    "compute_mode": 0,
    "pcie": [4, 16],  # the most that it can do: generation, width
    "pcie_now": [1, 16],  # idle
    "fabric_status": 0,
    "fabric_health": 0,
}
GPU_KEYS = (
    "name",
    "uuid",
    "bus_id",
    "memory_mib",
    "cc",
    "cores",
    "clock_mhz",
    "cpus",
    "ecc",
    "ecc_uncorrected",
    "remapped",  # [pending, failed]
    "retired_pending",
    "recovery",  # nvml's number of the action
    "pcie_replays",
    "bad_link",  # the NVLink that repeats transmissions
    "fabric_state",
    "fabric_cluster",  # [32 hexadecimal digits, clique]
    "power_watts",
    "temperature_c",
    "pcie_rate",  # the byte counters' [sent, received] per second
    "pcie_start",  # where 64-bit counters begin; without it they have 32 bits
    "pcie_kb_s",  # [sent, received] of nvmlDeviceGetPcieThroughput
    "nvlink_rate",  # KiB per second, [sent, received]
    "energy",  # millijoules: [at the machine's start, per second since then]
    "nvlink_each",  # the driver counts by link and does not sum up
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
KINDS = ("read", "write", "nvlink", "atomics")
ERRORS = {
    "UNINITIALIZED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "NOT_FOUND": 6,
    "INSUFFICIENT_SIZE": 7,
    "INSUFFICIENT_POWER": 8,
    "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10,
    "IRQ_ISSUE": 11,
    "FUNCTION_NOT_FOUND": 13,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "OPERATING_SYSTEM": 17,
    "LIB_RM_VERSION_MISMATCH": 18,
    "IN_USE": 19,
    "MEMORY": 20,
    "NO_DATA": 21,
    "ARGUMENT_VERSION_MISMATCH": 25,
    "NOT_READY": 27,
    "GPU_NOT_FOUND": 28,
    "UNKNOWN": 999,
    "HANG": 10001,  # no error: the call never comes back
    "CRASH": 10002,  # nor this: the process ends with SIGSEGV in it
}
THROTTLE = {
    "idle": 0x01,
    "chosen-clocks": 0x02,
    "power-cap": 0x04,
    "hw-slowdown": 0x08,
    "sync-boost": 0x10,
    "thermal": 0x20,
    "hw-thermal": 0x40,
    "hw-power-brake": 0x80,
    "display": 0x100,
}
NOT_THROTTLING = ("idle", "chosen-clocks", "display")
SWITCH_BUS_ID = {"visible": "00000000:E{:X}:00.0", "hidden": "FFFFFFFF:FF:FF.0"}
FABRIC_STATES = {1: "not-started", 2: "in-progress", 3: "completed"}
RECOVERIES = {0: "none", 1: "reset", 2: "reboot", 3: "drain-p2p"}
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
    data["faults"] = [
        fault | ({"gpu": order.index(fault["gpu"])} if "gpu" in fault else {}) for fault in data.get("faults", [])
    ]
    return data


def p2p_status(machine: dict[str, Any], a: int, b: int) -> Any:
    """The status from one GPU to another; the other direction's where only that is given."""
    status = machine["p2p"]
    if isinstance(status, dict):
        return status.get(f"{a}-{b}", status.get(f"{b}-{a}", status.get("default", "ok")))
    return status


def peer_status(machine: dict[str, Any], a: int, b: int, kind: str) -> Any:
    """One kind of peer access from one GPU to another. Where only a word is given, NVLink and atomics need NVLinks."""
    status = p2p_status(machine, a, b)
    if isinstance(status, dict):
        return status.get(kind)
    if status == "ok" and kind in ("nvlink", "atomics") and not nvlinks(machine, a, b):
        return "not-supported"
    return status


def peer_access(machine: dict[str, Any], a: int, b: int) -> PeerAccess | None:
    """What a right reading gives for a pair."""
    both = {kind: (peer_status(machine, a, b, kind), peer_status(machine, b, a, kind)) for kind in KINDS}
    peer = PeerAccess(**{kind: (_told(there), _told(back)) for kind, (there, back) in both.items()})
    return None if peer == PeerAccess() else peer


def _told(status: str | None) -> str | None:
    return None if status == "unknown" else status


def summary(peer: PeerAccess | None) -> str | None:
    """The summary word: the first refusal of reading and writing."""
    words = [] if peer is None else [peer.read[0], peer.write[0], peer.read[1], peer.write[1]]
    told = [word for word in words if word is not None]
    return next((word for word in told if word != "ok"), told[0] if told else None)


def pcie_level(machine: dict[str, Any], a: int, b: int) -> str:
    """The PCIe path between two GPUs: the matrix itself where it is no NVLink."""
    if "pcie_matrix" in machine:
        return str(machine["pcie_matrix"][a][b])
    cell = str(machine["matrix"][a][b])
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
        count, path, peer = nvlinks(data, a, b), LinkLevel(pcie_level(data, a, b)), peer_access(data, a, b)
        level = LinkLevel.NV if count else path
        links.append(Link(a, b, level, count, summary(peer), path, peer))
    gpus = tuple(_gpu(data, index, gpu) for index, gpu in enumerate(data["gpus"]))
    return Topology(
        gpus=gpus,
        links=tuple(links),
        driver_version=data["driver_version"],
        cuda_version=f"{data['cuda_version'] // 1000}.{data['cuda_version'] % 1000 // 10}",
        warnings=concerns(gpus),
    )


def _gpu(data: dict[str, Any], index: int, gpu: dict[str, Any]) -> Gpu:
    total = gpu["memory_mib"]
    cluster = gpu["fabric_cluster"]
    throttle = gpu["throttle"]
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
        processes=_compute_processes(gpu),
        mig_devices=tuple(
            MigDevice(
                *(one["uuid"], one["profile"], one["memory_mib"] * MIB, one["instance"], 0),
                memory_used=one.get("used_mib", 0) * MIB,
            )
            for one in gpu["mig"]
        ),
        display_active=gpu["display"],
        compute_mode=COMPUTE_MODES.get(gpu["compute_mode"]),
        cores=gpu["cores"],
        clock_mhz=gpu["clock_mhz"],
        pcie_generation=gpu["pcie"][0] if gpu["pcie"] else None,
        pcie_width=gpu["pcie"][1] if gpu["pcie"] else None,
        fabric_state=_fabric_state(gpu),
        fabric_cluster=f"{cluster[0]}/{cluster[1]}" if cluster and gpu["fabric_state"] == 3 else None,
        cpu_affinity=gpu["cpus"],
        pcie_generation_now=gpu["pcie_now"] and gpu["pcie_now"][0],
        pcie_width_now=gpu["pcie_now"] and gpu["pcie_now"][1],
        ecc=gpu["ecc"],
        ecc_uncorrected=None if gpu["ecc"] is False else gpu["ecc_uncorrected"],
        memory_faults=_memory_faults(gpu),
        throttle=None
        if throttle is None
        else tuple(word for word in THROTTLE if word in throttle and word not in NOT_THROTTLING),
        recovery=gpu["recovery"] if gpu["recovery"] is None else RECOVERIES[gpu["recovery"]],
        pcie_replays=gpu["pcie_replays"],
        nvlink_errors=_nvlink_errors(data, index),
        graphics_processes=_processes(gpu["graphics"]),
    )


def _nvlink_errors(data: dict[str, Any], index: int) -> tuple[int, ...] | None:
    if not any(nvlinks(data, index, peer) for peer in range(len(data["gpus"])) if peer != index):
        return None
    bad = data["gpus"][index]["bad_link"]
    return () if bad is None else (bad,)


def _compute_processes(gpu: dict[str, Any]) -> tuple[GpuProcess, ...] | None:
    found = _processes(gpu["processes"])
    if not any(process.name == "nvidia-cuda-mps-server" for process in found or ()):
        return found
    return (*(found or ()), *(replace(one, mps_client=True) for one in _processes(gpu["mps_clients"]) or ()))


def _processes(processes: list[dict[str, Any]] | None) -> tuple[GpuProcess, ...] | None:
    if processes is None:
        return None
    return tuple(
        GpuProcess(p["pid"], p["used_mib"] * MIB, p.get("instance"), Path(p["name"]).name if "name" in p else None)
        for p in processes
    )


def _fabric_state(gpu: dict[str, Any]) -> str | None:
    if gpu["fabric_state"] != 3:
        return FABRIC_STATES.get(gpu["fabric_state"])
    return "failed" if gpu["fabric_status"] else "degraded" if gpu["fabric_health"] else "completed"


def _memory_faults(gpu: dict[str, Any]) -> tuple[str, ...] | None:
    if gpu["remapped"] is not None:
        pending, failed = gpu["remapped"]
        return tuple(word for word, is_so in (("row-remap-failed", failed), ("row-remap-pending", pending)) if is_so)
    if gpu["retired_pending"] is None:
        return None
    return ("page-retirement-pending",) if gpu["retired_pending"] else ()


def to_lines(machine: dict[str, Any] | str | Path) -> str:
    """The description that nvml.c reads: one fact a line."""
    data = load_machine(machine)
    lines = [f"driver {data['driver_version']}", f"cuda {data['cuda_version']}", f"delay {data.get('delay_us', 0)}"]
    for fault in data.get("faults", []):
        lines.append(f"fault {fault['call']} {fault.get('gpu', -1)} {ERRORS[fault['error']]} {fault.get('after', 0)}")
    for index, gpu in enumerate(data["gpus"]):
        lines += ["gpu", *_gpu_lines(gpu), *_link_lines(data, index)]
        for one in gpu["mig"]:
            name = f"{gpu['name']} MIG {one['profile']}"
            facts = {"name": name, "uuid": one["uuid"], "total": one["memory_mib"] * MIB}
            facts |= {"used": one.get("used_mib", 0) * MIB}
            facts |= {"instance": one["instance"], "compute_instance": 0}
            facts |= {"processes": 0} if "processes" in one else {}
            lines += ["slice", *(f"{key} {value}" for key, value in facts.items())]
            lines += _process_lines("process", one.get("processes"))
    for a, b in _pairs(data):
        lines.append(f"pcie {a} {b} {LEVELS[pcie_level(data, a, b)]}")
        for one, other in ((a, b), (b, a)):
            told = [(number, peer_status(data, one, other, kind)) for number, kind in enumerate(KINDS)]
            lines += [f"p2p {one} {other} {number} {P2P[status]}" for number, status in told if status is not None]
    return "\n".join(lines) + "\n"


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    mib, cluster = gpu["memory_mib"], gpu["fabric_cluster"]
    same = (
        *("name", "uuid", "bus_id", "numa", "compute_mode", "cores", "cpus", "ecc_uncorrected", "pcie_start"),
        *("recovery", "pcie_replays", "bad_link"),
    )
    flags = ("mig_mode", "display", "ecc", "retired_pending", "nvlink_each")
    steps = gpu["utilization"] if isinstance(gpu["utilization"], list) else []
    facts = {
        "utilization": steps[0] if steps else gpu["utilization"],
        **{key: gpu[key] and "{} {}".format(*gpu[key]) for key in ("pcie_rate", "pcie_kb_s", "nvlink_rate", "energy")},
        **{key: gpu[key] for key in same},
        **{key: None if gpu[key] is None else int(gpu[key]) for key in flags},
        "capability": gpu["cc"] and "{} {}".format(*gpu["cc"]),
        "total": mib and mib * MIB,
        "used": mib and gpu["memory_used_mib"] * MIB,
        "clock": gpu["clock_mhz"],
        "generation": gpu["pcie"] and gpu["pcie"][0],
        "width": gpu["pcie"] and gpu["pcie"][1],
        "generation_now": gpu["pcie_now"] and gpu["pcie_now"][0],
        "width_now": gpu["pcie_now"] and gpu["pcie_now"][1],
        "row_pending": gpu["remapped"] and int(gpu["remapped"][0]),
        "row_failed": gpu["remapped"] and int(gpu["remapped"][1]),
        "throttle": None if gpu["throttle"] is None else sum(THROTTLE[word] for word in gpu["throttle"]),
        "fabric": gpu["fabric_state"],
        "fabric_status": gpu["fabric_status"],
        "fabric_health": gpu["fabric_health"],
        "fabric_cluster": cluster and cluster[0],
        "fabric_clique": cluster and cluster[1],
        "milliwatts": gpu["power_watts"] and round(gpu["power_watts"] * 1000),
        "temperature": gpu["temperature_c"],
        "processes": None if gpu["processes"] is None else 0,
        "graphics": None if gpu["graphics"] is None else 0,
    }
    lines = [f"{key} {value}" for key, value in facts.items() if value is not None]
    lines += [f"then {step}" for step in steps]
    for key, processes in (("process", gpu["processes"]), ("drawing", gpu["graphics"]), ("client", gpu["mps_clients"])):
        lines += _process_lines(key, processes)
    return lines


def _process_lines(key: str, processes: list[dict[str, Any]] | None) -> list[str]:
    return [
        f"{key} {p['pid']} {p['used_mib'] * MIB} {p.get('instance', 0xFFFFFFFF)} {p.get('name', '')}".rstrip()
        for p in processes or []
    ]


def _link_lines(machine: dict[str, Any], index: int) -> list[str]:
    """NVLinks one by one. Through NVSwitch a GPU has its links once, however many peers they reach."""
    counts = {peer: nvlinks(machine, index, peer) for peer in range(len(machine["gpus"]))}
    switch = machine.get("nvswitch")
    if switch:
        links = max(counts.values(), default=0)
        return [f"link {link} 2 {SWITCH_BUS_ID[switch].format(link % 6)}" for link in range(links)]
    remotes = [machine["gpus"][peer]["bus_id"] for peer, count in counts.items() for _ in range(count)]
    return [f"link {link} 0 {bus_id}" for link, bus_id in enumerate(remotes)]
