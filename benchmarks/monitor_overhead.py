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
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine

WARM_UP_S = 4.0
INTERVAL_S = 1.0
GPU_NAME = b"H100"

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


def _stand_in(folder: Path) -> dict[str, str]:
    """Build the stand-in driver with eight busy GPUs; the environment in which it is found."""
    stand_in = importlib.import_module("tests.fake_nvml.machine")
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    library = folder / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "fake_nvml" / "nvml.c"
    subprocess.run([compiler, "-std=c11", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    machine = stand_in.load_machine("h100_8x_nvswitch")
    for gpu in machine["gpus"]:
        gpu["processes"] = [{"pid": os.getpid(), "used_mib": 30_000}]
        gpu |= {"utilization": [97, 92, 95], "memory_used_mib": 40_000, "pcie_start": 1 << 40}
        gpu |= {"pcie_rate": [900_000_000, 350_000_000], "nvlink_rate": [90_000_000, 88_000_000]}
    (folder / "machine.txt").write_text(stand_in.to_lines(machine))
    path = ":".join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return {"LD_LIBRARY_PATH": path, "FAKE_NVML_MACHINE": str(folder / "machine.txt"), "TERM": "xterm-256color"}


def main(argv: list[str] | None = None) -> int:
    """Measure every monitor that is installed and write benchmarks/results/monitor-overhead.json; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is measured")
    parser.add_argument("--name", default="monitor-overhead", help="the result is benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        environ = _stand_in(Path(folder))
        for name, (package, options) in MONITORS.items():
            if importlib.util.find_spec(package) is None:
                print(f"{name}: not installed, not measured")
                continue
            command = [sys.executable, *(option.format(folder=folder) for option in options)]
            measured = measure(command, environ, arguments.seconds)
            if measured is None:
                print(f"{name}: shows no GPU or ended early, not measured")
                continue
            version = None if package == "gpu_topology" else importlib.metadata.version(package)
            results[name] = {"version": version, "command": ["python", *options], **measured}
            print(f"{name}: {measured['percent_of_one_core']}% of one core, start-up {measured['start_cpu_seconds']} s")
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.monitor_overhead --seconds {arguments.seconds:g}",
        "machine": describe_machine(),
        "gpus": "8 x H100 of the stand-in driver, which answers at once",
        "interval_seconds": INTERVAL_S,
        "monitors": results,
    }
    path = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
