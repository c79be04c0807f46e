"""Finds the per-rank batch: measures a few steps, predicts the limit by a straight line through their memory, and
confirms the largest batch that fits by trying it.

Data flow: `find_batch_size` runs steps of doubling size -> `Trial`s -> memory = a + b x batch, time = a + b x batch
(`Line`) -> the largest batch within the limit less a margin, confirmed by a step of it -> `choose`: the smallest batch
within 3% of the best throughput (a larger one buys nothing), or the one that reaches the asked utilisation. All ranks
take the same sizes and find the same: after each trial they agree on the worst of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from ddp_core.errors import UserError
from ddp_train.distributed.process_group import wait_for_device
from ddp_train.engine.oom_retry import is_out_of_memory
from ddp_train.tune.memory import Memory, memory_of
from ddp_train.tune.preserve import Part, preserved, release_memory
from ddp_train.tune.steps import Line, fit, largest_over_ranks

MARGIN = 0.1
"""Share of the memory to leave free: a real step fragments it, and libraries need some."""
TOLERANCE = 0.03
PARTS = 8
"""The range between two powers of two is divided into so many steps."""
_REPEATS, _LEAST_REPEATS = 9, 3
_ENOUGH_S = 0.5


@dataclass(frozen=True)
class Trial:
    """One per-rank batch: whether it fits (on every rank, with the margin), the peak in bytes and the seconds of a
    step (of the worst rank; None: not known), and the GPU's utilisation in percent."""

    batch: int
    fits: bool
    peak: int | None = None
    seconds: float | None = None
    utilization: float | None = None


@dataclass(frozen=True)
class Found:
    """What was measured. Batches are per rank; `memory` in bytes and `time` in seconds are lines over the batch.

    largest: the largest that fits, or the last one tried where `ended` is not "memory" ("limit": no larger one was
    asked for; "time": there was none left). target: the utilisation in percent that was asked for, None without.
    """

    trials: tuple[Trial, ...]
    largest: int
    recommended: int
    reason: str
    ended: str
    ranks: int = 1
    limit: int | None = None
    memory: Line | None = None
    time: Line | None = None
    target: float | None = None


def find_batch_size(
    step: Callable[[int], object],
    *,
    target_utilization: float | None = None,
    probe: Callable[[int], object] | None = None,
    smallest: int = 1,
    largest: int | None = None,
    margin: float = MARGIN,
    time_limit_s: float = 60.0,
    memory: Memory | None = None,
    device: torch.device | str | None = None,
    utilization: Callable[[], float | None] | None = None,
    keep: Sequence[Part] = (),
) -> Found:
    """The per-rank batch for training steps `step(batch)`.

    target_utilization: percent, or a fraction below 1; the smallest batch that reaches it is recommended. probe: the
    step without any collective, for several ranks: one that runs out of memory must not leave the others waiting.
    largest: no batch above it is tried. memory: by default that of `device` (by default the current GPU, or the host).
    utilization: reads the GPU's in percent; without it, the share of the step time that grows with the
    batch, by the line through the times, is used. keep: the objects that `step` changes; they are restored bit for
    bit, as are the random generators, and nothing of the trials stays in memory.

    Errors: UserError where not even `smallest` fits, or an option is out of range; errors of `step` as they are.
    """
    target = _percent(target_utilization)
    if not (1 <= smallest <= (largest or smallest) and 0 <= margin < 1):
        raise UserError(f"smallest {smallest}, largest {largest}, margin {margin}: not a range of batches")
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    search = _Search(step, probe or step, memory or memory_of(where), where, margin, time_limit_s, utilization)
    with preserved(*keep):
        ended = search.run(smallest, largest)
    trials = tuple(sorted(search.trials.values(), key=lambda trial: trial.batch))
    time_line = fit([(t.batch, t.seconds) for t in trials if t.seconds is not None])
    recommended, reason = choose(trials, target, time_line)
    return Found(
        trials=trials,
        largest=max(trial.batch for trial in trials if trial.fits),
        recommended=recommended,
        reason=reason,
        ended=ended,
        ranks=dist.get_world_size() if dist.is_initialized() else 1,
        limit=search.limit,
        memory=search.line,
        time=time_line,
        target=target,
    )


def choose(trials: Sequence[Trial], target: float | None, time_line: Line | None = None) -> tuple[int, str]:
    """The batch to take among those that fit, and why. target: utilisation in percent, None: by throughput alone."""
    fitting = [trial for trial in trials if trial.fits]
    timed = [(trial.batch / trial.seconds, trial.batch) for trial in fitting if trial.seconds]
    if not timed:
        return fitting[-1].batch, "the largest that fits; there was no time to measure its speed"
    best = max(speed for speed, _ in timed)
    chosen = min(batch for speed, batch in timed if speed >= (1 - TOLERANCE) * best)
    largest = chosen == max(batch for _, batch in timed)
    beyond = ", and the largest that was timed" if largest else ": a larger batch buys nothing"
    reason = f"the smallest within {TOLERANCE:.0%} of the best throughput{beyond}"
    if target is None:
        return chosen, reason
    told = {trial.batch: trial.utilization for trial in fitting if trial.utilization is not None}
    how = "utilisation as the driver reports it"
    if not told and time_line is not None and time_line.slope > 0:
        told = {t.batch: 100 * t.batch * time_line.slope / time_line(t.batch) for t in fitting}
        how = "the share of a step that grows with the batch stands for utilisation, which is not reported here"
    reaching = [batch for batch, percent in told.items() if percent >= target]
    if reaching:
        return min(reaching), f"the smallest that reaches {target:.0f}% ({how})"
    if not told:
        return chosen, f"{reason}; utilisation is not known here"
    return chosen, f"{reason}; none reaches {target:.0f}%, the highest was {max(told.values()):.0f}% ({how})"


@dataclass
class _Search:
    """The trials so far, the same on all ranks."""

    step: Callable[[int], object]
    probe: Callable[[int], object]
    memory: Memory
    device: torch.device
    margin: float
    time_limit_s: float
    utilization: Callable[[], float | None] | None
    trials: dict[int, Trial] = field(default_factory=dict)
    line: Line | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        known = self.memory.limit
        least = -largest_over_ranks(self.device, -math.inf if known is None else -float(known))[0]
        self.limit = None if math.isinf(least) else int(least)

    def run(self, smallest: int, largest: int | None) -> str:
        """Double the batch, then narrow the limit down; returns why the search ended."""
        self._run(self.probe, smallest)  # allocates what only a first step does: optimizer state, kernels, workspaces
        size = smallest
        while True:
            if not self._try(size).fits:
                if size == smallest:
                    room = "" if self.limit is None else f" ({(1 - self.margin) * self.limit / 2**20:,.0f} MiB)"
                    raise UserError(f"not even a batch of {smallest} per rank fits into memory{room}")
                break
            if size == largest:
                return "limit"
            following = min(2 * size, largest or 2 * size)
            if self._too_late(following):
                return "time"
            # Running out of host memory may end more than this process: try only what the memory line allows.
            limit = self._predicted() if len(self.trials) >= 3 else None
            if limit is not None and following > 1.05 * limit:
                break
            size = following
        ended = self._close_in(largest)
        predicted = self._predicted()
        if any(b <= (predicted or math.inf) for b, t in self.trials.items() if not t.fits and t.peak is None):
            self._step_back(smallest)
        return ended

    def _close_in(self, largest: int | None) -> str:
        """Search between the largest that fits and the smallest that does not: first where the line points, then by
        halving."""
        low = max(batch for batch, trial in self.trials.items() if trial.fits)
        high = min([batch for batch, trial in self.trials.items() if not trial.fits], default=2 * low)
        grid = [size for size in sizes_between(low, high) if largest is None or size <= largest]
        while grid:
            guess = self._predicted()
            below = [size for size in grid if guess is not None and size <= guess]
            at = len(below) - 1 if below else len(grid) // 2
            if guess is not None and not below:
                at = 0
            if self._too_late(grid[at]):
                return "time"
            grid = grid[at + 1 :] if self._try(grid[at]).fits else grid[:at]
        return "memory"

    def _step_back(self, smallest: int) -> None:
        """Where memory ran out below its known limit, apply the margin to the batch instead."""
        ran = max(batch for batch, trial in self.trials.items() if trial.fits)
        size = max(smallest, math.floor((1 - self.margin) * ran))
        if size not in self.trials:
            self._try(size)
        self.trials |= {b: replace(t, fits=False) for b, t in self.trials.items() if b > size}

    def _try(self, size: int) -> Trial:
        """Try a batch size on all ranks: whether it fits, its memory and time."""
        self.memory.reset()
        ran = self._run(self.probe, size)
        peak = self.memory.peak() if ran else None
        failed, most = largest_over_ranks(self.device, float(not ran), -1.0 if peak is None else float(peak))
        peak = int(most) if most >= 0 and not failed else None
        fits = not failed and (peak is None or self.limit is None or peak <= (1 - self.margin) * self.limit)
        if not fits:
            release_memory()
        seconds, utilization = self._time(size) if fits else (None, None)
        trial = self.trials[size] = Trial(size, fits, peak, seconds, utilization)
        known = [(t.batch, float(t.peak)) for t in self.trials.values() if t.peak is not None]
        # Only the larger trials: in smaller ones the allocator's granularity hides the slope.
        self.line = fit(sorted(known)[-3:]) if len(known) >= 2 else None
        return trial

    def _run(self, step: Callable[[int], object], size: int) -> bool:
        """Run a step of this size; returns whether it fit. If not, the memory that it took is released."""
        try:
            step(size)
            wait_for_device(self.device)
        except Exception as error:
            if not is_out_of_memory(error, self.device):
                raise
            error.__traceback__ = None  # its frames hold the tensors of the step
            release_memory()
            return False
        return True

    def _time(self, size: int) -> tuple[float, float | None]:
        """Median seconds of a step over all ranks together, and the utilisation meanwhile."""
        enough = 2 * _ENOUGH_S if self.utilization is not None else _ENOUGH_S
        taken: list[float] = []
        while len(taken) < _LEAST_REPEATS or (len(taken) < _REPEATS and sum(taken) < enough):
            begun = time.perf_counter()
            self.step(size)
            wait_for_device(self.device)
            # All ranks make the same number of steps: within a step each may wait for the others.
            taken += largest_over_ranks(self.device, time.perf_counter() - begun)
        percent = self.utilization() if self.utilization is not None else None
        known = largest_over_ranks(self.device, -1.0 if percent is None else percent)[0]
        return statistics.median(taken), None if known < 0 else known

    def _predicted(self) -> float | None:
        """The batch at which the line meets the limit less the margin."""
        if self.limit is None or self.line is None or self.line.slope <= 0:
            return None
        return ((1 - self.margin) * self.limit - self.line.intercept) / self.line.slope

    def _too_late(self, size: int) -> bool:
        """Whether timing this size would exceed the time limit on any rank."""
        elapsed = time.monotonic() - self.started
        timed = [(t.batch, t.seconds) for t in self.trials.values() if t.seconds is not None]
        line = fit(timed[-3:]) if len(timed) >= 2 else None
        coming = (1 + _LEAST_REPEATS) * max(0.0, line(size)) if line is not None else 0.0
        return largest_over_ranks(self.device, elapsed + coming)[0] > self.time_limit_s


def sizes_between(low: int, high: int) -> list[int]:
    """The batches above `low` and below `high` that are worth a trial: in steps of an eighth of `low`."""
    step = max(1, low // PARTS)
    return list(range(low + step, high, step))


def _percent(target: float | None) -> float | None:
    """The target as a percentage. Errors: UserError."""
    if target is None:
        return None
    percent = 100 * target if target < 1 else target
    if not 0 < percent <= 100:
        raise UserError(f"target utilisation {target}: takes percent up to 100, or a fraction below 1")
    return float(percent)
