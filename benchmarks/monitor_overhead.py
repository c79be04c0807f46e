"""What watching GPUs costs the machine, compared with nvitop and gpustat.

Each monitor draws its live display on a pseudo-terminal of 120 x 40, over the simulated driver of the tests (needs a C
compiler). The driver answers at once, so this is the monitors' own cost without a real driver's. nvitop and
gpustat are measured where they are installed.

CPU time of each monitor, with one sample of eight GPUs a second; start-up is counted apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time

import psutil

from benchmarks import fake_driver
from benchmarks.harness import Arguments, Figures, Option, measurement, number
from benchmarks.machine import version

WARM_UP_S = 4.0
BUSY_GPU = {
    "utilization": [97, 92, 95],
    "memory_used_mib": 40_000,
    "pcie_start": 1 << 40,
    "pcie_rate": [900_000_000, 350_000_000],
    "nvlink_rate": [90_000_000, 88_000_000],
}
MONITORS = {
    "gpu_topology monitor": ["-m", "gpu_topology", "monitor", "--out", "{folder}/samples.jsonl"],
    "gpustat": ["-m", "gpustat", "--interval", "1"],
    "nvitop": ["-m", "nvitop", "--monitor", "full", "--interval", "1"],
}


def take(command: list[str], environ: dict[str, str], seconds: float) -> Figures | None:
    """CPU time of a command's process and its ended children: seconds to start, then percent of one core.

    None if the command ends early or does not show the GPUs: then there is nothing to compare.
    """
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.environ.update(environ)
        os.execvp(command[0], command)
    process = psutil.Process(child)
    try:
        shown = _read(terminal, WARM_UP_S)
        before, since = sum(process.cpu_times()[:4]), time.monotonic()
        _read(terminal, seconds)
        after, elapsed = sum(process.cpu_times()[:4]), time.monotonic() - since
    except (OSError, psutil.NoSuchProcess):
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
    percent = round(100 * (after - before) / elapsed, 2)
    found = {"start_cpu_seconds": round(before, 2), "measured_seconds": round(elapsed, 1)}
    return found | {"percent_of_one_core": percent} if b"H100" in shown else None


def _read(terminal: int, seconds: float) -> bytes:
    """Read what the monitor draws for `seconds`; returns all of it. Errors: OSError where the monitor has ended."""
    end, drawn = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            drawn += os.read(terminal, 1 << 16)
    return drawn


@measurement(
    number("--seconds", 30.0, "how long each is measured", "S"),
    Option("--out", "--name", default="monitor-overhead", metavar="NAME", help="the result's name"),
)
def main(arguments: Arguments) -> Figures:
    """Run each installed monitor on its own terminal."""
    results: Figures = {}
    gpu = BUSY_GPU | {"processes": [{"pid": os.getpid(), "used_mib": 30_000}]}
    with fake_driver.environments(0, gpu=gpu) as environments, tempfile.TemporaryDirectory() as folder:
        for name, options in MONITORS.items():
            found = version(name)
            if name in ("gpustat", "nvitop") and found is None:
                print(f"{name}: not installed, not measured", file=sys.stderr)
                continue
            command = [sys.executable, *(option.format(folder=folder) for option in options)]
            measured = take(command, environments[0] | {"TERM": "xterm-256color"}, arguments.seconds)
            if measured is None:
                print(f"{name}: shows no GPU or ended early, not measured", file=sys.stderr)
                continue
            results[name] = {"version": found, "command": ["python", *options], **measured}
    gpus = "8 x H100 of the simulated driver, which answers at once"
    return {"gpus": gpus, "interval_seconds": 1.0, "monitors": results}
