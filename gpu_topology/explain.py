"""A choice of GPUs in words: why these, why not the others, and what the user should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from gpu_topology.bandwidth import Fabric
from gpu_topology.eligibility import Rules, busy
from gpu_topology.grouping import Group, estimate
from gpu_topology.topology import Topology


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and from what. GPUs are NVML indices.

    refused   GPUs that may not be used, with the reason
    groups    the groups among the others, best first
    pool      what was chosen from: the first group, or (`whole`) every GPU that may be used
    """

    topology: Topology
    rules: Rules
    policy: str
    refused: Mapping[int, str]
    groups: tuple[Group, ...]
    pool: tuple[int, ...]
    chosen: tuple[int, ...]
    whole: bool

    @property
    def used(self) -> tuple[Group, ...]:
        """The groups that chosen GPUs come from."""
        return tuple(group for group in self.groups if set(group.indices) & set(self.chosen))

    @property
    def superlative(self) -> str:
        """The word for the first group."""
        return "fastest" if self.policy == "fastest" else "largest"


def group_label(choice: Choice) -> str:
    """ "NVIDIA A30 x 4"; of a mixed choice each part with the number taken from it."""
    if len(choice.used) == 1:
        return choice.used[0].label
    parts = ((group.name, len(set(choice.chosen) & set(group.indices))) for group in choice.used)
    return " + ".join(f"{name} x {count}" for name, count in parts)


def reason(choice: Choice) -> str:
    """Why these GPUs, in one line."""
    if choice.rules.asked:
        what = "the GPUs asked for by name"
    elif choice.policy == "mixed":
        what = "every GPU that can be used (policy mixed)"
    elif len(choice.groups) == 1:
        what = f"the only group of like GPUs: {choice.groups[0].label}"
    else:
        what = f"the {choice.superlative} group of like GPUs{_tie(choice)}: {choice.groups[0].label}"
    if len(choice.chosen) < len(choice.pool):
        what = f"the best-connected {len(choice.chosen)} of {what}" if len(choice.chosen) > 1 else f"one of {what}"
    return what + _slowest_link(choice)


def _tie(choice: Choice) -> str:
    """What decided between the first group and the next of the same size."""
    first, second = choice.groups[:2]
    if choice.policy != "largest" or len(first.indices) != len(second.indices):
        return ""
    if (first.memory_total or 0) != (second.memory_total or 0):
        return " (of equal ones, that with most memory)"
    better = "better linked" if first.ring_gb_s != second.ring_gb_s else "better linked or first in order"
    return f" (of equal ones, the {better})"


def _slowest_link(choice: Choice) -> str:
    if len(choice.chosen) < 2:
        return ""
    fabric = Fabric(choice.topology, choice.chosen)
    floor = fabric.bottleneck(choice.chosen)
    pair = next(pair for pair in combinations(sorted(choice.chosen), 2) if fabric.speed[pair] == floor)
    link = choice.topology.link(*pair)
    if link.level is None:
        return ""
    through = "" if link.p2p in (None, "ok") else ", through host memory"
    return f" (slowest link of its best ring: {link.label}{through})"


def left_out(choice: Choice) -> Iterator[tuple[int, str]]:
    """Each GPU that is not chosen, with the reason."""
    for gpu in choice.topology.gpus:
        if gpu.index in choice.chosen:
            continue
        if gpu.index in choice.refused:
            yield gpu.index, choice.refused[gpu.index]
        elif gpu.index in choice.pool:
            yield gpu.index, f"not among the best-connected {len(choice.chosen)} of {len(choice.pool)}"
        else:
            own = next(group for group in choice.groups if gpu.index in group.indices)
            yield gpu.index, f"in another group ({own.label}) than the chosen one ({choice.groups[0].label})"


def too_many(choice: Choice, count: int) -> str:
    """What to say when more GPUs are asked for than there are to choose from."""
    text = f"{count} GPUs are asked for, {len(choice.pool)} can be used"
    if not choice.whole:
        text += f" in the {choice.superlative} group ({choice.groups[0].label})"
        if len(choice.groups) > 1:
            text += f"; --policy mixed adds {', '.join(group.label for group in choice.groups[1:])}"
    why = "; ".join(f"GPU {index} {words}" for index, words in choice.refused.items())
    return text + (f" (left out: {why})" if why else "")


def warnings(choice: Choice, count: int | None, device_order: str | None) -> Iterator[str]:
    """What the user should know about the choice. `device_order` is the value of CUDA_DEVICE_ORDER."""
    visible = choice.rules.visible
    if visible is not None and visible.problem:
        yield visible.problem
    unlike = len({gpu.name for gpu in choice.topology.gpus}) > 1
    if visible is not None and visible.by_index and unlike and device_order != "PCI_BUS_ID":
        yield (
            "CUDA_VISIBLE_DEVICES holds indices on a machine of unlike GPUs: CUDA itself counts the fastest GPU first"
            " unless CUDA_DEVICE_ORDER=PCI_BUS_ID; here they are read in PCI order, as nvidia-smi shows them"
        )
    for index in choice.rules.asked:
        user = busy(choice.topology.gpu(index))
        if user and not choice.rules.allow_busy:
            yield f"GPU {index} was asked for by name although it is busy: {user}"
    if len(choice.used) > 1:
        slow = min(choice.used, key=lambda group: estimate([choice.topology.gpu(group.indices[0])]) or 0.0)
        yield f"unlike GPUs work in step: with equal shards the slowest kind ({slow.name}) sets the pace of all"
    if not choice.whole and choice.policy == "largest" and count is None:
        yield from _faster_group(choice)


def _faster_group(choice: Choice) -> Iterator[str]:
    rate = choice.groups[0].throughput
    better = [group for group in choice.groups[1:] if rate and group.throughput and group.throughput > rate]
    if better:
        best = max(better, key=lambda group: group.throughput or 0.0)
        yield f"the smaller group {best.label} has a higher estimated peak throughput: --policy fastest takes it"
