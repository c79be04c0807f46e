"""Warnings about a choice of GPUs: each names the GPUs, the fact and its consequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpu_topology.driver.gpu import MPS_SERVER
from gpu_topology.host.torch_build import driver_way_out, way_out
from gpu_topology.select.bandwidth import Fabric, lanes, slot_speed
from gpu_topology.select.eligibility import BUSY_FLOOR_BYTES, busy, drawn, silent, size_words
from gpu_topology.select.explain import Choice
from gpu_topology.select.nvlinks import all_inactive, some_down
from gpu_topology.topology import Gpu, LinkLevel

# The fp32 gradients of ResNet-50, 25 million parameters: the all-reduce over a narrow slot is estimated for them.
_GRADIENT_BYTES = 100e6
_NARROW_LANES, _WIDE_LANES = 4, 16


def warnings(choice: Choice, count: int | None, in_pci_order: bool) -> Iterator[str]:
    """All warnings. `in_pci_order`: indices in the mask were read in PCI order, and CUDA may count differently."""
    visible = choice.rules.visible
    if visible is not None and visible.problem:
        yield visible.problem
    if in_pci_order:
        yield (
            "CUDA_VISIBLE_DEVICES has indices on a machine with different GPUs: CUDA itself counts the fastest GPU"
            " first unless CUDA_DEVICE_ORDER=PCI_BUS_ID; here they are read in PCI order, as nvidia-smi shows them"
        )
    if choice.rules.asked and not choice.rules.allow_busy:
        for device in choice.chosen:
            user = busy(device, choice.rules)
            if user:
                yield f"{device.label} was requested by name although it is busy: {user}"
    yield from _unread(choice)
    yield from _torch(choice)
    yield from _desktops(choice)
    yield from _mps_servers(choice)
    yield from _nvlinks(choice)
    yield from _partitions(choice)
    yield from _narrow_slots(choice)
    yield from _shared_gpus(choice)
    if len(choice.used) > 1:
        slow = min(choice.used, key=lambda group: group.each or 0.0)
        yield f"different GPUs work in step: with equal shards all run at the speed of the slowest ({slow.name})"
    if not choice.whole and choice.policy == "largest" and count is None:
        yield from _faster_group(choice)


def _shared_gpus(choice: Choice) -> Iterator[str]:
    """MIG slices of one GPU under several ranks."""
    every = [device.index for device in choice.chosen]
    shared = [str(index) for index in choice.indices if every.count(index) > 1]
    if shared:
        yield (
            f"several ranks share GPU {', '.join(shared)} by its MIG slices:"
            " NCCL before 2.30 refuses two ranks on one GPU, gloo does not"
        )


def _faster_group(choice: Choice) -> Iterator[str]:
    """A group that --policy fastest would prefer."""
    rate = choice.groups[0].throughput
    better = [group for group in choice.groups[1:] if rate and group.throughput and group.throughput > rate]
    if better:
        best = max(better, key=lambda group: group.throughput or 0.0)
        size = "smaller group" if len(best.devices) < len(choice.groups[0].devices) else "group"
        yield f"the {size} {best.label} has a higher estimated peak throughput: --policy fastest selects it"


def _gpus(choice: Choice) -> list[Gpu]:
    """The chosen GPUs."""
    return [choice.topology.gpu(index) for index in choice.indices]


def _named(indices: Iterable[int]) -> str:
    """`GPU 0, 2`."""
    return f"GPU {', '.join(map(str, indices))}"


def _unread(choice: Choice) -> Iterator[str]:
    """GPUs with facts that cannot be read."""
    for index, reason in silent(choice.topology).items():
        yield f"{_named([index])}: {reason}, so it is left out"
    unknown = [device.index for device in choice.chosen if device.memory_total is None]
    if unknown:
        yield f"{_named(unknown)}: the driver does not report the memory, so nothing is sized by it"


def _torch(choice: Choice) -> Iterator[str]:
    """A torch that needs a newer driver, or has no code for a chosen GPU."""
    torch, topology = choice.rules.torch, choice.topology
    if torch is None:
        return
    capabilities = {gpu.compute_capability for gpu in _gpus(choice) if gpu.compute_capability is not None}
    if too_new := torch.too_new_for(topology.cuda_version, topology.driver_version):
        yield f"{too_new}, so it finds no GPU: {driver_way_out(torch.cuda, capabilities, topology.cuda_version)}"
        return
    for capability in sorted(one for one in capabilities if torch.runs_on(one) is False):
        without = [gpu.index for gpu in _gpus(choice) if gpu.compute_capability == capability]
        yield f"{_named(without)}: {torch.no_code_for(capability)}; {way_out([capability], topology.cuda_version)}"


def _desktops(choice: Choice) -> Iterator[str]:
    """Chosen GPUs that a desktop uses as well."""
    for gpu in _gpus(choice):
        names = ", ".join(dict.fromkeys(process.name for process in gpu.graphics_processes or () if process.name))
        used = drawn(gpu) if gpu.memory_used is None or gpu.processes else gpu.memory_used
        drawing = gpu.graphics_processes or gpu.display_active or choice.rules.hidden_desktop
        if drawing and used > BUSY_FLOOR_BYTES:
            total = f" of {size_words(gpu.memory_total)}" if gpu.memory_total else ""
            shown = gpu.graphics_processes or gpu.display_active
            who = f"a desktop ({names})" if names else "a desktop" if shown else "something, probably a desktop"
            yield f"{_named([gpu.index])} is also used by {who}: {size_words(used)}{total} are in use"


def _mps_servers(choice: Choice) -> Iterator[str]:
    """Chosen GPUs with an idle MPS server."""
    served = [gpu.index for gpu in _gpus(choice) if any(one.name == MPS_SERVER for one in gpu.processes or ())]
    if served:
        yield f"{_named(served)}: an idle MPS server ({MPS_SERVER}) has no clients of other users, so it uses nothing"


def _nvlinks(choice: Choice) -> Iterator[str]:
    """NVLinks that are down or inactive."""
    topology = choice.topology
    down: dict[tuple[int, int], list[int]] = {}
    for missing in some_down(topology):
        if missing.index in choice.indices:
            down.setdefault((missing.down, missing.total), []).append(missing.index)
    for (count, total), indices in down.items():
        verb = "is" if count == 1 else "are"
        yield (
            f"{count} of {total} NVLinks of {_named(indices)} {verb} down, which slows all traffic with it:"
            f" see `nvidia-smi nvlink -s -i {','.join(map(str, indices))}`"
        )
    inactive = set(all_inactive(topology)) & set(choice.indices)
    # Where the driver reports the fabric, a note about the fabric covers this.
    if len(inactive) > 1 and all(topology.gpu(index).fabric_state in (None, "completed") for index in inactive):
        yield (
            f"{_named(sorted(inactive))}: no NVLink is active, although these cards are made for a board with NVLink;"
            " on an NVSwitch board the fabric manager is not running (`systemctl start nvidia-fabricmanager`)"
        )


def _partitions(choice: Choice) -> Iterator[str]:
    """Chosen GPUs in different partitions of the NVSwitch fabric, which only PCIe connects."""
    parts: dict[str, list[int]] = {}
    for gpu in _gpus(choice):
        if gpu.fabric_cluster is not None:
            parts.setdefault(gpu.fabric_cluster, []).append(gpu.index)
    if len(parts) > 1:
        largest = max(len(indices) for indices in parts.values())
        yield (
            f"{' and '.join(_named(indices) for indices in parts.values())} are in different NVLink partitions: between"
            f" them all traffic uses PCIe; --count {largest} stays within one"
        )


def _narrow_slots(choice: Choice) -> Iterator[str]:
    """The cost of narrow PCIe slots, where the ring uses them."""
    gpus = _gpus(choice)
    narrow = [gpu for gpu in gpus if (lanes(gpu) or _WIDE_LANES) <= _NARROW_LANES and slot_speed(gpu)]
    if len(gpus) < 2 or not narrow or _nvlinked(choice):
        return
    slowest = min(narrow, key=lambda gpu: slot_speed(gpu) or 0.0)
    speed, width, card = slot_speed(slowest) or 0.0, lanes(slowest) or 1, slowest.pcie_width or _WIDE_LANES
    milliseconds = 2 * (len(gpus) - 1) / len(gpus) * _GRADIENT_BYTES / (speed * 1e6)
    full = f", {milliseconds * width / card:.0f} ms with {card} lanes" if card > width else ""
    wide = len(gpus) - len(narrow)
    without = f"; without {_named(gpu.index for gpu in narrow)}: --count {wide}" if wide > 1 else ""
    yield (
        f"{_named(gpu.index for gpu in narrow)}: {width} PCIe lane{'s' * (width > 1)} of generation"
        f" {slowest.pcie_generation} ({speed:.2g} GB/s at most) slow DDP down: an estimated {milliseconds:.0f} ms for"
        f" each all-reduce of 100 MB of gradients (25 million parameters){full}{without}"
    )


def _nvlinked(choice: Choice) -> bool:
    """Whether the slowest link of the best ring is an NVLink, so that slots do not matter."""
    fabric = Fabric(choice.topology, choice.indices)
    floor = fabric.bottleneck(choice.indices)
    return any(
        link.level is LinkLevel.NV and link.p2p in (None, "ok") and fabric.speed[pair] <= floor
        for pair, link in fabric.links.items()
    )
