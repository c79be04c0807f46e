"""Repeats the kept measurements in short forms and compares with the recorded ratios: `python -m benchmarks check`.

Ratios within a round are compared, never times, so that another machine of the same kind may check. Each ratio says how
many times better we are: more is better. It has fallen behind if even the upper quartile of the new rounds is below the
recorded median by more than three times the spread of the recorded rounds (at least 10%, 33% where no spread was kept),
twice in a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.catalogue import CATALOGUE, made_by
from benchmarks.machine import ROOT
from benchmarks.report import plain_text
from benchmarks.turns import Spread
from ddp_core.errors import UserError

Result = Mapping[str, Any]
Ratios = dict[str, Spread]
LEAST, TIMES, MOST, WITHOUT_SPREAD = 0.10, 3.0, 0.5, 0.33
LIMIT_S = 900.0
"""Time limit of one measurement: on a busy machine it tries three times as many rounds."""


@dataclass(frozen=True)
class Short:
    """The short form of a measurement. `words`: its options; `read`: yields the ratios that a result has."""

    benchmark: str
    words: str
    read: Callable[[Result], Iterable[tuple[str, Spread]]]

    def ratios(self, result: Result) -> Ratios:
        """The ratios of a result by name; {} for a result without figures."""
        try:
            return dict(self.read(result))
        except (KeyError, StopIteration, ValueError):
            return {}


def _kept(paths: Mapping[str, Sequence[str]], models: str = "") -> Callable[[Result], Iterator[tuple[str, Spread]]]:
    """Ratios that are in the result itself, by the paths of their keys. models: the key of networks with own ratios."""

    def read(result: Result) -> Iterator[tuple[str, Spread]]:
        # Ratios that were measured beside busy processes are not comparable.
        """Yield name and ratio, for each path that the result has."""
        if "--beside" in result.get("command", ""):
            return
        for prefix, part in (
            ((f"{name}: ", part) for name, part in result[models].items()) if models else [("", result)]
        ):
            for name, path in paths.items():
                found = part
                for key in path:
                    found = found.get(key, {})
                if found:
                    yield prefix + name, Spread(**found)

    return read


def _rounds(pairs: Mapping[str, tuple[str, str]], models: str = "") -> Callable[[Result], Iterator[tuple[str, Spread]]]:
    """Ratios within the rounds of a result: name -> (numerator, denominator). A missing case is left out."""

    def read(result: Result) -> Iterator[tuple[str, Spread]]:
        """Yield name and ratio, for each pair of cases in every round."""
        for prefix, part in (
            ((f"{name}: ", part) for name, part in result[models].items()) if models else [("", result)]
        ):
            for name, (over, under) in pairs.items():
                if all(over in row and under in row for row in part["rounds"]):
                    yield prefix + name, Spread.of(row[over] / row[under] for row in part["rounds"])

    return read


def _single(values: Iterable[tuple[str, float]]) -> Iterator[tuple[str, Spread]]:
    """Values without a spread."""
    return ((name, Spread(value, value, value)) for name, value in values)


def _overheads(result: Result) -> Iterator[tuple[str, Spread]]:
    """The time that other libraries add to a step, divided by the time that the trainer adds."""
    ours = result["over_bare_us"]["trainer"]
    for name in ("accelerate", "lightning"):
        if other := result["over_bare_us"].get(name):
            median, low, high = (
                other[a] / ours[b] for a, b in (("median", "median"), ("low", "high"), ("high", "low"))
            )
            yield f"what {name} adds over what the trainer adds", Spread(median, low, high)


def _monitors(result: Result) -> Iterator[tuple[str, Spread]]:
    """CPU time of other monitors over ours."""
    found = {name: one["percent_of_one_core"] for name, one in result["monitors"].items()}
    ours = max(found["gpu_topology monitor"], 0.01)
    return _single(
        (f"CPU time of {name} over ours", found[name] / ours) for name in ("nvitop", "gpustat") if name in found
    )


def _peers(result: Result) -> Iterator[tuple[str, Spread]]:
    """Time of other tools over our report."""
    for driver, command, _, cell in result["table"]["rows"]:
        if command in ("nvitop -1", "gpustat --json"):
            median, low, high = map(float, cell.replace("(", "").replace(")", "").replace("to", "").split())
            yield f"{command} over our report, {driver}", Spread(median, low, high)


def _augmentations(result: Result) -> Iterator[tuple[str, Spread]]:
    """Augmentation against its reference."""
    return _single((name, case["ratio"]) for name, case in result["cases"].items())


def _checkpoints(result: Result) -> Iterator[tuple[str, Spread]]:
    """The time of a stretch of steps divided by the time of one with a checkpoint."""
    step, cost = result["seconds_of_a_stretch"]["median"], result["seconds_a_checkpoint_costs"]
    median, low, high = (step / (step + max(0.0, cost[name])) for name in ("median", "high", "low"))
    yield "12 steps over 12 steps with a checkpoint", Spread(median, low, high)


def _shares(result: Result) -> Iterator[tuple[str, Spread]]:
    """Measured shares against equal ones."""
    words = "measured shares over equal ones, {} times slower"
    return _single((words.format(row["slower"]), row["ratio"]) for row in result["results"])


def _crops(result: Result) -> Iterator[tuple[str, Spread]]:
    """Ways to crop against the one in use."""
    cases = result["cases"]
    return _single((f"{name} over windows", cases[name] / cases["windows"]) for name in ("lines", "pixels"))


LOADER = "times_the_best_loader"
INPUT = {
    "with erasing, times the best loader": ("with_erasing", LOADER),
    "without erasing": ("without_erasing", LOADER),
}
SPEED = {"over the naive loop": ("over_naive", "channels_last, malloc, short spin")}
SCALING = {
    "two ranks over one process": ("two_ranks_over_one_process",),
    "two ranks over two apart": ("two_ranks_over_two_apart",),
}
OPTIMIZERS = {
    "adam over muon, adamw": ("adam", "muon, adamw"),
    "sgd over sgd, ema": ("sgd", "sgd, ema"),
    "sgd over sgd, sam": ("sgd", "sgd, sam"),
}
START_UP = {"torchrun with a process group over launch.py": ("torchrun, torch, process group", "launch.py")}
REPRODUCIBLE = {
    f"without the option over with it, {ranks}": (f"{ranks}, with", f"{ranks}, without")
    for ranks in ("1 rank", "2 ranks")
}
SHORT = (
    Short("crop", "--rounds 7", _crops),
    Short("topology_peers", "--rounds 5", _peers),
    Short("monitor_overhead", "--seconds 5 --out=", _monitors),
    Short("augmentation", "--rounds 3 --out=", _augmentations),
    Short("step_overhead", "--rounds 5", _overheads),
    Short("checkpoint_cost", "--rounds 5", _checkpoints),
    Short("launch_overhead", "--rounds 5", _rounds({"torchrun over launch.py": ("torchrun", "launch.py")})),
    Short("hosts_start", "--rounds 5", _rounds({"by hand over --hosts": ("by hand", "--hosts")})),
    Short("mixed_ranks", "--slower 3 --epochs 1", _shares),
    Short("optimizers", "--rounds 5", _rounds(OPTIMIZERS)),
    Short("start_up", "--rounds 5", _rounds(START_UP)),
    Short("cpu_speed", "--models small --rounds 5", _kept(SPEED, "models")),
    Short("ddp_scaling", "--models small --rounds 5", _kept(SCALING, "models")),
    Short("reproducible_cost", "--models small --rounds 5", _rounds(REPRODUCIBLE, "models")),
    Short("input_pipeline", "--rounds 5", _kept(INPUT)),
)
"""All short forms, the quick ones first."""
FEWER = ("mixed_ranks", "cpu_speed", "ddp_scaling", "reproducible_cost")
NO_SHORT_FORM = {
    "time_to_accuracy": "trains for minutes to hours",
    "training_run": "trains for minutes",
    "restart_recovery": "counts recoveries, of 20 runs",
    "failing_programs": "counts answers",
    "stall_cost": "has times alone",
    "library_loops": "compares what becomes of runs; the loop's own time is in step_overhead",
    "limit": "compares with this machine's own rate, not with a peer",
    "topology_report": "has times alone",
    "control_cost": "has times alone",
    "collectives": "has times alone",
    "subset_search": "has times alone",
}


@dataclass(frozen=True)
class Row:
    """A ratio, as recorded and as measured now. `now`: None where it was not measured, and `why` has the reason."""

    benchmark: str
    name: str
    recorded: Spread
    now: Spread | None
    why: str = ""

    @property
    def bound(self) -> float:
        """The value that the new upper quartile must reach."""
        spread = self.recorded
        half = max(spread.high - spread.median, spread.median - spread.low) / abs(spread.median)
        return spread.median * (1 - (min(MOST, max(LEAST, TIMES * half)) if half else WITHOUT_SPREAD))

    @property
    def verdict(self) -> str:
        """`held`, `BEHIND`, or why there is no figure."""
        if self.now is None:
            return self.why
        return "held" if self.now.high >= self.bound else "BEHIND"


def check(results: Mapping[str, Result], names: Sequence[str]) -> int:
    """Measure, print and compare; returns 1 if a ratio fell behind. `results`: the kept results; `names`: the
    measurements to repeat, all if empty. Errors: UserError."""
    known = {short.benchmark: short for short in SHORT}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"check {unknown[0]}: no short form of that name; known are {', '.join(known)}")
    rows: list[Row] = []
    for short in SHORT:
        if names and short.benchmark not in names:
            continue
        recorded: Ratios = {}
        for result in results.values():
            if made_by(result) == short.benchmark:
                recorded |= short.ratios(result)
        if not recorded:
            print(f"{short.benchmark}: nothing is kept to compare with", file=sys.stderr)
            continue
        begin = time.monotonic()
        print(f"{short.benchmark} {short.words}", file=sys.stderr, flush=True)
        result, why = _measure(short)
        found = compare(short, recorded, result, why)
        if any(row.verdict == "BEHIND" for row in found):
            print("  behind: once more", file=sys.stderr, flush=True)
            again = compare(short, recorded, *_measure(short))
            found = [
                one if one.verdict != "BEHIND" or two.now is None else two
                for one, two in zip(found, again, strict=True)
            ]
        rows += found
        print(plain_text(table(found)), file=sys.stderr, flush=True)  # in case the check is interrupted
        print(f"  {time.monotonic() - begin:.0f} s" + (f", {why}" if why else ""), file=sys.stderr, flush=True)
    print(plain_text(table(rows)))
    for name, why in () if names else NO_SHORT_FORM.items():
        print(f"not checked: {name} {why}")
    behind = [row for row in rows if row.verdict == "BEHIND"]
    for row in behind:
        assert row.now is not None
        print(f"fell behind: {row.benchmark}, {row.name}: {row.now:.2f} now, at least {row.bound:.2f} was asked for")
    return 1 if behind else 0


def compare(short: Short, recorded: Ratios, result: Result, why: str) -> list[Row]:
    """A row for each ratio that was recorded with the short form's options. `why`: the reason if there is no result."""
    now = short.ratios(result)
    if now:
        # The short form has fewer networks, and fewer speeds, than the kept result.
        recorded = {name: spread for name, spread in recorded.items() if name in now or short.benchmark not in FEWER}
    missing = why or result.get("not_measured", "") or "skipped: not installed"
    return [Row(short.benchmark, name, spread, now.get(name), missing) for name, spread in recorded.items()]


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as a table for report.plain_text."""
    columns = ["measurement", "ratio", "recorded", "now", "at least", ""]
    shown = [
        [
            row.benchmark,
            row.name,
            f"{row.recorded:.2f}",
            "-" if row.now is None else f"{row.now:.2f}",
            f"{row.bound:.2f}",
            row.verdict,
        ]
        for row in rows
    ]
    return {"columns": columns, "rows": shown}


def _measure(short: Short) -> tuple[Result, str]:
    """The result of the short form, or why there is none."""
    command = [sys.executable, "-m", f"benchmarks.{short.benchmark}", *short.words.split()]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {}, f"not measured: not ready after {LIMIT_S:.0f} s"
    try:
        return dict(json.loads(done.stdout)), ""
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {}, f"skipped: {lines[-1].removeprefix('error: ')}" if lines else f"status {done.returncode}"


def not_listed() -> set[str]:
    """Measurements that have neither a short form nor a reason for having none."""
    return {entry.name for entry in CATALOGUE} - {short.benchmark for short in SHORT} - NO_SHORT_FORM.keys()
