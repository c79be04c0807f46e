"""Judges the trials on 1, 2, 4 ... ranks: where the time of more ranks goes, and how many ranks to use. Pure.

A rank's time is divided into input, other code of the program, blocked in communication, and computing. Blocked time
is waiting for others, as far as the times at which the ranks enter their collectives show it, else sending. A rank for
which the others wait is left out of the means: its additional work already counts as their waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from ddp_launch.scaling.trial import Observed, Trial

Kind = Literal["weak", "strong"]
CAUSES = ("input", "communication", "waiting", "fixed", "other")
LEAST_SHARE = 0.05
"""A smaller share of a step does not count as a cause."""
TIMES, HABIT = 2.0, 0.05
"""A rank holds the others up if their mean wait is TIMES as long as its own, and longer by this share of the time."""
GOOD_ENOUGH = 0.95
"""The smallest number of ranks with this share of the best throughput is recommended: runs differ by as much."""


@dataclass(frozen=True)
class Row:
    """A trial, judged. `shares`: shares of a step, by CAUSES and "computing"; `speed_up`: throughput relative to one
    rank; `possible`: the speed-up that the ranks' GPUs or CPU cores allow; `slow`: the rank that the others wait for;
    `queued`: the share of a step spent waiting for a CPU core; `ended`: the program ended by itself."""

    ranks: int
    steps: int
    steps_per_second: float
    speed_up: float
    possible: float
    shares: Mapping[str, float]
    slow: int | None = None
    slow_place: str = ""
    queued: float = 0.0
    ended: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        """The speed-up as a fraction of the possible one."""
        return self.speed_up / self.possible


@dataclass(frozen=True)
class Verdict:
    """`why`: reason for `kind`; `cause`: the main one of CAUSES on the most ranks, or None; `recommended`: ranks."""

    kind: Kind
    why: str
    rows: tuple[Row, ...]
    cause: str | None
    recommended: int


def judge(trials: Sequence[Trial], *, global_batch: bool | None, cores: int) -> Verdict:
    """The verdict. `trials`: from one rank upwards; `global_batch`: whether the program is known to divide the same
    batch among its ranks, None for a user's program; `cores`: the number of CPU cores that may be used."""
    kind, why = _kind(trials, global_batch)
    one = trials[0]
    alone = _times(one, one, kind, cores)
    rows = tuple(_times(trial, one, kind, cores, alone) for trial in trials)
    best = max(row.speed_up for row in rows)
    recommended = next(row.ranks for row in rows if row.speed_up >= GOOD_ENOUGH * best)
    last = rows[-1]
    cause = max(CAUSES, key=lambda name: last.shares[name])
    return Verdict(kind, why, rows, cause if last.shares[cause] >= LEAST_SHARE else None, recommended)


def _kind(trials: Sequence[Trial], global_batch: bool | None) -> tuple[Kind, str]:
    if global_batch is not None:
        text = "its --batch-size is that of all ranks together" if global_batch else "--batch-size-per-rank was given"
        return ("strong" if global_batch else "weak"), text
    first, last = ({size for seen in trial.observed for size in seen.batches} for trial in (trials[0], trials[-1]))
    ranks = trials[-1].ranks
    if ranks > 1 and first and first == {size * ranks for size in last}:
        return "strong", f"its loader has batches of {_list(first)} on one rank, of {_list(last)} on {ranks}"
    if first and first == last:
        return "weak", f"its loader has batches of {_list(first)} on each rank, however many there are"
    return "weak", "its batches are not known, and most programs keep the batch per rank fixed"


def _list(sizes: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))


def _possible(trial: Trial, one: Trial, cores: int) -> float:
    """The highest speed-up over one rank that the GPUs or CPU threads of this trial allow."""
    if any(seen.cuda for seen in trial.observed):
        return float(trial.ranks)
    alone = min(cores, one.observed[0].threads)
    return max(1.0, min(cores, sum(seen.threads for seen in trial.observed)) / alone)


@dataclass(frozen=True)
class _Rank:
    """A rank's time, divided into shares."""

    parts: Mapping[str, float]
    blocked: float
    queued: float
    seen: Observed


def _times(trial: Trial, one: Trial, kind: Kind, cores: int, alone: Row | None = None) -> Row:
    """The row of a trial. `alone`: the row of the trial on one rank, None while that row itself is made."""
    several = trial.ranks > 1
    baseline = _blocked_in_backward(one.observed[0])
    ranks = [_rank(seen, several, baseline) for seen in trial.observed]
    rate = min(seen.steps / seen.seconds for seen in trial.observed)
    waits = _waits(ranks) if several else [0.0]
    slow = _slow(waits)
    counted = [index for index in range(len(ranks)) if index != slow]
    mean = {name: fmean(ranks[i].parts[name] for i in counted) for name in ranks[0].parts}
    waiting = fmean(waits[i] for i in counted)
    sending = max(0.0, fmean(ranks[i].blocked for i in counted) - waiting)
    possible = _possible(trial, one, cores)
    work = 1.0 if kind == "strong" else float(trial.ranks)
    speed_up = 1.0
    fixed = 0.0
    if alone is not None:
        speed_up = rate * (trial.ranks if kind == "weak" else 1) / alone.steps_per_second
        ideal = alone.shares["computing"] / alone.steps_per_second * work / possible  # seconds of a step
        fixed = min(mean["computing"], max(0.0, mean["computing"] - ideal * rate))
    shares = {
        "input": mean["input"],
        "communication": sending,
        "waiting": waiting,
        "fixed": fixed,
        "other": mean["other"],
        "computing": mean["computing"] - fixed,
    }
    return Row(
        ranks=trial.ranks,
        steps=min(seen.steps for seen in trial.observed),
        steps_per_second=rate,
        speed_up=speed_up,
        possible=possible,
        shares=shares,
        slow=slow,
        slow_place="" if slow is None else _more(ranks, slow),
        queued=fmean(ranks[i].queued for i in counted),
        ended=trial.ended,
        places={name: _place(ranks[counted[0]].seen, name) for name in ("input", "other")},
    )


def _blocked_in_backward(one: Observed) -> float:
    """Blocked time of backward passes divided by their other time, on one rank, where it is no wait for other ranks."""
    whole, blocked, _ = one.spent.get("backward", (0.0, 0.0, 0.0))
    return blocked / (whole - blocked) if whole > blocked else 0.0


def _rank(seen: Observed, several: bool, baseline: float) -> _Rank:
    whole = sum(all_s for all_s, _, _ in seen.spent.values()) or 1.0
    of = {kind: (all_s / whole, blocked / whole) for kind, (all_s, blocked, _) in seen.spent.items()}
    input_, other = (of.get(kind, (0.0, 0.0))[0] for kind in ("input", "other"))
    blocked = 0.0
    if several and seen.cuda:
        # The host runs ahead of its GPU: its own times say nothing about what the GPU waits for.
        blocked = min(1.0 - input_, seen.exposed * seen.steps / seen.seconds)
        other = 0.0
    elif several:
        backward, idle = of.get("backward", (0.0, 0.0))
        blocked = of.get("communication", (0.0, 0.0))[0] + max(0.0, idle - baseline * (backward - idle))
    if seen.cuda:
        other = 0.0
    queued = sum(queued for _, _, queued in seen.spent.values()) / whole
    parts = {"input": input_, "other": other, "computing": max(0.0, 1.0 - input_ - other - blocked)}
    return _Rank(parts, blocked, queued, seen)


def _waits(ranks: Sequence[_Rank]) -> list[float]:
    """The share of its time that each rank waits for others, by the times at which the ranks enter their collectives.
    Where these times are unknown, or are those of a GPU's host, it is the share by which the rank is blocked more than
    the least blocked rank."""
    if all(rank.seen.waited is not None and not rank.seen.cuda for rank in ranks):
        return [min(rank.blocked, rank.seen.waited or 0.0) for rank in ranks]
    least = min(rank.blocked for rank in ranks)
    return [rank.blocked - least for rank in ranks]


def _slow(waits: Sequence[float]) -> int | None:
    """The rank that the others wait for."""
    if len(waits) < 2:
        return None
    rank = min(range(len(waits)), key=waits.__getitem__)
    others = fmean(wait for index, wait in enumerate(waits) if index != rank)
    return rank if others >= waits[rank] + HABIT and others >= TIMES * waits[rank] else None


def _more(ranks: Sequence[_Rank], slow: int) -> str:
    """What a slow rank spends more time on than the others, and where."""
    others = [rank.parts for index, rank in enumerate(ranks) if index != slow]
    more = {name: share - fmean(parts[name] for parts in others) for name, share in ranks[slow].parts.items()}
    name = max(more, key=lambda one: more[one])
    queued = ranks[slow].queued - fmean(rank.queued for index, rank in enumerate(ranks) if index != slow)
    if queued > more[name] / 2:
        return f"{queued:.0%} more of its time in wait of a free CPU core"
    words = {"input": "loading data", "other": "other code"}.get(name, "computing")
    place = _place(ranks[slow].seen, name)
    return f"{more[name]:.0%} more of its time in {words}" + (f", most at {place}" if place else "")


def _place(seen: Observed, kind: str) -> str:
    """The line of code that takes most of the time of a kind of work."""
    kinds = ("forward", "backward", "optimizer") if kind == "computing" else (kind,)
    found = [entry for one in kinds for entry in seen.places.get(one, ()) if entry[0]]
    return max(found, key=lambda entry: entry[1], default=("", 0.0))[0]
