"""`report`, `select` and `env` over the simulated driver, compared with the driver's calls alone.

The driver is the simulated one of the tests, which counts its calls: no GPU is needed. Runs during which other
processes took more than a tenth of the CPUs are left out.

Eight GPUs of the simulated driver, which takes a set time for each call. The bound is 1.5 times the driver's time and
0.15 s of start-up.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import fake_driver
from benchmarks.harness import Arguments, Figures, measurement, number
from benchmarks.programs import import_times, run
from benchmarks.turns import take_figures

COMMANDS = ("report --json", "report", "select", "env")
START_UP_S, FACTOR = 0.150, 1.5
MOST_IMPORTS = 12


def once(command: str, env: dict[str, str]) -> dict[str, float]:
    """Time of `python -m gpu_topology COMMAND`, in all and in the simulated driver, where it is CPU time too."""
    before, started = _children_cpu(), time.perf_counter()
    run([sys.executable, "-m", "gpu_topology", *command.split()], env)
    wall, cpu = time.perf_counter() - started, _children_cpu() - before
    lines = [line.split() for line in Path(env["FAKE_NVML_CALLS"]).read_text().splitlines()]
    driver_s, calls = sum(int(line[2]) for line in lines) / 1e9, sum(int(line[1]) for line in lines)
    return {"wall_s": wall, "cpu_s": cpu, "driver_s": driver_s, "driver_calls": calls}


def _children_cpu() -> float:
    """CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def take(command: str, env: dict[str, str], wanted: int) -> Figures:
    """Medians over undisturbed runs in seconds, with the bound of the wall time."""
    once(command, env)
    turns = take_figures(partial(once, command, env), wanted, unit=command)
    if (clean := len(turns.rounds)) < wanted:
        return {"command": command, "not_measured": f"{clean} undisturbed runs, {wanted} are needed"}
    found = {key: [one[key] for one in turns.rounds] for key in turns.cases}
    wall, cpu, driver = (statistics.median(found[key]) for key in ("wall_s", "cpu_s", "driver_s"))
    bound = FACTOR * driver + START_UP_S
    return {
        "command": command,
        "wall_s": round(wall, 4),
        "slowest_s": round(max(found["wall_s"]), 4),
        "cpu_s": round(cpu, 4),
        "driver_s": round(driver, 4),
        "driver_calls": found["driver_calls"][0],
        "bound_s": round(bound, 4),
        "within": wall <= bound,
        "disturbed_runs": turns.disturbed,
    }


@measurement(number("--runs", 9, "undisturbed runs of each command"))
def main(arguments: Arguments) -> Figures:
    """Every command at each delay of the driver, and what `report` imports."""
    with fake_driver.environments(0, 200, 1000) as environments:
        rows = [
            {"delay_us": delay, **take(command, env, arguments.runs)}
            for delay, env in environments.items()
            for command in COMMANDS
        ]
        own = import_times(["-m", "gpu_topology", "report", "--json"], environments[0])
    longest = dict(sorted(own.items(), key=lambda item: -item[1])[:MOST_IMPORTS])
    imports = {"modules": len(own), "total_ms": round(sum(own.values()), 1), "longest_ms": longest}
    gpus = f"{fake_driver.MACHINE}, the simulated driver of the tests"
    return {"gpus": gpus, "results": rows, "imports": imports}
