"""CPU that `monitor` itself takes, as a share of one core, beside other monitors: eight GPUs, one sample a second.

    python -m benchmarks.monitor_overhead [--seconds 30]

Runs over the stand-in driver of the tests (needs a C compiler), each monitor on a pseudo-terminal of 120 x 40, so that
it draws its live display. The stand-in answers at once: this is the monitors' own cost, without a real driver's. nvitop
and gpustat are measured too where they are installed. Start-up is left out (the first seconds), and given apart.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks import fake_driver
from benchmarks.harness import Figures, Measurement, Option

WARM_UP_S = 4.0
INTERVAL_S = 1.0
GPU_NAME = b"H100"
BUSY_GPU = {
    "utilization": [97, 92, 95],
    "memory_used_mib": 40_000,
    "pcie_start": 1 << 40,
    "pcie_rate": [900_000_000, 350_000_000],
    "nvlink_rate": [90_000_000, 88_000_000],
}

MONITORS = {
    "gpu_topology monitor": ("gpu_topology", ["-m", "gpu_topology", "monitor", "--out", "{folder}/samples.jsonl"]),
    "gpustat": ("gpustat", ["-m", "gpustat", "--interval", "1"]),
    "nvitop": ("nvitop", ["-m", "nvitop", "--monitor", "full", "--interval", "1"]),
}


def measure(command: list[str], environ: dict[str, str], seconds: float) -> dict[str, float] | None:
    """CPU seconds of a command's process: of its first seconds, and of each second after.

    None when it ends early or does not show the GPUs: then there is nothing to compare.
    """
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.environ.update(environ)
        os.execvp(command[0], command)
    try:
        shown = _pass_time(terminal, WARM_UP_S)
        before, since = _cpu_seconds(child), time.monotonic()
        _pass_time(terminal, seconds)
        after, elapsed = _cpu_seconds(child), time.monotonic() - since
        if before is None or after is None or GPU_NAME not in shown:
            return None
        return {
            "start_cpu_seconds": round(before, 2),
            "measured_seconds": round(elapsed, 1),
            "percent_of_one_core": round(100 * (after - before) / elapsed, 2),
        }
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)


def _pass_time(terminal: int, seconds: float) -> bytes:
    """Read what the monitor draws for a while; all of it."""
    end, drawn = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                drawn += os.read(terminal, 1 << 16)
            except OSError:  # the monitor is gone
                break
    return drawn


def _cpu_seconds(pid: int) -> float | None:
    """User and system time of a process and of its children that have ended (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def compare(arguments: argparse.Namespace) -> Figures:
    """Every monitor that is installed."""
    results: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        fake_driver.build(Path(folder))
        busy = BUSY_GPU | {"processes": [{"pid": os.getpid(), "used_mib": 30_000}]}
        environ = fake_driver.environment(Path(folder), gpu=busy) | {"TERM": "xterm-256color"}
        for name, (package, options) in MONITORS.items():
            if importlib.util.find_spec(package) is None:
                print(f"{name}: not installed, not measured", file=sys.stderr)
                continue
            command = [sys.executable, *(option.format(folder=folder) for option in options)]
            measured = measure(command, environ, arguments.seconds)
            if measured is None:
                print(f"{name}: shows no GPU or ended early, not measured", file=sys.stderr)
                continue
            version = None if package == "gpu_topology" else importlib.metadata.version(package)
            results[name] = {"version": version, "command": ["python", *options], **measured}
    gpus = "8 x H100 of the stand-in driver, which answers at once"
    return {"gpus": gpus, "interval_seconds": INTERVAL_S, "monitors": results}


OPTIONS = (
    Option("--seconds", type=float, default=30.0, metavar="S", help="how long each is measured [30]"),
    Option("--out", "--name", default="monitor-overhead", metavar="NAME", help="the result's name"),
)
main = Measurement("monitor_overhead", __doc__, compare, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
