"""Chooses the GPUs to use for a request, with the reason for the choice and for each GPU that is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from ddp_core.errors import TopologyError
from gpu_topology.host.torch_build import TorchBuild
from gpu_topology.select import explain
from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.eligibility import ALLOW_BUSY, Rules, Usable, busy, refusal, usable
from gpu_topology.select.explain import Choice
from gpu_topology.select.grouping import Group, make_groups, one_each, peaks, ranked
from gpu_topology.select.selection_warnings import warnings as selection_warnings
from gpu_topology.select.visible import Device, Visible, find_name, parse_visible
from gpu_topology.topology import Topology

Policy = Literal["largest", "fastest", "mixed"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


class SelectionError(TopologyError):
    """The request cannot be met on this machine."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """The facts that affect the choice besides the user's request: see from_environment.py.

    visible       the value of CUDA_VISIBLE_DEVICES, None when it is not set
    device_order  the value of CUDA_DEVICE_ORDER, None when it is not set
    cuda_order    UUIDs or PCI bus ids in CUDA's order, which indices in `visible` follow; None: not known, indices are
                  read in PCI order
    own_pids      the user's own processes, which do not make a GPU busy
    claims        UUID -> who has claimed that GPU or slice but does not use it yet
    owners        process -> its user, as far as known
    hidden_desktop  whether a desktop may use the GPUs without a visible process
    torch         the installed torch; None if it is not installed, has no CUDA, or is not what will run
    """

    visible: str | None = None
    device_order: str | None = None
    cuda_order: tuple[str, ...] | None = None
    own_pids: frozenset[int] = frozenset()
    claims: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[int, str] = field(default_factory=dict)
    hidden_desktop: bool = False
    torch: TorchBuild | None = None

    def completes(self, request: SelectionRequest) -> SelectionRequest:
        """The request with the inherited facts filled in."""
        return replace(request, **{one.name: getattr(self, one.name) for one in fields(Inherited)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRequest(Inherited):
    """The user's request, with the inherited facts.

    count         how many GPUs; None: all of the winning group
    policy        "largest", "fastest" or "mixed" (every eligible GPU)
    gpus          exactly these, even if busy: NVML indices, UUIDs or unique prefixes, as text
    exclude       never these
    allow_busy    also GPUs that others use
    min_memory    least total bytes of each GPU or MIG slice
    """

    count: int | None = None
    policy: Policy = "largest"
    gpus: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0


@dataclass(frozen=True, slots=True)
class Excluded:
    """A GPU that is not used, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen devices in rank order, one for each rank, or none with the reason.

    indices   NVML indices (PCI order); duplicates only where two slices of one GPU were requested by UUID
    uuids     as CUDA_VISIBLE_DEVICES takes them, parallel to `indices`: a MIG slice's UUID where MIG is on, the index
              as text where the driver does not report the UUID
    group     "NVIDIA RTX A5000 x 3"
    warnings  what the user should know about this choice
    """

    indices: tuple[int, ...]
    uuids: tuple[str, ...]
    group: str
    policy: str
    excluded: tuple[Excluded, ...]
    reason: str
    warnings: tuple[str, ...] = ()


def select(topology: Topology, request: SelectionRequest) -> Selection:
    """Choose the GPUs. Errors: SelectionError for an unknown or unusable GPU, or for more GPUs than there are.

    A machine without a usable GPU gives an empty selection with its reason, unless GPUs were requested by name.
    """
    if request.policy not in POLICIES:
        raise SelectionError(f"unknown policy {request.policy!r}: choose one of {', '.join(POLICIES)}")
    if request.count is not None and request.count < 1:
        raise SelectionError(f"count is {request.count}: expected at least 1")
    rules = _rules(topology, request)
    found = usable(topology, rules)
    for asked in rules.asked:
        if not found.of(asked):
            slices = "it is in MIG mode, and has no such slice"
            why = found.refused.get(asked.index) or refusal(asked, rules) or slices
            raise SelectionError(f"{asked.label} cannot be used: {why}")
    if not found.devices:
        return _nothing(topology, request, rules, found)
    choice = _choice(topology, request, rules, found)
    return Selection(
        indices=tuple(device.index for device in choice.chosen),
        uuids=tuple(device.uuid for device in choice.chosen),
        group=explain.group_label(choice),
        policy=request.policy,
        excluded=tuple(Excluded(index, reason) for index, reason in explain.left_out(choice)),
        reason=explain.reason(choice),
        warnings=tuple(selection_warnings(choice, request.count, _reads_in_pci_order(topology, request, rules))),
    )


def groups(topology: Topology, eligible: Iterable[Device], policy: str = "largest") -> tuple[Group, ...]:
    """The groups of identical devices among `eligible`, best first."""
    return make_groups(topology, eligible, policy)


def eligible(topology: Topology, request: SelectionRequest) -> tuple[Device, ...]:
    """The GPUs and MIG slices that this request may use. Errors: SelectionError for an unknown name."""
    return usable(topology, _rules(topology, request)).devices


def unfit(topology: Topology) -> Mapping[int, str]:
    """The GPUs that no run can use (lost, with errors, compute prohibited): NVML index -> why."""
    return usable(topology, Rules(allow_busy=True)).refused


def in_use(topology: Topology, request: SelectionRequest) -> Mapping[int, str]:
    """The GPUs that this request could use if they were free: NVML index -> why not now. GPUs that it names count too.
    Errors: SelectionError for an unknown name."""
    asked = _resolve(request.gpus, topology)
    rules = _rules(topology, replace(request, gpus=()))
    now = usable(topology, replace(rules, allow_busy=False)).refused
    idle = {device.index for device in usable(topology, replace(rules, allow_busy=True)).devices}
    named = {device.index for device in asked} or idle
    return {index: why for index, why in now.items() if index in idle & named}


def named_by(topology: Topology, request: SelectionRequest) -> tuple[tuple[Device, ...] | None, tuple[Device, ...]]:
    """The devices in CUDA_VISIBLE_DEVICES, None where it is not set, and those that the request excludes."""
    rules = _rules(topology, request)
    return None if rules.visible is None else rules.visible.named, rules.excluded


def _rules(topology: Topology, request: SelectionRequest) -> Rules:
    """The rules for a request. Errors: SelectionError."""
    asked = _resolve(request.gpus, topology)
    for position, device in enumerate(asked):
        if any(device.is_part_of(other) or other.is_part_of(device) for other in asked[:position]):
            raise SelectionError(f"{device.label} is named twice")
    mask = request.visible
    visible = None if mask is None else parse_visible(mask, topology.gpus, request.cuda_order)
    return Rules(
        visible=visible,
        visible_value=mask and f"{mask}{_translation(visible, request)}",
        asked=asked,
        excluded=_resolve(request.exclude, topology),
        allow_busy=request.allow_busy,
        min_memory=request.min_memory,
        own_pids=request.own_pids,
        claims=request.claims,
        owners=request.owners,
        hidden_desktop=request.hidden_desktop or _may_be_a_desktop(topology),
        torch=request.torch,
    )


def _may_be_a_desktop(topology: Topology) -> bool:
    """Whether the only GPU is a GeForce card: Windows around WSL shows neither its processes nor its screen."""
    return len(topology.gpus) == 1 and "GeForce" in (topology.gpus[0].name or "")


def _translation(visible: Visible | None, request: SelectionRequest) -> str:
    """What indices in CUDA_VISIBLE_DEVICES mean in CUDA's own order, for a message."""
    if visible is None or not visible.by_index or request.cuda_order is None or not visible.named:
        return ""
    return f" (in CUDA's own order, which is GPU {', '.join(str(device.index) for device in visible.named)} here)"


def _reads_in_pci_order(topology: Topology, request: SelectionRequest, rules: Rules) -> bool:
    """Whether indices in CUDA_VISIBLE_DEVICES are read in PCI order although CUDA may count differently."""
    by_index = rules.visible is not None and rules.visible.by_index
    return by_index and not topology.identical and request.cuda_order is None and request.device_order != "PCI_BUS_ID"


def _resolve(names: Sequence[str], topology: Topology) -> tuple[Device, ...]:
    """The devices with these names. Errors: SelectionError."""
    found: list[Device] = []
    for name in names:
        named = find_name(name, topology.gpus)
        if named is None:
            raise SelectionError(f"unknown GPU {name!r}: {_what_there_is(topology)}")
        found.append(named)
    return tuple(found)


def _what_there_is(topology: Topology) -> str:
    """The GPUs that could be named, for a message."""
    if not topology.gpus:
        reason = topology.warnings[0] if topology.warnings else "it has no NVIDIA GPU"
        return f"this machine has none ({reason})"
    indices = [gpu.index for gpu in topology.gpus]
    span = str(indices[0]) if len(indices) == 1 else f"{indices[0]} to {indices[-1]}"
    return f"this machine has {span}, or name a UUID or a unique beginning of one"


def _nothing(topology: Topology, request: SelectionRequest, rules: Rules, found: Usable) -> Selection:
    """An empty selection with its reason."""
    if not topology.gpus:
        reason = topology.warnings[0] if topology.warnings else "this machine has no NVIDIA GPU"
    elif rules.visible is not None and not rules.visible.named:
        reason = rules.visible.problem or "CUDA_VISIBLE_DEVICES hides every GPU"
    else:
        each = (f"GPU {index} {why.removesuffix(ALLOW_BUSY)}" for index, why in found.refused.items())
        in_use = any(why.endswith(ALLOW_BUSY) for why in found.refused.values())
        reason = f"no GPU can be used: {'; '.join(each)}{ALLOW_BUSY * in_use}"
    excluded = tuple(Excluded(index, why) for index, why in found.refused.items())
    return Selection((), (), "", request.policy, excluded, reason)


def _choice(topology: Topology, request: SelectionRequest, rules: Rules, found: Usable) -> Choice:
    """The candidates and the best of them; there is at least one. Errors: SelectionError."""
    best_first = make_groups(topology, found.devices, request.policy)
    if request.count is not None:
        best_first = ranked(topology, best_first, request.policy, request.count)
    if rules.asked:
        pool = tuple(_asked_device(asked, found, rules) for asked in rules.asked)
    elif request.policy == "mixed":
        pool = one_each(found.devices)
    else:
        pool = best_first[0].devices
    count = len(pool) if request.count is None else request.count
    whole = bool(rules.asked) or request.policy == "mixed"
    choice = Choice(topology, rules, request.policy, found.refused, best_first, pool, pool, whole)
    if count > len(pool):
        raise SelectionError(explain.too_many(choice, count))
    chosen = pool if count == len(pool) else _best(topology, _fast_enough(pool, best_first, count), count)
    return replace(choice, chosen=_rank_order(chosen, rules))


def _asked_device(asked: Device, found: Usable, rules: Rules) -> Device:
    """The requested device; for a GPU in MIG mode its best slice, a free one if possible."""
    named = found.of(asked)
    free = tuple(device for device in named if not busy(device, rules))
    return one_each(free or named)[0]


def _fast_enough(pool: Sequence[Device], groups: Sequence[Group], count: int) -> tuple[Device, ...]:
    """The devices of the pool without those that are slower than each of its `count` fastest: with equal shards all run
    at the speed of the slowest."""
    speeds = peaks(pool, groups)
    least = sorted(speeds.values(), reverse=True)[count - 1]
    return tuple(device for device in pool if speeds[device] >= least)


def _best(topology: Topology, pool: Sequence[Device], count: int) -> tuple[Device, ...]:
    """The best-connected devices of the pool. A second slice of one GPU comes after every other GPU."""
    each = {device.index: device for device in reversed(pool)}
    if count <= len(each):
        return tuple(each[index] for index in Fabric(topology, tuple(each)).best(count))
    more = [device for device in pool if device is not each[device.index]]
    return (*each.values(), *more[: count - len(each)])


def _rank_order(chosen: Sequence[Device], rules: Rules) -> tuple[Device, ...]:
    """The devices in the order of the request, else of CUDA_VISIBLE_DEVICES, else in PCI order."""
    wanted = rules.asked or (rules.visible.named if rules.visible else ())

    def place(device: Device) -> tuple[int, int]:
        """The sort key: position in the list, then NVML index."""
        return next((at for at, name in enumerate(wanted) if device.is_part_of(name)), 0), device.index

    return tuple(sorted(chosen, key=place))
