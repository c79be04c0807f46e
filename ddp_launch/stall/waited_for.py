"""Which rank the others wait for, from the times at which ranks enter the collectives.

The last rank to enter delays the others by the time since the rank before it entered. Where several collectives are
started without waiting in between, as DistributedDataParallel does in backward, the same delay shows in each of them:
only the additional delay counts. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ddp_launch.stall.record import Collective, Record

LEAST_SHARE = 0.05
LEAST_STEPS = 10
LEAST_NS = 1_000_000_000
TIMES = 2.0
"""A rank must delay the others this many times as long as any other rank does: each is last at times by chance."""
WARM_UP = 8
"""The first collectives of a group are not counted: libraries are loaded and kernels chosen in them."""
LONGEST_PERIOD = 600
AGREEMENT, LEAST_AGREEMENT = 0.85, 0.5


@dataclass(frozen=True)
class WaitedFor:
    """`rank` made the others wait `ms` a step, `share` of the time. steps: the number of steps measured; waited: each
    rank's share of time spent waiting."""

    rank: int
    ms: float
    share: float
    steps: int
    waited: Mapping[int, float] = field(default_factory=dict)


@dataclass
class _Group:
    """The sums of a process group. late_ns, longest_ns: how late each rank was, in all and at most; waited_ns: how long
    it waited for others; seen, until_ns: the last number that was counted, and when the last rank entered it."""

    late_ns: Counter[int] = field(default_factory=Counter)
    waited_ns: Counter[int] = field(default_factory=Counter)
    longest_ns: Counter[int] = field(default_factory=Counter)
    time_ns: int = 0
    until_ns: int = 0
    steps: float = 0.0
    seen: int = WARM_UP


class Arrivals:
    """Adds up the records of this machine's ranks."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}

    def add(self, records: Mapping[int, Record]) -> None:
        """Add the ranks' collectives; those that were added before are skipped."""
        groups = {group for record in records.values() for group in record.collectives}
        for group in groups:
            entered = {
                rank: {one.seq: one for one in record.collectives[group]}
                for rank, record in records.items()
                if group in record.collectives
            }
            if len(entered) > 1:
                _count(self._groups.setdefault(group, _Group()), entered)

    def waited(self) -> dict[int, float]:
        """The share of the time for which each rank has waited for others; {} where nothing is known."""
        shares: Counter[int] = Counter()
        for group in self._groups.values():
            for rank in group.waited_ns if group.time_ns else ():
                shares[rank] += group.waited_ns[rank] / group.time_ns  # type: ignore[assignment]
        return dict(shares)

    @property
    def seconds(self) -> float:
        """How long the ranks have been seen in their collectives."""
        return max((group.time_ns for group in self._groups.values()), default=0) / 1e9

    def found(self) -> WaitedFor | None:
        """The rank that made the others wait most; None where no rank stands out."""
        found = [one for group in self._groups.values() if (one := _found(group)) is not None]
        return max(found, key=lambda one: one.share, default=None)


def _found(group: _Group) -> WaitedFor | None:
    """The rank of this group that made the others wait, if it matters."""
    # A single delay is no pattern: the longest of each rank is left out.
    (rank, late), *others = (group.late_ns - group.longest_ns).most_common() or [(0, 0)]
    if group.steps < LEAST_STEPS or group.time_ns < LEAST_NS or (others and late < TIMES * others[0][1]):
        return None
    share, ms = late / group.time_ns, late / group.steps / 1e6
    waited = {one: ns / group.time_ns for one, ns in group.waited_ns.items()}
    return WaitedFor(rank, ms, share, round(group.steps), waited) if share > LEAST_SHARE else None


PHASES = {"input": "data", "forward": "forward", "backward": "backward", "communication wait": "communication"}
"""Names of the shares of a trainer's rank -> phases of ddp_train/distributed/heartbeat.py."""


def by_its_own_steps(found: WaitedFor, record: Record) -> WaitedFor:
    """The finding per step of the bundled trainer, which counts its steps: what repeats in its collectives may be
    epochs."""
    if record.steps < LEAST_STEPS:
        return found
    step_ms = sum(record.spent_ns.values()) / record.steps / 1e6
    return replace(found, ms=found.share * step_ms, steps=record.steps)


def shares(record: Record, waited: float) -> dict[str, float]:
    """Phase -> share of a rank's time, for the bundled trainer; {} for another program. `waited`: the share of waiting
    by the times of arrival. The trainer itself counts a wait inside backward as backward."""
    spent = {name: record.spent_ns.get(phase, 0) for name, phase in PHASES.items()}
    whole = sum(record.spent_ns.get(phase, 0) for phase in (*PHASES.values(), "step"))
    if not whole:
        return {}
    found = {name: ns / whole for name, ns in spent.items()}
    hidden = min(max(0.0, waited - found["communication wait"]), found["backward"])
    found["backward"] -= hidden
    found["communication wait"] += hidden
    return found


def _count(group: _Group, entered: Mapping[int, Mapping[int, Collective]]) -> None:
    """Add the collectives that all ranks of the group entered since the last call: which rank came last, and how
    late."""
    common = sorted(set.intersection(*(set(entries) for entries in entered.values())))
    numbers = [seq for seq in common if seq > group.seen]
    if len(numbers) < 2:
        return
    lag_ns, late_rank, came_ns = 0, -1, 0
    for seq in numbers:
        times = sorted((entries[seq].at_ns, rank) for rank, entries in entered.items())
        (before, _), (last, rank) = times[-2:]
        gap = last - before
        # Started before the late rank had entered the previous collective: no rank has waited for it in between.
        counted = lag_ns if rank == late_rank and before < came_ns else 0
        late = max(0, gap - counted)
        group.late_ns[rank] += late
        for at, other in times[:-1]:
            group.waited_ns[other] += max(0, last - at - counted)
        group.longest_ns[rank] = max(group.longest_ns[rank], late)
        lag_ns, late_rank, came_ns = gap, rank, last
    first = next(iter(entered.values()))
    if numbers[0] != group.seen + 1 or not group.until_ns:
        group.until_ns = max(entries[numbers[0]].at_ns for entries in entered.values())
    until_ns = max(entries[numbers[-1]].at_ns for entries in entered.values())
    group.time_ns, group.until_ns = group.time_ns + until_ns - group.until_ns, until_ns
    group.steps += len(numbers) / period([(first[seq].name, first[seq].sizes) for seq in numbers])
    group.seen = numbers[-1]


def period(calls: Sequence[object]) -> int:
    """How many collectives make a step: the distance after which the same ones repeat, at least ten times; 1 where they
    do not repeat. An occasional evaluation does no harm."""
    numbers = {call: number for number, call in enumerate(dict.fromkeys(calls))}
    codes = [numbers[call] for call in calls]
    best, length_of_best = LEAST_AGREEMENT, 1
    for length in range(1, min(len(codes) // LEAST_STEPS, LONGEST_PERIOD) + 1):
        agreement = sum(map(int.__eq__, codes, codes[length:])) / (len(codes) - length)
        if agreement >= AGREEMENT:
            return length
        if agreement > best:
            best, length_of_best = agreement, length
    return length_of_best
