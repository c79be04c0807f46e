"""What `report`, `select` and `env` take on a machine of 8 GPUs, beside what the driver's calls take by themselves.

    python -m benchmarks.topology_report [--runs 9] [--out NAME]

The driver is the stand-in of the tests, which takes a set time over each call and counts them: no GPU is needed.
The bound is one and a half times the driver's own time and 150 ms of start-up. Runs during which other processes took
more than a tenth of the CPUs are left out. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.quiet import watched
from tests.fake_nvml.machine import load_machine, to_lines

MACHINE = "h100_8x_nvswitch"
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


def environment(library: Path, folder: Path, delay_us: int) -> dict[str, str]:
    """The stand-in driver with this delay in each call. Byte code is cached, as it is after any first run."""
    description = folder / f"machine-{delay_us}.txt"
    description.write_text(to_lines({**load_machine(MACHINE), "delay_us": delay_us}))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **env,
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML_MACHINE": str(description),
        "FAKE_NVML_CALLS": str(folder / "calls"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "XDG_CACHE_HOME": str(folder / "no-verdicts"),
    }


def build(folder: Path) -> Path:
    """The folder with the stand-in library; SystemExit without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("error: no C compiler (cc, gcc): the stand-in for the driver cannot be built")
    source, library = ROOT / "tests" / "fake_nvml" / "nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-std=c11", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


def once(command: tuple[str, ...], env: Mapping[str, str]) -> Run:
    """Run `python -m gpu_topology COMMAND` and read the stand-in's account of it."""
    before, started = _children_cpu(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "gpu_topology", *command], env=env, cwd=ROOT, check=True, capture_output=True)
    wall, cpu = time.perf_counter() - started, _children_cpu() - before
    lines = [line.split() for line in Path(env["FAKE_NVML_CALLS"]).read_text().splitlines()]
    return Run(wall, cpu, sum(int(line[2]) for line in lines) / 1e9, sum(int(line[1]) for line in lines))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: tuple[str, ...], env: Mapping[str, str], runs: int) -> dict[str, object]:
    """Medians over undisturbed runs, with the bound beside the time that it is for (seconds)."""
    once(command, env)
    clean: list[Run] = []
    tries, deadline = 0, time.monotonic() + PATIENCE_S
    while len(clean) < runs and time.monotonic() < deadline:
        tries += 1
        with watched() as window:
            run = once(command, env)
        if window.clean:
            clean.append(run)
        else:
            time.sleep(0.5)
    name = " ".join(command)
    if len(clean) < runs:
        return {"command": name, "not_measured": f"{len(clean)} undisturbed runs of {tries}, {runs} are needed"}
    wall, driver = statistics.median(run.wall_s for run in clean), statistics.median(run.driver_s for run in clean)
    bound = FACTOR * driver + START_UP_S
    return {
        "command": name,
        "wall_s": round(wall, 4),
        "slowest_s": round(max(run.wall_s for run in clean), 4),
        "cpu_s": round(statistics.median(run.cpu_s for run in clean), 4),
        "driver_s": round(driver, 4),
        "driver_calls": clean[0].calls,
        "bound_s": round(bound, 4),
        "within": wall <= bound,
        "disturbed_runs": tries - len(clean),
    }


def imports(env: Mapping[str, str], most: int = 12) -> dict[str, object]:
    """The modules of `report --json` that take longest to import by themselves (`python -X importtime`), in ms."""
    command = [sys.executable, "-X", "importtime", "-m", "gpu_topology", "report", "--json"]
    done = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    own = {row[2].strip(): int(row[0]) / 1000 for row in rows if row[0].strip().isdigit()}
    longest = sorted(own.items(), key=lambda item: -item[1])[:most]
    return {"modules": len(own), "total_ms": round(sum(own.values()), 1), "longest_ms": dict(longest)}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.topology_report", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="undisturbed runs of each command (default 9)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder)
        environments = {delay: environment(library, folder, delay) for delay in DELAYS_US}
        result = {
            "schema": "ddp-benchmark/1",
            "command": f"python -m benchmarks.topology_report --runs {arguments.runs}",
            "machine": describe_machine(),
            "gpus": f"{MACHINE}, the stand-in driver of the tests",
            "results": [
                {"delay_us": delay, **measure(command, env, arguments.runs)}
                for delay, env in environments.items()
                for command in COMMANDS
            ],
            "imports": imports(environments[0]),
        }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
