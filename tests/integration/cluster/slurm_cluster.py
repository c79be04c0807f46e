"""A real Slurm cluster on one machine: slurmctld and a slurmd in the first of two nodes, a slurmd in the second.

Configuration, key, sockets and state are in one temporary folder, and every daemon is a process of its node, with which
it is gone. A Slurm that is installed for work is never touched: where one is configured there are no such tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.ddp_launch import two_nodes
from tests.ddp_launch.conftest import Launcher
from tests.ddp_launch.two_nodes import Node

ROOT = Path(__file__).parents[3]
SBATCH = ROOT / "scripts" / "slurm.sbatch"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "munged")
CONFIGURED = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf")
TIMEOUT_S = 120
# CPUs are counted, not measured (config_overrides): jobs can share the nodes. cred_expire is also how long a job that
# was queued again has to wait. In `main` a preempted job is ended at once, in `grace` it first has GraceTime.
CONFIGURATION = """
ClusterName=two
SlurmctldHost=node-a(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={state}/munge.socket,cred_expire=5
StateSaveLocation={state}/ctld
SlurmctldPidFile={state}/ctld.pid
SlurmctldLogFile={state}/ctld.log
SlurmdSpoolDir={state}/%n
SlurmdPidFile={state}/%n.pid
SlurmdLogFile={state}/%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=15
NodeName=node-a NodeAddr=10.77.0.1 CPUs=16 RealMemory=1000
NodeName=node-b NodeAddr=10.77.0.2 CPUs=16 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no such cluster here; None where there can."""
    if os.geteuid() != 0:
        return "a Slurm cluster in namespaces needs root"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)"
    if found := [file for file in (os.environ.get("SLURM_CONF"), *CONFIGURED) if file and Path(file).exists()]:
        return f"a Slurm is configured on this machine ({found[0]})"
    return two_nodes.why_not()


class SlurmCluster:
    """The running cluster. `launcher`: its folder is where jobs are submitted and write; `a`, `b`: the nodes."""

    def __init__(self, launcher: Launcher, state: Path, a: Node, b: Node) -> None:
        self.folder = launcher.folder
        self.a, self.b = a, b
        self._state = state
        inherited = {name: value for name, value in launcher.env.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self._env = inherited | {"SLURM_CONF": str(state / "slurm.conf"), "PYTHON": sys.executable}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node, to its end."""
        command = self.a.command(*words)
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=TIMEOUT_S)

    def ask(self, *words: str) -> str:
        """The output of a command that has to succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *options: str, script: Path = SBATCH, args: tuple[str, ...] = ()) -> str:
        """The number of a new job; its cores are not bound, and it has no GPU."""
        asked = ("--gpus-per-node=0", *options) if script == SBATCH else options
        return self.ask("sbatch", "--parsable", *asked, str(script), *args)

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol says about a job, by name."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def output(self, job: str) -> str:
        """What the job, in all its attempts, and its ranks have written."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, state: str) -> str:
        """The job's output, once it has come to this state; of one that ends otherwise, an error."""
        self.until(lambda: (found := self.facts(job)["JobState"]) == state or found in ("FAILED", "NODE_FAIL"), job)
        assert self.facts(job)["JobState"] == state, self.output(job)
        return self.output(job)

    def until(self, happened: Callable[[], bool], job: str) -> None:
        """Wait for something that this job does."""
        deadline = time.monotonic() + TIMEOUT_S
        while not happened():
            assert time.monotonic() < deadline, f"{self.facts(job)}\n{self.output(job)}"
            time.sleep(0.1)

    def epochs(self, run: str) -> list[dict[str, Any]]:
        """The epochs in the history of a run folder; none before there is one."""
        with suppress(FileNotFoundError):
            return json.loads((self.folder / run / "training_history.json").read_text())["epochs"]
        return []

    def processes(self) -> list[str]:
        """The command lines of what runs on the two nodes."""
        script = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null || continue; echo; done"
        return [line for node in (self.a, self.b) for line in node.run(script).splitlines() if line.strip()]

    def start_daemons(self) -> None:
        """Start all of them, and wait until both nodes are ready for jobs."""
        state = self._state
        (state / "slurm.conf").write_text(CONFIGURATION.format(state=state))
        (state / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (state / "plugstack.conf").touch()
        key = state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{what}-file={state / f'munge.{what}'}" for what in ("key", "pid", "log", "seed")]
        self._start(self.a, "munged", "--foreground", "--force", f"--socket={state / 'munge.socket'}", *files)
        self._until_ready(lambda: (state / "munge.socket").exists())
        self._start(self.a, "slurmctld", "-D")
        for node in (self.a, self.b):
            self._start(node, "slurmd", "-D", "-N", node.name)
        self._until_ready(lambda: self.run("sinfo", "-h", "-p", "main", "-o", "%D %T").stdout == "2 idle\n")

    def _start(self, node: Node, *words: str) -> None:
        with (self._state / f"{words[0]}.{node.name}.out").open("w") as out:
            subprocess.Popen(node.command(*words), env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def _until_ready(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            said = [path.read_text() for path in (*self._state.glob("*.out"), *self._state.glob("*.log"))]
            assert time.monotonic() < deadline, "\n".join(said)
            time.sleep(0.1)


@contextmanager
def slurm_cluster(launcher: Launcher) -> Iterator[SlurmCluster]:
    """A cluster whose jobs run in the launcher's folder, with its environment."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as state,
        two_nodes.two_nodes(launcher.folder) as nodes,
    ):
        (launcher.folder / "launch.py").symlink_to(ROOT / "launch.py")
        cluster = SlurmCluster(launcher, Path(state), *nodes)
        cluster.start_daemons()
        yield cluster
