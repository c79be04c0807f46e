"""`report` compared with nvitop and gpustat, on the same simulated driver.

Each round starts `python -m gpu_topology report` (twice, which shows the noise), `nvitop -1` and `gpustat --json` once
on a machine of 8 GPUs, with a driver that answers at once and with one that takes 200 microseconds for each call. Needs
the extra `bench`.

Wall time of the whole command.
"""

from __future__ import annotations

import sys
import time
from functools import partial

from benchmarks import fake_driver
from benchmarks.harness import Arguments, Figures, measurement, rounds
from benchmarks.machine import version
from benchmarks.programs import run
from benchmarks.turns import take_turns
from ddp_core.errors import UserError

OURS, AGAIN = "gpu_topology report", "gpu_topology report, again"
COMMANDS = [OURS, AGAIN, "gpu_topology report --json", "nvitop -1", "gpustat --json"]
PEERS = ("nvitop", "gpustat")


def _seconds(command: str, env: dict[str, str]) -> float:
    """Wall time of a command. Errors: SystemExit where it does not show the GPUs."""
    started = time.perf_counter()
    done = run([sys.executable, "-m", *command.removesuffix(", again").split()], env)
    seconds = time.perf_counter() - started
    if done.stdout.count("H100") < 8 or "Traceback" in done.stderr:
        raise SystemExit(f"error: {command} did not show the eight GPUs: {done.stderr[-500:]}")
    return seconds


@measurement(rounds(9))
def main(arguments: Arguments) -> Figures:
    """Every command with a fast and a slow driver, in turns."""
    peers = {name: version(name) for name in PEERS}
    if missing := [name for name, found in peers.items() if found is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install '.[bench]'")
    found = {}
    with fake_driver.environments(0, 200) as environments:
        for delay, env in environments.items():
            cases = {command: partial(_seconds, command, env) for command in COMMANDS}
            found[delay] = take_turns(cases, arguments.rounds, unit=f"s, {delay} µs a call")
    account = next((turns.account() for turns in found.values() if not turns.enough), found[0].account())
    figures: Figures = {"peers": peers, **account}
    if "not_measured" in account:
        return figures
    rows = []
    for delay, turns in found.items():
        rows += [[f"{delay} µs a call", *row] for row in turns.rows(OURS, ".3f", turns.ratio, ".2f")]
    columns = ["driver", "command", "seconds, median (quartiles)", "times `gpu_topology report`"]
    return {**figures, "table": {"columns": columns, "rows": rows}}
