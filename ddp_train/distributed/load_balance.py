"""How a global batch is divided over ranks of unequal speed so that all finish a step together. Pure and torch-free.

A rank's step takes a + b x batch seconds. If every rank is ready at time T, rank r has (T - a_r) / b_r samples, and as
these add up to N, T = (N + sum a/b) / sum(1/b). A rank whose memory would not suffice gets as many samples as fit; a
rank whose fixed time a_r exceeds T gets none; and a rank that would not make the step 5% faster is left out: an even
split with a card more than twice as slow takes longer than the faster card alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddp_train.config.batch_split import split

GAIN = 0.05
"""A rank is admitted, and a division changed, only for a step that is faster by more than this."""
SURE = 0.2
"""A gain too large to be noise: the division is changed at once."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a step takes on one rank: `fixed` seconds and `each` seconds for a sample; at most `most` samples fit."""

    fixed: float
    each: float
    most: int | None = None

    def __call__(self, samples: int) -> float:
        """Seconds of a step with so many samples; 0 without samples."""
        return self.fixed + self.each * samples if samples else 0.0

    def slower(self, factor: float) -> Speed:
        """The same rank when everything takes `factor` times as long."""
        return Speed(self.fixed * factor, self.each * factor, self.most)


@dataclass(frozen=True, slots=True)
class Division:
    """Samples of each rank, and the seconds of a step that they are predicted to take, communication included."""

    samples: tuple[int, ...]
    seconds: float

    @property
    def idle(self) -> tuple[int, ...]:
        """Ranks that get no sample."""
        return tuple(rank for rank, samples in enumerate(self.samples) if not samples)


def divide(total: int, speeds: Sequence[Speed], communication: float = 0.0, *, joined: bool = True) -> Division:
    """Divide `total` samples over the ranks: whole numbers with that sum, each within its rank's limit.

    communication: seconds for the all-reduce of gradients. joined: ranks without samples take part in it too, as in a
    run that has begun; else one rank with all samples saves it. Errors: ValueError where the limits leave samples over.
    """
    if total < 1 or not speeds or any(speed.each <= 0 or speed.fixed < 0 for speed in speeds):
        raise ValueError(f"cannot divide {total} samples by {list(speeds)}")

    def of(ranks: Sequence[int]) -> Division | None:
        """The division over these ranks alone; None where the samples do not fit."""
        samples = _balanced(total, [speeds[rank] for rank in ranks])
        if samples is None:
            return None
        whole = dict(zip(ranks, samples, strict=True))
        found = tuple(whole.get(rank, 0) for rank in range(len(speeds)))
        pays = joined or sum(map(bool, found)) > 1
        return Division(found, seconds_of(found, speeds) + communication * pays)

    best, ranks = of(range(len(speeds))), list(range(len(speeds)))
    if best is None:
        most = sum(speed.most or 0 for speed in speeds)
        raise ValueError(f"{total} samples do not fit: the ranks have room for {most} together")
    fastest = best.seconds  # the best so far: else many ranks that each matter little would be dropped in turn
    for rank in sorted(ranks, key=lambda rank: -speeds[rank].each):
        without = of([other for other in ranks if other != rank]) if len(ranks) > 1 else None
        if without is not None and without.seconds < (1 + GAIN) * fastest:
            best, ranks = without, [other for other in ranks if other != rank]
            fastest = min(fastest, best.seconds)
    return best


def _balanced(total: int, speeds: Sequence[Speed]) -> list[int] | None:
    """Samples of each rank with which all are ready at the same time; None where they do not fit."""
    samples: dict[int, float] = {}
    free, left = list(range(len(speeds))), float(total)
    while free:
        ready = (left + sum(speeds[r].fixed / speeds[r].each for r in free)) / sum(1 / speeds[r].each for r in free)
        wanted = {r: (ready - speeds[r].fixed) / speeds[r].each for r in free}
        late = [r for r in free if wanted[r] <= 0]
        if late:  # the rest is ready sooner without them
            samples |= dict.fromkeys(late, 0.0)
            free = [r for r in free if r not in late]
            continue
        full = [r for r in free if wanted[r] > (most if (most := speeds[r].most) is not None else wanted[r])]
        if not full:
            samples |= wanted
            left = 0.0
            break
        for r in full:
            samples[r] = float(speeds[r].most or 0)
            left -= samples[r]
        free = [r for r in free if r not in full]
    if left > 1e-9 * total or sum(samples.values()) <= 0:
        return None
    return split(total, [samples[r] for r in range(len(speeds))])


def seconds_of(samples: Sequence[int], speeds: Sequence[Speed]) -> float:
    """Seconds of a step with these samples, without communication: those of the slowest rank."""
    return max(speed(count) for count, speed in zip(samples, speeds, strict=True))


def gain(before: Sequence[int], after: Sequence[int], speeds: Sequence[Speed], communication: float = 0.0) -> float:
    """Relative gain in throughput from one division to another: 0.05 is 5%."""
    old, new = (seconds_of(samples, speeds) + communication for samples in (before, after))
    return old / new - 1


@dataclass
class Hysteresis:
    """Allows a change whose gain was at least GAIN in two measurements in a row, or at least SURE in one: speeds are
    noisy, and a division that followed every measurement would never settle. `waiting`: such measurements in a row."""

    waiting: int = 0

    def decide(self, gain: float) -> bool:
        """Whether to change now, given the predicted gain of a change."""
        self.waiting = self.waiting + 1 if gain >= GAIN else 0
        if self.waiting < 2 and gain < SURE:
            return False
        self.waiting = 0
        return True
