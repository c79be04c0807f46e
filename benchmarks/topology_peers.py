"""`python -m gpu_topology report` beside `nvitop -1` and `gpustat --json`, on the same stand-in driver with 8 GPUs.

    python -m benchmarks.topology_peers [--rounds 9] [--out NAME]

Each round starts each of them once, in a random order (`report` twice, which shows the noise), with a driver that
answers at once and with one that takes 200 microseconds for each call. What counts is the wall time of the whole
process. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks import fake_driver
from benchmarks.harness import Figures, Measurement, rounds
from benchmarks.programs import run
from benchmarks.turns import take_turns
from ddp_core.errors import UserError

OURS, AGAIN = "gpu_topology report", "gpu_topology report, again"
COMMANDS = {
    OURS: ["-m", "gpu_topology", "report"],
    AGAIN: ["-m", "gpu_topology", "report"],
    "gpu_topology report --json": ["-m", "gpu_topology", "report", "--json"],
    "nvitop -1": ["-m", "nvitop", "-1"],
    "gpustat --json": ["-m", "gpustat", "--json"],
}
DELAYS_US = (0, 200)
GPU_NAME = "H100"
PEERS = ("nvitop", "gpustat")


def _seconds(words: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    done = run([sys.executable, *words], env)
    seconds = time.perf_counter() - started
    if done.stdout.count(GPU_NAME) < 8 or "Traceback" in done.stderr:
        raise SystemExit(f"error: {' '.join(words)} did not show the eight GPUs: {done.stderr[-500:]}")
    return seconds


def measure(arguments: argparse.Namespace) -> Figures:
    """All commands with each delay of the driver. Errors: UserError."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed: pip install '.[bench]'")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        fake_driver.build(Path(name))
        for delay in DELAYS_US:
            env = fake_driver.environment(Path(name), delay)
            cases = {case: partial(_seconds, words, env) for case, words in COMMANDS.items()}
            found[delay] = take_turns(cases, arguments.rounds, unit=f"s, {delay} µs a call")
    account = next((turns.account() for turns in found.values() if not turns.enough), found[0].account())
    figures: Figures = {"peers": {name: importlib.metadata.version(name) for name in PEERS}, **account}
    if "not_measured" in account:
        return figures
    rows = [
        [f"{delay} µs a call", *row]
        for delay, turns in found.items()
        for row in turns.rows(OURS, ".3f", turns.ratio, ".2f")
    ]
    columns = ["driver", "command", "seconds, median (quartiles)", "times `gpu_topology report`"]
    return {**figures, "table": {"columns": columns, "rows": rows}}


main = Measurement("topology_peers", __doc__, measure, (rounds(9),))

if __name__ == "__main__":
    sys.exit(main())
