"""`python -m gpu_topology report` beside `nvitop -1` and `gpustat --json`, on the same stand-in driver with 8 GPUs.

    python -m benchmarks.topology_peers [--rounds 9] [--out NAME]

Each round starts each of them once, in a random order (`report` twice, which shows the noise), with a driver that
answers at once and with one that takes 200 microseconds for each call. What counts is the wall time of the whole
process; the ratios are those within a round. Needs the extra `bench`. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.topology_report import build, environment
from benchmarks.turns import Turns, take_turns

OURS, AGAIN = "gpu_topology report", "gpu_topology report, again"
COMMANDS = {
    OURS: ["-m", "gpu_topology", "report"],
    AGAIN: ["-m", "gpu_topology", "report"],
    "gpu_topology report --json": ["-m", "gpu_topology", "report", "--json"],
    "nvitop -1": ["-m", "nvitop", "-1"],
    "gpustat --json": ["-m", "gpustat", "--json"],
}
DELAYS_US = (0, 200)
GPU_NAME = b"H100"


def _seconds(words: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=env, cwd=ROOT, capture_output=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0 or done.stdout.count(GPU_NAME) < 8 or b"Traceback" in done.stderr:
        raise SystemExit(f"error: {' '.join(words)} did not show the eight GPUs: {done.stderr[-500:]!r}")
    return seconds


def _rows(turns: Turns, delay_us: int) -> list[list[object]]:
    return [
        [f"{delay_us} µs a call", name, f"{turns.values(name):.3f}", f"{turns.ratio(name, OURS):.2f}"]
        for name in COMMANDS
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.topology_peers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="undisturbed rounds [9]")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    missing = [name for name in ("nvitop", "gpustat") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {' and '.join(missing)} not installed: pip install '.[bench]'", file=sys.stderr)
        return 2
    machine, found = describe_machine(), {}
    with tempfile.TemporaryDirectory() as name:
        library = build(Path(name))
        for delay in DELAYS_US:
            env = environment(library, Path(name), delay)
            cases: dict[str, Callable[[], float]] = {
                case: (lambda words=words, env=env: _seconds(words, env))  # type: ignore[misc]
                for case, words in COMMANDS.items()
            }
            found[delay] = take_turns(cases, arguments.rounds, unit=f"s, {delay} µs a call")
    account = next((turns.account() for turns in found.values() if not turns.enough), found[0].account())
    result: dict[str, object] = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.topology_peers --rounds {arguments.rounds}",
        "machine": machine,
        "peers": {name: importlib.metadata.version(name) for name in ("nvitop", "gpustat")},
        **account,
    }
    if "not_measured" not in account:
        rows = [row for delay, turns in found.items() for row in _rows(turns, delay)]
        columns = ["driver", "command", "seconds, median (quartiles)", "times `gpu_topology report`"]
        result["table"] = {"columns": columns, "rows": rows}
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
