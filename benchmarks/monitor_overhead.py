"""What watching GPUs costs the machine, beside nvitop.

Each monitor runs over the simulated driver of the tests (needs a C compiler) on a pseudo-terminal of 120 x 40, where it
draws its live display. The driver answers at once: this is the monitors' own cost, without a real driver's. nvitop and
gpustat are measured where they are installed.

CPU time of each monitor, with one sample of eight GPUs a second; start-up is counted apart.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

from benchmarks import fake_driver
from benchmarks.harness import Figures, Measurement, Option, number
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
    """CPU seconds of a command's process: of its first seconds, and of each second after.

    None when it ends early or does not show the GPUs: then there is nothing to compare.
    """
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.environ.update(environ)
        os.execvp(command[0], command)
    try:
        shown = _read(terminal, WARM_UP_S)
        before, since = _cpu_seconds(child), time.monotonic()
        _read(terminal, seconds)
        after, elapsed = _cpu_seconds(child), time.monotonic() - since
    except OSError:  # the monitor is gone
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
    if b"H100" not in shown:
        return None
    percent = round(100 * (after - before) / elapsed, 2)
    return {
        "start_cpu_seconds": round(before, 2),
        "measured_seconds": round(elapsed, 1),
        "percent_of_one_core": percent,
    }


def _read(terminal: int, seconds: float) -> bytes:
    """Read what the monitor draws for a while; all of it. Errors: OSError where it has ended."""
    end, drawn = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            drawn += os.read(terminal, 1 << 16)
    return drawn


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that have ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace) -> Figures:
    """Every monitor that is installed."""
    results: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        fake_driver.build(Path(folder))
        busy = BUSY_GPU | {"processes": [{"pid": os.getpid(), "used_mib": 30_000}]}
        environ = fake_driver.environment(Path(folder), gpu=busy) | {"TERM": "xterm-256color"}
        for name, options in MONITORS.items():
            found = version(name)
            if name in ("gpustat", "nvitop") and found is None:
                print(f"{name}: not installed, not measured", file=sys.stderr)
                continue
            command = [sys.executable, *(option.format(folder=folder) for option in options)]
            if (measured := take(command, environ, arguments.seconds)) is None:
                print(f"{name}: shows no GPU or ended early, not measured", file=sys.stderr)
                continue
            results[name] = {"version": found, "command": ["python", *options], **measured}
    gpus = "8 x H100 of the simulated driver, which answers at once"
    return {"gpus": gpus, "interval_seconds": 1.0, "monitors": results}


OPTIONS = (
    number("--seconds", 30.0, "how long each is measured", "S"),
    Option("--out", "--name", default="monitor-overhead", metavar="NAME", help="the result's name"),
)
main = Measurement("monitor_overhead", measure, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
