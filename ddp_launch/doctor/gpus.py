"""The doctor's checks of the GPUs: driver and devices, torch against both, and how the GPUs reach one another."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_launch.doctor.check import INSTALL, Check
from gpu_topology.driver.library import DriverError, NoDevicesError, NoDriverError, StuckDriverError
from gpu_topology.environment.notes import notes
from gpu_topology.host.host import Host
from gpu_topology.host.nics import nic_distances
from gpu_topology.host.torch_build import driver_way_out, has_code, way_out
from gpu_topology.select.eligibility import silent
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, LinkLevel, Topology

GIB = 2**30


@dataclass(frozen=True)
class Probe:
    """What torch reports about itself in a separate process; `error`: why it does not run at all.

    `cuda`: the CUDA version that it was built for, None for a CPU build; `architectures`: "sm_90" ...;
    `devices`: how many GPUs it can use; `cuda_error`: why it can use none.
    """

    version: str | None = None
    cuda: str | None = None
    nccl: str | None = None
    architectures: tuple[str, ...] = ()
    devices: int = 0
    cuda_error: str | None = None
    error: str | None = None


def devices(topology: Topology, problem: DriverError | None = None, root: Path = Path("/")) -> Iterator[Check]:
    """The driver, and each GPU. `problem`: why the driver gave no topology."""
    if problem is not None:
        # A machine without an NVIDIA card is in order; a card that cannot be used is not.
        harmless = isinstance(problem, NoDriverError | NoDevicesError) and not nvidia_cards(root)
        stuck = isinstance(problem, StuckDriverError)
        words = str(problem) if stuck else f"{problem}; training runs on the CPU"
        yield Check("GPUs", "warning" if harmless else "failed", words, problem.remedy)
        return
    version = topology.driver_version or "unknown"
    yield Check("driver", "ok", f"{version}, CUDA up to {topology.cuda_version or 'unknown'}")
    unread = silent(topology)
    yield from (_device(gpu, gpu.error or unread.get(gpu.index)) for gpu in topology.gpus)
    for warning in topology.warnings:
        if not any(gpu.error and gpu.error in warning for gpu in topology.gpus):
            yield Check("GPUs", "warning", warning)


def nvidia_cards(root: Path = Path("/")) -> int:
    """How many NVIDIA display or 3D controllers the PCI bus has, with or without a driver."""
    found = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        found += vendor == "0x10de" and kind.startswith("0x03")
    return found


def _device(gpu: Gpu, problem: str | None) -> Check:
    """The check of one GPU; `problem`: why it cannot be used."""
    name = f"GPU {gpu.index}"
    if problem:
        words = problem if gpu.name is None else f"{gpu.name}: {problem}"
        return Check(name, "failed", words, "see `dmesg | grep -i xid`; leave it out: --exclude")
    if gpu.memory_total is None:
        return Check(name, "ok", f"{gpu.label}, of unknown memory")
    used = "" if gpu.memory_used is None else f"{gpu.memory_used / GIB:.1f} of "
    return Check(name, "ok", f"{gpu.label}, {used}{gpu.memory_total / GIB:.1f} GiB{' used' * bool(used)}")


def torch_and_driver(probe: Probe, topology: Topology, planned: Collection[int] = ()) -> Iterator[Check]:
    """torch itself, and whether it can use the driver's GPUs. `planned`: indices of a run's GPUs, () for all."""
    if probe.error is not None:
        yield Check("torch", "failed", probe.error, INSTALL)
        return
    built = f"built for CUDA {probe.cuda}" if probe.cuda else "built for the CPU"
    nccl = f", NCCL {probe.nccl}" if probe.nccl else ""
    yield Check("torch", "ok", f"{probe.version}, {built}{nccl}")
    used = [gpu for gpu in topology.gpus if gpu.error is None and (gpu.index in planned or not planned)]
    if not used:
        return
    capabilities = [gpu.compute_capability for gpu in used if gpu.compute_capability is not None]
    if probe.cuda is None:
        yield Check("torch and GPUs", "failed", "this torch is a CPU build: it uses no GPU", "install torch with CUDA")
    elif _major(topology.cuda_version) < _major(probe.cuda):
        words = (
            f"torch needs CUDA {probe.cuda}, the driver {topology.driver_version} goes up to {topology.cuda_version}"
        )
        remedy = driver_way_out(probe.cuda, capabilities, topology.cuda_version)
        yield Check("torch and GPUs", "failed", words, remedy)
    elif probe.devices == 0:
        yield Check(
            "torch and GPUs", "failed", probe.cuda_error or "torch finds no GPU", "run `nvidia-smi`, then this again"
        )
    else:
        yield _architectures(probe, used, topology.cuda_version)


def _architectures(probe: Probe, used: Sequence[Gpu], cuda: str | None) -> Check:
    """Whether torch has code for the GPUs of a run."""
    without = {
        gpu.label: gpu.compute_capability
        for gpu in used
        if probe.architectures
        and gpu.compute_capability is not None
        and not has_code(probe.architectures, gpu.compute_capability)
    }
    if without:
        words = f"this torch has no code for {', '.join(sorted(without))}: it has {', '.join(probe.architectures)}"
        remedy = f"{way_out(set(without.values()), cuda)}; or leave it out: --exclude"
        return Check("torch and GPUs", "failed", words, remedy)
    return Check("torch and GPUs", "ok", f"torch can use {probe.devices} GPU{'s' * (probe.devices != 1)}")


def _major(version: str | None) -> int:
    """12 of "12.4". An unknown version counts as new enough: the trial run finds out whether it is."""
    match = re.match(r"\d+", version or "")
    return int(match[0]) if match else 10**6


def adapters(topology: Topology, root: Path = Path("/")) -> Iterator[Check]:
    """How far each InfiniBand or RoCE adapter is from each GPU; a GPU without one on its NUMA node is slow."""
    known = [gpu for gpu in topology.gpus if gpu.pci_bus_id is not None]
    distances = nic_distances([gpu.pci_bus_id or "" for gpu in known], root)
    if not known or not distances:
        return
    for name, levels in distances.items():
        each = ", ".join(f"GPU {gpu.index} {level or '?'}" for gpu, level in zip(known, levels, strict=True))
        yield Check("network adapter", "ok", f"{name}: {each}")
    far = [
        str(gpu.index)
        for gpu, levels in zip(known, zip(*distances.values(), strict=True), strict=True)
        if all(level == "SYS" for level in levels)
    ]
    if far and len(far) < len(known):
        words = f"GPU {', '.join(far)} reaches every adapter across the interconnect between NUMA nodes only"
        yield Check("network adapter", "warning", words, "for runs on several nodes an adapter on their node is faster")


def links(topology: Topology, host: Host) -> Iterator[Check]:
    """How the GPUs reach one another."""
    usable = tuple(gpu.index for gpu in topology.gpus if gpu.error is None)
    if len(usable) < 2:
        return
    everything = Selection(usable, tuple(str(index) for index in usable), "", "mixed", (), "")
    pairs = list(topology.links_within(usable))
    direct = sum(link.p2p == "ok" for link in pairs)
    nvlink = sum(link.level is LinkLevel.NV for link in pairs)
    words = f"peer access between {direct} of {len(pairs)} pairs, NVLink between {nvlink}"
    yield Check("links", "ok", words)
    for note in notes(topology, everything, host):
        if not note.startswith("/dev/shm"):
            yield Check("links", "warning", note)
