"""What the measurements are held to: a table of goals, each with its bound and where a result has its figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Read = Callable[[Result], float]
"""The figure of a result; KeyError or StopIteration where it has none."""


@dataclass(frozen=True)
class Goal:
    """One figure of one benchmark, with one bound.

    least: of several results the lowest figure counts, not that of the last one by name.
    why: the known reason where the goal is missed.
    """

    benchmark: str
    figure: str
    read: Read
    at_least: float | None = None
    at_most: float | None = None
    form: str = ".2f"
    least: bool = False
    why: str = ""

    def held(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


def table(results: Mapping[str, Result], made_by: Callable[[str, Result], bool]) -> list[str]:
    """Markdown lines: every goal with the newest figure there is. made_by(benchmark, result): whose result it is."""
    lines = ["| goal | asked | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        values = []
        for result in results.values():
            if made_by(goal.benchmark, result):
                try:
                    values.append(goal.read(result))
                except (KeyError, StopIteration):
                    continue
        shown = "not yet measured | |"
        if values:
            value = min(values) if goal.least else values[-1]
            word = "held" if goal.held(value) else "missed" + (f": {goal.why}" if goal.why else "")
            shown = f"{value:{goal.form}} | {word} |"
        bound = f"at least {goal.at_least:g}" if goal.at_least is not None else f"at most {goal.at_most:g}"
        lines.append(f"| {goal.figure} ({goal.benchmark}) | {bound} | {shown}")
    return lines


def _median(*path: str) -> Read:
    """The median at a path of keys."""

    def read(result: Result) -> float:
        found: Any = result
        for key in path:
            found = found[key]
        return float(found["median"])

    return read


def _ranks(model: str, figure: str) -> Read:
    return _median("models", model, figure)


def _cpu_speed(model: str, *path: str, beside: bool = False) -> Read:
    """A median of cpu_speed, of the quiet machine or of the one with busy processes beside it."""

    def read(result: Result) -> float:
        if ("--beside" in result["command"]) is not beside:
            raise KeyError("measured on the other kind of machine")
        return _median("models", model, *path)(result)

    return read


def _slower(times: int) -> Read:
    return lambda result: next(float(row["ratio"]) for row in result["results"] if row["slower"] == times)


def _clean(result: Result, *, preset: bool) -> list[list[dict[str, Any]]]:
    """The undisturbed runs of the preset or of its peers, by kind of run, where there are at least three."""
    kinds = [runs for name, runs in result["runs"].items() if name.startswith("--preset") is preset]
    clean = [[run for run in runs if not run["disturbed"]] for runs in kinds]
    return [runs for runs in clean if len(runs) >= 3]


def _seconds_to(accuracy: float) -> Read:
    """The mean time of the epochs of the shortest kind of run with a mean accuracy of at least `accuracy`."""

    def read(result: Result) -> float:
        kinds = _clean(result, preset=True)
        reached = [runs for runs in kinds if statistics.fmean(run["test_accuracy"] for run in runs) >= accuracy]
        if not reached:
            raise KeyError("no such run")
        return min(statistics.fmean(run["epoch_seconds"] for run in runs) for runs in reached)

    return read


def sooner_to(accuracy: float) -> Read:
    """How many times the preset's time to an accuracy fits into that of the peer's runs.

    A run of the peer that did not reach it counts with all of its time: the true ratio is larger.
    """

    def read(result: Result) -> float:
        times = [_time_to(accuracy, run["epochs"]) for runs in _clean(result, preset=False) for run in runs]
        if not times:
            raise KeyError("no such run")
        return statistics.fmean(times) / _seconds_to(accuracy)(result)

    return read


def _time_to(accuracy: float, epochs: list[dict[str, float]]) -> float:
    """Seconds up to the end of the first epoch that reached it, or of the last."""
    spent = 0.0
    for epoch in epochs:
        spent += epoch["seconds"]
        if epoch["test_accuracy"] >= accuracy:
            break
    return spent


def _over_report(case: str, delay_us: int) -> Read:
    """The median ratio to our report of a case of topology_peers, where each call of the driver takes so long."""
    where = [f"{delay_us} µs a call", case]
    return lambda result: next(float(str(row[3]).split()[0]) for row in result["table"]["rows"] if row[:2] == where)


ONE, APART, SPIN = "two_ranks_over_one_process", "two_ranks_over_two_apart", "short_spin_over_the_usual"
BEST = ("over_naive", "channels_last, malloc, short spin")
WAITING = (
    "each step waits for the slower of two ranks, an independent process waits for none; and the cores that compute "
    "also copy and add up the gradients, 11 million for resnet18"
)
WAKING = "a thread that sleeps takes a while to wake; beside a busy process the gain is many times that (next row)"
LINKS = "the report asks for every link and for the peer access of every pair; nvitop shows neither"

# fmt: off
GOALS: tuple[Goal, ...] = (
    Goal("input_pipeline", "times the best DataLoader, with erasing",
         _median("with_erasing", "times_the_best_loader"), at_least=15, form=".1f"),
    Goal("input_pipeline", "times the best DataLoader, without erasing",
         _median("without_erasing", "times_the_best_loader"), at_least=25, form=".1f"),
    Goal("step_overhead", "CPU µs of a step above a bare loop",
         _median("over_bare_us", "trainer"), at_most=50, form=".0f"),
    Goal("start_up", "seconds to the first step above bare torchrun with a process group",
         _median("over_torchrun_s", "launch.py"), at_most=1.5, form=".1f"),
    Goal("cpu_speed", "times the naive loop on a CPU, speedrun at full width",
         _cpu_speed("speedrun", *BEST), at_least=1.2),
    Goal("cpu_speed", "times the naive loop on a CPU, small",
         _cpu_speed("small", *BEST), at_least=1.4),
    Goal("cpu_speed", "a short spin of OpenMP's threads over the usual one, small, quiet machine",
         _cpu_speed("small", SPIN), at_least=0.98, why=WAKING),
    Goal("cpu_speed", "the same beside another busy process",
         _cpu_speed("small", SPIN, beside=True), at_least=1.2),
    Goal("ddp_scaling", "two ranks over one process of two threads, small",
         _ranks("small", ONE), at_least=1.0, form=".3f"),
    Goal("ddp_scaling", "two ranks over two independent processes, small",
         _ranks("small", APART), at_least=0.93, form=".3f", why=WAITING),
    Goal("ddp_scaling", "two ranks over one process of two threads, resnet18",
         _ranks("resnet18", ONE), at_least=0.95, form=".3f", why="as above"),
    Goal("ddp_scaling", "two ranks over two independent processes, resnet18",
         _ranks("resnet18", APART), at_least=0.93, form=".3f", why="as above"),
    Goal("ddp_scaling", "two ranks over one process of two threads, speedrun at full width",
         _ranks("speedrun", ONE), at_least=0.95, form=".3f"),
    Goal("ddp_scaling", "two ranks over two independent processes, speedrun at full width",
         _ranks("speedrun", APART), at_least=0.93, form=".3f"),
    Goal("mixed_ranks", "times the even split, one rank 2 times slower", _slower(2), at_least=1.38),
    Goal("mixed_ranks", "times the even split, 3 times slower", _slower(3), at_least=1.75),
    Goal("mixed_ranks", "times the even split, 4 times slower", _slower(4), at_least=2.2),
    Goal("checkpoint_cost", "share of the training time at the default interval",
         lambda result: float(result["share_at_the_default_interval"]), at_most=0.02, form=".5f"),
    Goal("time_to_accuracy", "seconds of epochs to 79% on two cores, mean of the seeds",
         _seconds_to(0.79), at_most=45, form=".0f", least=True),
    Goal("time_to_accuracy", "seconds of epochs to 88.5%", _seconds_to(0.885), at_most=300, form=".0f", least=True),
    Goal("time_to_accuracy", "seconds of epochs to 90.5%", _seconds_to(0.905), at_most=540, form=".0f", least=True),
    Goal("time_to_accuracy", "seconds of epochs to 93%", _seconds_to(0.93), at_most=2100, form=".0f", least=True),
    Goal("time_to_accuracy", "times sooner to 80% than the Lightning program", sooner_to(0.8), at_least=5, form=".1f"),
    Goal("time_to_accuracy", "times sooner to 88%, at least", sooner_to(0.88), at_least=5, form=".1f"),
    Goal("topology_peers", "times our report that nvitop -1 takes, where the driver answers at once",
         _over_report("nvitop -1", 0), at_least=1.0),
    Goal("topology_peers", "the same where it takes 200 µs a call",
         _over_report("nvitop -1", 200), at_least=1.0, why=LINKS),
    Goal("topology_peers", "times our report that gpustat --json takes",
         _over_report("gpustat --json", 0), at_least=1.0),
)
# fmt: on
