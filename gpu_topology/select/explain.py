"""The reasons for a choice of GPUs in words: why these, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.eligibility import Rules
from gpu_topology.select.grouping import Group, peaks
from gpu_topology.select.visible import Device
from gpu_topology.topology import Topology


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen GPUs, and those that could be chosen.

    refused   GPUs that may not be used (NVML indices), with the reason
    groups    the groups among the others, best first
    pool      the candidates: the first group or, with `whole`, every usable GPU or the requested ones
    """

    topology: Topology
    rules: Rules
    policy: str
    refused: Mapping[int, str]
    groups: tuple[Group, ...]
    pool: tuple[Device, ...]
    chosen: tuple[Device, ...]
    whole: bool

    @property
    def indices(self) -> tuple[int, ...]:
        """The chosen GPUs, each once."""
        return tuple(dict.fromkeys(device.index for device in self.chosen))

    @property
    def used(self) -> tuple[Group, ...]:
        """The groups of the chosen devices."""
        return tuple(group for group in self.groups if self.taken_from(group))

    def taken_from(self, group: Group) -> int:
        """How many of the chosen devices belong to a group."""
        return sum(group.takes(device) for device in self.chosen)

    @property
    def slower(self) -> frozenset[Device]:
        """The candidates with a lower peak throughput than each chosen device."""
        speeds = peaks(self.pool, self.groups)
        least = min(speeds[device] for device in self.chosen)
        return frozenset(device for device, speed in speeds.items() if speed < least)

    @property
    def superlative(self) -> str:
        """The adjective for the first group."""
        return "fastest" if self.policy == "fastest" else "largest"


def group_label(choice: Choice) -> str:
    """ "NVIDIA A30 x 4"; of a mixed choice each part with the number taken from it."""
    if len(choice.used) == 1 and len(choice.chosen) <= len(choice.used[0].devices):
        return choice.used[0].label
    return " + ".join(f"{group.name} x {choice.taken_from(group)}" for group in choice.used)


def reason(choice: Choice) -> str:
    """Why these GPUs, in one line."""
    if choice.rules.asked:
        what = "the GPUs requested by name"
    elif choice.policy == "mixed":
        what = "every usable GPU (policy mixed)"
    elif len(choice.groups) == 1:
        what = f"the only group of identical GPUs: {choice.groups[0].label}"
    else:
        what = f"the {choice.superlative} group of identical GPUs{_what_decided(choice)}: {choice.groups[0].label}"
    if len(choice.chosen) < len(choice.pool):
        which = "fastest" if choice.slower else "best-connected"
        several = len(choice.chosen) > 1 or which == "fastest"
        what = f"the {which} {len(choice.chosen)} of {what}" if several else f"one of {what}"
    return what + _slowest_link(choice)


def _what_decided(choice: Choice) -> str:
    """Why this group won against one of the same size, or against a larger one; empty where it is simply the
    largest."""
    first, second = choice.groups[:2]
    if choice.policy != "largest":
        return ""
    if any(len(group.devices) > len(first.devices) for group in choice.groups):
        return " other than display cards"
    if len(first.devices) != len(second.devices) or second.for_display:
        return ""
    for word, of in _TIE_BREAKS:
        if of(first) != of(second):
            return f" (of groups of this size, {word})"
    return " (of groups of this size, the first in order)"


_TIE_BREAKS: tuple[tuple[str, Callable[[Group], object]], ...] = (
    ("the one with the most memory", lambda group: group.memory_gib),
    ("the one with the higher peak throughput", lambda group: group.throughput),
    ("the better connected one", lambda group: group.ring_gb_s),
)


def _slowest_link(choice: Choice) -> str:
    """The slowest link of the chosen GPUs' best ring, in brackets."""
    indices = choice.indices
    if len(indices) < 2:
        return ""
    fabric = Fabric(choice.topology, indices)
    floor = fabric.bottleneck(indices)
    slowest = (link for pair, link in fabric.links.items() if fabric.speed[pair] == floor)
    # Links of one speed may have different names: any known name will do.
    link = next((link for link in slowest if link.level is not None), None)
    if link is None:
        return ""
    peer = link.p2p in (None, "ok")
    words = link.label if peer else f"{link.label} without peer access, through host memory"
    return f" (slowest link of its best ring: {words})"


def left_out(choice: Choice) -> Iterator[tuple[int, str]]:
    """Each GPU that is not chosen, with the reason."""
    pool = {device.index for device in choice.pool}
    slower = {device.index for device in choice.slower}
    for gpu in choice.topology.gpus:
        if gpu.index in choice.indices:
            continue
        if gpu.index in choice.refused:
            yield gpu.index, choice.refused[gpu.index]
        elif gpu.index in pool:
            which = "fastest" if gpu.index in slower else "best-connected"
            yield gpu.index, f"not among the {which} {len(choice.chosen)} of {len(choice.pool)}"
        else:
            own = next(group for group in choice.groups if gpu.index in group.indices)
            kind = "a display card, " if own.for_display else ""
            yield gpu.index, f"{kind}in another group ({own.label}) than the chosen one ({choice.groups[0].label})"


def too_many(choice: Choice, count: int) -> str:
    """The error for a request of more GPUs than can be used."""
    text = f"{count} GPUs were requested, {len(choice.pool)} can be used"
    if not choice.whole:
        text += f" in the {choice.superlative} group ({choice.groups[0].label})"
        if len(choice.groups) > 1:
            text += f"; --policy mixed adds {', '.join(group.label for group in choice.groups[1:])}"
    if not choice.rules.asked and any(device.mig for device in choice.pool):
        text += "; a second slice of one GPU is taken only by name (--gpus MIG-...,MIG-...)"
    why = "; ".join(f"GPU {index} {words}" for index, words in choice.refused.items())
    return text + (f" (left out: {why})" if why else "")
