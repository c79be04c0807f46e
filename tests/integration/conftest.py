"""Running the repository's commands as a user does, under a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.warm import WarmPopen

TORCHRUN = ("-m", "torch.distributed.run")
ROOT = Path(__file__).resolve().parents[2]
MAIN = str(ROOT / "ddp_train" / "main.py")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python ARGUMENTS...`; in an empty folder unless `cwd` says otherwise; both streams as text."""

    def run(
        *arguments: str, cwd: Path | None = None, timeout_s: float = 240, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        cwd = cwd or tmp_path / "cwd"
        cwd.mkdir(exist_ok=True)
        surroundings = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        # One thread: small models gain nothing from more, and other tests may run beside.
        surroundings |= {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "COLUMNS": "100",
            **(env or {}),
        }
        # torch's own launcher is not what is tested, nor is how one rank starts: neither need import torch each time.
        warm = arguments[:2] == TORCHRUN or arguments[0] == MAIN
        start = WarmPopen if warm else subprocess.Popen
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start([sys.executable, *arguments], cwd=cwd, env=surroundings, text=True, **streams)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def torchrun(ranks: int, *arguments: str) -> list[str]:
    """The words after `python` that start `arguments` on `ranks` ranks of this machine, on any free port."""
    rendezvous = ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    return [*TORCHRUN, *rendezvous, f"--nproc-per-node={ranks}", *arguments]
