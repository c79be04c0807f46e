"""What `report`, `select` and `env` take on a machine of 8 GPUs, beside what the driver's calls take by themselves.

    python -m benchmarks.topology_report [--runs 9] [--out NAME]

The driver is the stand-in of the tests, which takes a set time over each call and counts them: no GPU is needed.
The bound is one and a half times the driver's own time and 150 ms of start-up. Runs during which other processes took
more than a tenth of the CPUs are left out.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fake_driver
from benchmarks.harness import Figures, Measurement, Option
from benchmarks.programs import import_times, run
from benchmarks.turns import watched

DELAYS_US = (0, 200, 1000)
COMMANDS = (("report", "--json"), ("report",), ("select",), ("env",))
START_UP_S, FACTOR = 0.150, 1.5
PATIENCE_S = 120
"""How long a command is tried again while other processes disturb it."""


@dataclass(frozen=True)
class Run:
    """One command, once. `driver_s`: the time inside the driver library, which is CPU time too; `calls`: how many."""

    wall_s: float
    cpu_s: float
    driver_s: float
    calls: int


def once(command: tuple[str, ...], env: Mapping[str, str]) -> Run:
    """Run `python -m gpu_topology COMMAND` and read the stand-in's account of it."""
    before, started = _children_cpu(), time.perf_counter()
    run([sys.executable, "-m", "gpu_topology", *command], env)
    wall, cpu = time.perf_counter() - started, _children_cpu() - before
    lines = [line.split() for line in Path(env["FAKE_NVML_CALLS"]).read_text().splitlines()]
    return Run(wall, cpu, sum(int(line[2]) for line in lines) / 1e9, sum(int(line[1]) for line in lines))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: tuple[str, ...], env: Mapping[str, str], runs: int) -> Figures:
    """Medians over undisturbed runs, with the bound beside the time that it is for (seconds)."""
    once(command, env)
    clean: list[Run] = []
    tries, deadline = 0, time.monotonic() + PATIENCE_S
    while len(clean) < runs and time.monotonic() < deadline:
        tries += 1
        with watched() as window:
            found = once(command, env)
        if window.clean:
            clean.append(found)
        else:
            time.sleep(0.5)
    name = " ".join(command)
    if len(clean) < runs:
        return {"command": name, "not_measured": f"{len(clean)} undisturbed runs of {tries}, {runs} are needed"}
    wall, driver = statistics.median(one.wall_s for one in clean), statistics.median(one.driver_s for one in clean)
    bound = FACTOR * driver + START_UP_S
    return {
        "command": name,
        "wall_s": round(wall, 4),
        "slowest_s": round(max(one.wall_s for one in clean), 4),
        "cpu_s": round(statistics.median(one.cpu_s for one in clean), 4),
        "driver_s": round(driver, 4),
        "driver_calls": clean[0].calls,
        "bound_s": round(bound, 4),
        "within": wall <= bound,
        "disturbed_runs": tries - len(clean),
    }


def imports(env: Mapping[str, str], most: int = 12) -> Figures:
    """The modules of `report --json` that take longest to import by themselves, in ms."""
    own = import_times(["-m", "gpu_topology", "report", "--json"], env)
    longest = sorted(own.items(), key=lambda item: -item[1])[:most]
    return {"modules": len(own), "total_ms": round(sum(own.values()), 1), "longest_ms": dict(longest)}


def measure_all(arguments: argparse.Namespace) -> Figures:
    """All commands with each delay of the driver."""
    with tempfile.TemporaryDirectory() as name:
        fake_driver.build(Path(name))
        environments = {delay: fake_driver.environment(Path(name), delay) for delay in DELAYS_US}
        return {
            "gpus": f"{fake_driver.MACHINE}, the stand-in driver of the tests",
            "results": [
                {"delay_us": delay, **measure(command, env, arguments.runs)}
                for delay, env in environments.items()
                for command in COMMANDS
            ],
            "imports": imports(environments[0]),
        }


OPTIONS = (Option("--runs", type=int, default=9, metavar="N", help="undisturbed runs of each command [9]"),)
main = Measurement("topology_report", __doc__, measure_all, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
