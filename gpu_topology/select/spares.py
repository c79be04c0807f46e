"""The devices of a run after a failure: lost and faulty ones are replaced by identical spares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.select import Selection, SelectionRequest, eligible, named_by, unfit
from gpu_topology.select.visible import Device
from gpu_topology.topology import Topology


@dataclass(frozen=True, slots=True)
class Replacement:
    """The devices for another attempt.

    uuids     in rank order, as CUDA_VISIBLE_DEVICES takes them; empty where no device is left
    left_out  UUID -> why it is left out
    spares    those of `uuids` that replace one that is left out
    """

    uuids: tuple[str, ...]
    left_out: Mapping[str, str]
    spares: tuple[str, ...]


def replace_lost(
    before: Topology, now: Topology, selection: Selection, request: SelectionRequest, suspects: Mapping[str, str]
) -> Replacement:
    """The devices of `selection`, made on `before`, that still work on the machine `now`, and spares for the others.

    A spare has the same model and memory and is allowed by the `request`; where the user named the GPUs there are none.
    suspects: UUID -> a rank's error about its device; where no device is left otherwise, suspects that work according
    to the driver are used again.
    """
    was, is_now = _by_uuid(before), _by_uuid(now)
    unfit_before, unfit_now = unfit(before), unfit(now)
    gone: dict[str, str] = {}
    for uuid in selection.uuids:
        index = was[uuid].index
        if uuid not in is_now:
            errors = (gpu.error for gpu in now.gpus if gpu.index == index and gpu.error)
            gone[uuid] = next(errors, "the driver no longer lists it")
        elif (why := unfit_now.get(is_now[uuid].index)) is not None and unfit_before.get(index) is None:
            gone[uuid] = why
    suspected = {uuid: why for uuid, why in suspects.items() if uuid in selection.uuids and uuid not in gone}
    for out in (gone | suspected, gone):
        uuids, spares = _with_spares(before, now, selection, request, out)
        if uuids:
            break
    return Replacement(uuids, out, spares)


def label(topology: Topology, uuid: str) -> str:
    """ "GPU 3", or "MIG slice 1g.10gb of GPU 3"."""
    return _by_uuid(topology)[uuid].label


def _with_spares(
    before: Topology, now: Topology, selection: Selection, request: SelectionRequest, out: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The devices in rank order, and the spares among them."""
    was, present = _by_uuid(before), _by_uuid(now)
    free = [] if request.gpus or not out else _spares(before, now, selection, request, out)
    chosen: list[str] = []
    spares: list[str] = []
    for uuid in selection.uuids:
        if uuid not in out:
            chosen.append(uuid)
            continue
        identical = [device for device in free if _model(device) == _model(was[uuid])]
        if identical:
            kept = [present[one].index for one in (*selection.uuids, *spares) if one not in out]
            best = max(identical, key=lambda device: (_speed(now, kept, device.index), -device.index))
            free.remove(best)
            chosen.append(best.uuid)
            spares.append(best.uuid)
    return tuple(chosen), tuple(spares)


def _spares(
    before: Topology, now: Topology, selection: Selection, request: SelectionRequest, out: Mapping[str, str]
) -> list[Device]:
    """The devices that the request allows and the run does not use; matched by UUID, since indices may have changed."""
    present = _by_uuid(now)

    def still_there(devices: Iterable[Device]) -> tuple[str, ...]:
        """The UUIDs of those devices that the machine still has."""
        return tuple(device.uuid for device in devices if device.uuid in present)

    visible, excluded = named_by(before, request)
    request = replace(
        request,
        count=None,
        exclude=still_there(excluded),
        visible=None if visible is None else ",".join(still_there(visible)),
    )
    # A run gets two slices of one GPU only by name.
    taken = {present[uuid].index for uuid in selection.uuids if uuid in present and uuid not in out}
    return [one for one in eligible(now, request) if one.uuid not in selection.uuids and one.index not in taken]


def _by_uuid(topology: Topology) -> dict[str, Device]:
    """UUID -> device, for GPUs and MIG slices."""
    gpus = {device.uuid: device for device in map(Device, topology.gpus)}
    return gpus | {mig.uuid: Device(gpu, mig) for gpu in topology.gpus for mig in gpu.mig_devices}


def _model(device: Device) -> tuple[object, ...]:
    """The properties that a device and its spare must share."""
    gpu, mig = device.gpu, device.mig
    return gpu.name, gpu.memory_total, gpu.compute_capability, mig and mig.profile


def _speed(topology: Topology, kept: Sequence[int], index: int) -> tuple[float, float]:
    """How well a GPU is connected to those that are kept: GB/s of the slowest link, and of all links together."""
    fabric = Fabric(topology, tuple({*kept, index}))
    speeds = [fabric.speed[one, index] for one in set(kept) - {index}]
    return min(speeds, default=0.0), sum(speeds)
