"""Real Slurm: scripts/slurm.sbatch and the launcher under sbatch and srun, on a cluster of two nodes.

The tests share the cluster. A job that waits for Slurm alone begins with the first of them, and is looked at late; the
test that loses a node comes last.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.ddp_launch.conftest import Launcher
from tests.integration.cluster.slurm_cluster import SlurmCluster, slurm_cluster, why_not

TRAINING = ("--cpu", "--nproc", "1", "--dataset", "digits")
# Without torch, to be quick: works until it is asked to end, takes a second to save, and is done when it has saved.
SAVES = """
import os, pathlib, signal, sys, time
name = "-".join((sys.argv[1], "{}", os.environ["SLURM_JOB_ID"], os.environ["RANK"]))
saved, asked = pathlib.Path(name.format("saved")), []
signal.signal(signal.SIGTERM, lambda *what: asked.append(what))
if saved.exists():
    sys.exit(print("rank", os.environ["RANK"], "resumed", flush=True))
pathlib.Path(name.format("ready")).touch()
while not asked:
    time.sleep(0.05)
time.sleep(1)
saved.touch()
sys.exit(143)
"""
WHERE = """
import os, socket
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "on", socket.gethostname(), flush=True)
"""
HETEROGENEOUS = """#!/bin/bash
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=2
#SBATCH hetjob
#SBATCH --nodes=1 --ntasks=1
srun --het-group=0,1 "$PYTHON" launch.py --quiet --cpu --nproc 1 where.py
srun --het-group=1 "$PYTHON" launch.py --quiet --cpu --nproc 1 where.py
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The cluster of all these tests. Afterwards nothing that its jobs have started may be alive."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    launcher = Launcher(tmp_path_factory.mktemp("slurm"))
    launcher.script(SAVES, "saves.py")
    launcher.script(WHERE, "where.py")
    with slurm_cluster(launcher) as made:
        yield made
    # The nodes took with them what ran there; this finds what had left them.
    for pid in (left := launcher.alive()):
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still running: {left}"


def saving_job(cluster: SlurmCluster, name: str, *options: str) -> str:
    """A job, or an array of such, on both nodes: its ranks work until they are asked to end."""
    return cluster.submit("--cpus-per-task=1", *options, args=("--cpu", "--nproc", "1", "saves.py", name))


def files(cluster: SlurmCluster, pattern: str) -> int:
    """How many files of ranks there are."""
    return len(list(cluster.folder.glob(pattern)))


@pytest.fixture(scope="module")
def warned(cluster: SlurmCluster) -> str:
    """A job that is warned 30 to 60 s after its start: Slurm looks at the limits every 30 s, and 30 s ahead."""
    return saving_job(cluster, "warned", "--partition=high", "--signal=B:USR1@600", "--time=11")


def test_several_tasks_on_a_node_are_refused_in_one_line(cluster: SlurmCluster, warned: str) -> None:
    done = cluster.run("srun", "--nodes=2", "--ntasks-per-node=4", sys.executable, "launch.py", "--cpu", "where.py")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("srun:"))
    assert line.startswith("error: Slurm started 4 launchers on a node")
    assert "use #SBATCH --nodes=2 --ntasks-per-node=1 and srun --nodes=2 --ntasks=2 --ntasks-per-node=1" in line


def test_a_step_smaller_than_its_heterogeneous_job(cluster: SlurmCluster, warned: str) -> None:
    script = cluster.folder / "heterogeneous.sh"
    script.write_text(HETEROGENEOUS)
    output = cluster.wait(cluster.submit(script=script), "COMPLETED")
    lines = re.findall(r"rank \d of \d on \S+", output)
    assert sorted(lines[:2]) == ["rank 0 of 2 on node-a", "rank 1 of 2 on node-b"]
    assert lines[2:] == ["rank 0 of 1 on node-b"]


def test_an_array_and_scancel(cluster: SlurmCluster, warned: str) -> None:
    """Two jobs on the same nodes at once. Their ranks can save, nothing is left, and nothing is queued again.

    Before it, one of them has the time limit's warning: Slurm has given it the number that means the whole array, too.
    """
    array = saving_job(cluster, "array", "--array=1-2")
    cluster.until(lambda: files(cluster, "array-ready-*") == 4, array)
    rows = cluster.ask("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%A %i").splitlines()
    names = dict(row.split() for row in rows)
    ports = [re.findall(r"meeting at node-a:(\d+)", cluster.output(job)) for job in names]
    assert len(ports) == len({port for found in ports for port in found}) == 2
    cluster.ask("scancel", "--batch", "--signal=USR1", names[array])
    cluster.until(lambda: cluster.facts(names[array])["Restarts"] == "1", array)
    assert files(cluster, "array-saved-*") == files(cluster, f"array-saved-{array}-*") == 2
    (other,) = set(names) - {array}
    assert cluster.facts(names[other])["JobState"] == "RUNNING"
    cluster.ask("scancel", array)
    cluster.until(lambda: not any("saves.py array" in line for line in cluster.processes()), array)
    assert files(cluster, "array-saved-*") == 4
    cluster.wait(names[other], "CANCELLED")
    assert cluster.facts(names[other])["Restarts"] == "0"


def test_jobs_of_an_array_have_run_folders_of_their_own(cluster: SlurmCluster) -> None:
    """Where the script names them: `echo` takes Python's place."""
    array = cluster.submit("--array=1-2", "--cpus-per-task=1", "--nodes=1", "--export=ALL,PYTHON=echo")
    jobs = (array, str(int(array) + 1))
    for job in jobs:
        cluster.until(lambda job=job: f"--out-dir runs/slurm-{job} --resume auto" in cluster.output(job), array)


def test_preempted_jobs_resume(cluster: SlurmCluster, warned: str) -> None:
    """One that Slurm ends at once, and one in a partition with a GraceTime, which ends by itself within it.

    The trainer's workers get SIGTERM too: Slurm signals every process of a step.
    """
    run = ("--out-dir", "run", "--resume", "auto", "--epochs", "8", "--batch-size", "64")
    training = cluster.submit("--cpus-per-task=7", args=(*TRAINING, *run, "--pipeline", "loader", "--num-workers", "1"))
    saving = saving_job(cluster, "preempted", "--partition=grace", "--cpus-per-task=7")
    cluster.until(lambda: len(cluster.epochs("run")) > 0 and files(cluster, "preempted-ready-*") == 2, training)
    script = cluster.folder / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 1\n")
    cluster.submit("--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=15", script=script)
    output = cluster.wait(training, "COMPLETED")
    assert "DUE TO PREEMPTION" in output
    assert "saved: --resume continues from there" in output
    assert re.search(r"continues run/checkpoint-latest.pt in epoch \d+, after step \d+", output)
    assert [epoch["epoch"] for epoch in cluster.epochs("run")] == list(range(1, 9))
    assert (cluster.folder / "run" / "done.json").exists()
    output = cluster.wait(saving, "COMPLETED")
    assert sorted(re.findall(r"rank \d resumed", output)) == ["rank 0 resumed", "rank 1 resumed"]
    assert {cluster.facts(job)["Restarts"] for job in (training, saving)} == {"1"}


def test_the_warning_before_the_time_limit(cluster: SlurmCluster, warned: str) -> None:
    """SIGUSR1 to the batch script alone: the ranks save, and the job is queued again."""
    output = cluster.wait(warned, "COMPLETED")
    assert files(cluster, "warned-saved-*") == 2
    assert sorted(re.findall(r"rank \d resumed", output)) == ["rank 0 resumed", "rank 1 resumed"]
    assert int(cluster.facts(warned)["Restarts"]) > 0


def test_a_lost_node_leaves_the_other_to_finish(cluster: SlurmCluster) -> None:
    """Everything on it is killed, slurmd too. --no-kill has Slurm leave the job to the first node."""
    nodes = ("--nnodes", "1:2", "--rdzv-conf", "last_call_timeout=3")
    run = ("--out-dir", "lost", "--resume", "auto", "--epochs", "4", "--batch-size", "64")
    job = cluster.submit("--no-kill", "--cpus-per-task=1", args=(*nodes, *TRAINING, *run))
    cluster.until(lambda: len(cluster.epochs("lost")) > 0, job)
    cluster.b.run("kill -KILL -1")
    cluster.ask("scontrol", "update", "NodeName=node-b", "State=DOWN", "Reason=lost")
    output = cluster.wait(job, "COMPLETED")
    assert "Node failure on node-b" in output
    assert "2 ranks on cpu" in output
    assert "1 rank on cpu" in output[output.index("restart 1 of 3") :]
    assert [epoch["epoch"] for epoch in cluster.epochs("lost")] == list(range(1, 5))
