"""One part of a session on a rented GPU: every step of the part within ten minutes, and a table at the end.

bash scripts/gpu_session.sh PART [OUT] [--rehearse] [--budget SECONDS] [--only NAME ...] [--data DIR]

Exit status 0 when every step ended with 0. What must be there: torch, pytest, and in .carry/ what
`scripts/gpu_session/bring.sh` puts there (docs/gpu.md). --rehearse: the same steps with tiny settings, on the GPU that
is there, on a ghost (`python -m tests.ghost bash scripts/gpu_session.sh 1 --rehearse`), or without either those that
need none. Standard library alone, so that a missing package costs the steps that need it, and not the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from runner import exit_status, run_steps, table
from steps import GPU_STEPS, PARTS, Settings

ROOT = Path(__file__).resolve().parents[2]
CARRY = ROOT / ".carry"
BUDGET_S = 585
"""Seconds for a part: ten minutes, less the time to start and to fetch the results."""
REHEARSAL = 5
"""How many times as long a rehearsal and its steps may take."""


def main() -> int:
    """Run a part; the exit status."""
    arguments = _arguments()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    environment = _environment(out)
    os.chdir(ROOT)
    device = "cuda" if not arguments.rehearse or _has_gpu(environment) else "cpu"
    settings = Settings(out, arguments.data or CARRY / "data", CARRY, device, arguments.rehearse)
    steps = PARTS[arguments.part](settings, unpack=arguments.data is None)
    if device == "cpu":
        print(f"no GPU: left out of this rehearsal are {', '.join(s.name for s in steps if s.name in GPU_STEPS)}")
        steps = [step for step in steps if step.name not in GPU_STEPS]
    if arguments.only:
        known = [step.name for step in steps]
        if unknown := [name for name in arguments.only if name not in known]:
            return _mistake(f"--only {unknown[0]}: part {arguments.part} has {', '.join(known)}")
        steps = [step for step in steps if step.name in arguments.only]
    if arguments.rehearse:  # on a machine that may be slow and busy
        steps = [replace(step, limit_s=REHEARSAL * step.limit_s) for step in steps]
    budget_s = arguments.budget or BUDGET_S * (REHEARSAL if arguments.rehearse else 1)
    results = run_steps(steps, out, budget_s, environment)
    print(f"\n{table(results)}\n\neverything is in {arguments.out}")
    return exit_status(results)


def _arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_session.sh", description="Checks and measurements on a rented GPU.")
    parser.error = lambda message: sys.exit(_mistake(message))  # type: ignore[assignment, method-assign, return-value]
    parser.add_argument("part", type=int, choices=tuple(PARTS), metavar="PART", help="1: checks; 2: measurements")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder [runs/gpu-session-PART]")
    parser.add_argument("--rehearse", action="store_true", help="tiny settings, with a GPU, a ghost of one or without")
    parser.add_argument("--budget", type=_seconds, metavar="S", help=f"of the part [{BUDGET_S}]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these steps alone")
    parser.add_argument("--data", type=Path, metavar="DIR", help="CIFAR-10, where it need not be unpacked")
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs", f"gpu-session-{arguments.part}")
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"OUT {arguments.out}: not a folder")
    if arguments.data is not None:
        arguments.data = arguments.data.absolute()
        if not arguments.data.is_dir():
            parser.error(f"--data {arguments.data}: no such folder")
    return arguments


def _seconds(text: str) -> float:
    """Parse a number of seconds. Errors: argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _mistake(message: str) -> int:
    """Print the error; the exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def _environment(out: Path) -> dict[str, str]:
    """The environment of every step: the packages that were brought, and caches inside the session's folder."""
    places = [str(ROOT), os.environ.get("PYTHONPATH", ""), *_brought(out / "packages")]
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(filter(None, places)),
        "PYTHONUNBUFFERED": "1",
        "XDG_CACHE_HOME": str(out / "cache"),
    }
    if "GHOST_MACHINE" in environment:
        environment["TORCH_COMPILE_DISABLE"] = "1"  # a ghost has nothing that could be compiled
    return environment


def _brought(target: Path) -> list[str]:
    """The folder with the wheels of .carry/wheels whose package is not installed; none where all are."""
    unpacked = []
    for wheel in sorted((CARRY / "wheels").glob("*.whl")):
        name = wheel.name.partition("-")[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            unpacked.append(name)
    if unpacked:
        print(f"from .carry/wheels: {', '.join(unpacked)}")
    return [str(target)] if unpacked else []


def _has_gpu(environment: dict[str, str]) -> bool:
    """Whether torch sees a GPU, a real one or a ghost."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
