"""A request and a topology to the GPUs to use, with the reason for the choice and for each GPU left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gpu_topology import explain
from gpu_topology.bandwidth import Fabric
from gpu_topology.eligibility import Rules, refusal
from gpu_topology.explain import Choice
from gpu_topology.grouping import Group, best_slice, make_groups
from gpu_topology.topology import Gpu, Topology, TopologyError
from gpu_topology.visible import Named, find_name, parse_visible

POLICIES = ("largest", "fastest", "mixed")


class SelectionError(TopologyError):
    """The request cannot be met on this machine."""


@dataclass(frozen=True, slots=True)
class SelectionRequest:
    """What the user asks for.

    count         how many GPUs; None: all of the winning group
    policy        "largest", "fastest" or "mixed" (every eligible GPU)
    gpus          exactly these: NVML indices, UUIDs or unique prefixes, as text; they may be busy
    exclude       never these
    allow_busy    take GPUs that others use
    min_memory    bytes that each GPU must have in all
    visible       the value of CUDA_VISIBLE_DEVICES, None when it is not set
    device_order  the value of CUDA_DEVICE_ORDER, None when it is not set
    """

    count: int | None = None
    policy: str = "largest"
    gpus: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0
    visible: str | None = None
    device_order: str | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A GPU that is not used, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen GPUs in rank order, or none with the reason.

    indices   NVML indices (PCI order)
    uuids     as CUDA_VISIBLE_DEVICES takes them, parallel to `indices`: a MIG slice's UUID where MIG is on, the index
              as text where the driver does not tell the UUID
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
    """Choose the GPUs. Raises SelectionError when the request names an unknown or unusable GPU, or more than there are.

    A machine without a usable GPU gives an empty selection with its reason, unless GPUs were asked for by name.
    """
    if request.policy not in POLICIES:
        raise SelectionError(f"unknown policy {request.policy!r}: choose one of {', '.join(POLICIES)}")
    if request.count is not None and request.count < 1:
        raise SelectionError(f"count is {request.count}: at least 1 GPU must be asked for")
    rules = _rules(topology, request)
    refused = {gpu.index: reason for gpu in topology.gpus if (reason := refusal(gpu, rules)) is not None}
    for index in rules.asked:
        if index in refused:
            raise SelectionError(f"GPU {index} cannot be used: {refused[index]}")
    if len(refused) == len(topology.gpus):
        return _nothing(topology, request, rules, refused)
    choice = _choice(topology, request, rules, refused)
    indices = _rank_order(choice)
    return Selection(
        indices=indices,
        uuids=tuple(_cuda_name(topology.gpu(index), rules) for index in indices),
        group=explain.group_label(choice),
        policy=request.policy,
        excluded=tuple(Excluded(index, reason) for index, reason in explain.left_out(choice)),
        reason=explain.reason(choice),
        warnings=tuple(explain.warnings(choice, request.count, request.device_order)),
    )


def groups(topology: Topology, eligible: Iterable[int], policy: str = "largest") -> tuple[Group, ...]:
    """The homogeneous groups among `eligible` (NVML indices), best first."""
    return make_groups(topology, eligible, policy)


def eligible(topology: Topology, request: SelectionRequest) -> tuple[int, ...]:
    """The NVML indices that this request may choose from. Raises SelectionError for names of no GPU."""
    rules = _rules(topology, request)
    return tuple(gpu.index for gpu in topology.gpus if refusal(gpu, rules) is None)


def _rules(topology: Topology, request: SelectionRequest) -> Rules:
    asked = _resolve(request.gpus, topology)
    indices = [named.gpu.index for named in asked]
    repeated = next((index for index in indices if indices.count(index) > 1), None)
    if repeated is not None:
        raise SelectionError(f"GPU {repeated} is named twice")
    return Rules(
        visible=None if request.visible is None else parse_visible(request.visible, topology.gpus),
        visible_value=request.visible,
        asked=tuple(indices),
        slices={named.gpu.index: named.mig for named in asked if named.mig},
        excluded=tuple(named.gpu.index for named in _resolve(request.exclude, topology)),
        allow_busy=request.allow_busy,
        min_memory=request.min_memory,
    )


def _resolve(names: Sequence[str], topology: Topology) -> tuple[Named, ...]:
    found: list[Named] = []
    for name in names:
        named = find_name(name, topology.gpus)
        if named is None:
            raise SelectionError(f"unknown GPU {name!r}: {_what_there_is(topology)}")
        found.append(named)
    return tuple(found)


def _what_there_is(topology: Topology) -> str:
    if not topology.gpus:
        reason = topology.warnings[0] if topology.warnings else "it has no NVIDIA GPU"
        return f"this machine has none ({reason})"
    indices = [gpu.index for gpu in topology.gpus]
    span = str(indices[0]) if len(indices) == 1 else f"{indices[0]} to {indices[-1]}"
    return f"this machine has {span}, or name a UUID or a unique beginning of one"


def _nothing(topology: Topology, request: SelectionRequest, rules: Rules, refused: dict[int, str]) -> Selection:
    if not topology.gpus:
        reason = topology.warnings[0] if topology.warnings else "this machine has no NVIDIA GPU"
    elif rules.visible is not None and not rules.visible.named:
        reason = rules.visible.problem or "CUDA_VISIBLE_DEVICES hides every GPU"
    else:
        reason = "no GPU can be used: " + "; ".join(f"GPU {index} {why}" for index, why in refused.items())
    excluded = tuple(Excluded(index, why) for index, why in refused.items())
    return Selection((), (), "", request.policy, excluded, reason)


def _choice(topology: Topology, request: SelectionRequest, rules: Rules, refused: dict[int, str]) -> Choice:
    """The GPUs to choose from, and the best of them. There is at least one."""
    usable = tuple(gpu.index for gpu in topology.gpus if gpu.index not in refused)
    ranked = make_groups(topology, usable, request.policy)
    whole = bool(rules.asked) or request.policy == "mixed"
    pool = usable if whole else ranked[0].indices
    count = len(pool) if request.count is None else request.count
    choice = Choice(topology, rules, request.policy, refused, ranked, pool, pool, whole)
    if count > len(pool):
        raise SelectionError(explain.too_many(choice, count))
    return choice if count == len(pool) else replace(choice, chosen=Fabric(topology, pool).best(count))


def _rank_order(choice: Choice) -> tuple[int, ...]:
    """As the user named them, else as CUDA_VISIBLE_DEVICES lists them, else PCI order."""
    rules = choice.rules
    wanted = rules.asked or tuple(named.gpu.index for named in (rules.visible.named if rules.visible else ()))
    return tuple(sorted(choice.chosen, key=lambda index: (wanted.index(index) if index in wanted else 0, index)))


def _cuda_name(gpu: Gpu, rules: Rules) -> str:
    """The UUID that CUDA_VISIBLE_DEVICES takes for a GPU: that of one slice where MIG is on."""
    if gpu.mig_mode:
        named = rules.visible.find(gpu.index) if rules.visible else None
        one = rules.slices.get(gpu.index) or (named.mig if named else None)
        one = one or best_slice(gpu, rules.allow_busy) or best_slice(gpu)
        if one is not None:
            return one.uuid
    return gpu.uuid or str(gpu.index)
