"""Real Open MPI: mpirun starts a launcher on each of two nodes, through a script in the place of ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ddp_launch.conftest import Launcher, launcher
from tests.ddp_launch.two_nodes import two_nodes, why_not

__all__ = ["launcher"]

ROOT = Path(__file__).parents[3]
AGENT = """#!/bin/sh
# HOST WORD...: as ssh HOST WORD... would
shift
exec nsenter --target={pid} --net --uts --mount --pid --wdns={folder} sh -c "$*"
"""
ADD_UP = """
import os, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(os.environ["RANK"]))
dist.all_reduce(total)
pathlib.Path("on-" + os.uname().nodename).write_text(f"{int(total)} of {dist.get_world_size()}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another process namespace is entered as root alone")
@pytest.mark.skipif(shutil.which("mpirun.openmpi") is None, reason="Open MPI is not installed (Debian: openmpi-bin)")
def test_one_launcher_on_each_node(launcher: Launcher) -> None:
    """The first launcher is mpirun's own child, the second is started over the wire."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    program = launcher.script(ADD_UP)
    with two_nodes(launcher.folder) as (a, b):
        agent = launcher.script(AGENT.format(pid=b.pid, folder=launcher.folder), "agent")
        agent.chmod(0o755)
        # Not in the first node's process namespace, in which the second's cannot be found.
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--target={a.pid}", "--net", "--uts"]
        mpirun = (
            "mpirun.openmpi --allow-run-as-root -np 2 --host 10.77.0.1,10.77.0.2 --map-by ppr:1:node --bind-to none"
        )
        launch = [
            sys.executable,
            str(ROOT / "launch.py"),
            "--cpu",
            "--nproc",
            "1",
            "--rdzv-endpoint",
            f"{a.address}:29533",
        ]
        done = subprocess.run(
            [*enter, *mpirun.split(), "--mca", "plm_rsh_agent", str(agent), *launch, str(program)],
            env={name: value for name, value in launcher.env.items() if not name.startswith(("OMPI_", "SLURM_"))},
            cwd=launcher.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert [(launcher.folder / f"on-{node.name}").read_text() for node in (a, b)] == ["1 of 2", "1 of 2"]
    assert "nodes and node rank from Open MPI (rank 1 of 2)" in " ".join(done.stderr.split())
