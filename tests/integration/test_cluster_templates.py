"""The templates for Slurm and Kubernetes: complete, and accepted by the launcher that they start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddp_launch.cli.options import parse
from ddp_launch.cluster.cluster import find_cluster
from ddp_train.config.parse import parse as parse_training
from tests.ddp_launch.conftest import launcher  # noqa: F401

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "scripts" / "slurm.sbatch"
KUBERNETES = ROOT / "scripts" / "kubernetes.yaml"

SRUN = """#!/bin/sh
# Starts the command as the only task of a step on one node.
while [ "${1#--}" != "$1" ]; do echo "$1" >> srun-options; shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=here SLURM_NODEID=0 SLURM_PROCID=0
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> scontrol-words
"""
WAIT = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(sys.argv[1:] == ["long"] and 120 or 0)
"""


@pytest.fixture
def slurm(launcher: Any) -> Any:  # noqa: F811
    """The launcher's folder with a stand-in for Slurm: srun and scontrol on PATH, and a job's variables."""
    (launcher.folder / "launch.py").symlink_to(ROOT / "launch.py")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        launcher.script(text, f"bin/{name}").chmod(0o755)
    launcher.script(WAIT)
    launcher.env |= {
        "PATH": f"{launcher.folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_SUBMIT_DIR": str(launcher.folder),
    }
    return launcher


def start(slurm: Any, *args: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = ["bash", str(SBATCH), *args]
    return subprocess.Popen(command, env=slurm.env, cwd=slurm.folder, stdout=pipe, stderr=pipe, text=True)


def test_a_job_that_ends_is_not_queued_again(slurm: Any) -> None:
    job = start(slurm, "--cpu", "program.py")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert "Slurm job 4711, step 0" not in err, "one node needs no word on where it stands"
    options = (slurm.folder / "srun-options").read_text().split()
    assert {"--ntasks-per-node=1", "--cpus-per-task=2"} <= set(options)
    assert not (slurm.folder / "scontrol-words").exists()


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_lets_the_ranks_save(slurm: Any, number: signal.Signals, queued: bool) -> None:
    """At the time limit the script queues the job again; at a preemption Slurm does."""
    job = start(slurm, "--cpu", "--nproc", "1", "program.py", "long")
    slurm.wait_for("ready")
    begin = time.monotonic()
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert job.returncode == 143, err
    assert (slurm.folder / "saved").exists()
    words = slurm.folder / "scontrol-words"
    assert (words.read_text() if words.exists() else "") == ("requeue 4711\n" if queued else "")


def test_sbatch_asks_for_one_launcher_on_each_node() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    asked = re.findall(r"^#SBATCH (\S+)$", SBATCH.read_text(), flags=re.M)
    assert {"--ntasks-per-node=1", "--requeue", "--signal=B:USR1@120", "--open-mode=append"} <= set(asked)


def test_kubernetes_objects_fit_together() -> None:
    service, claim, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert [kind["kind"] for kind in (service, claim, job)] == ["Service", "PersistentVolumeClaim", "Job"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:2] == ["python", "launch.py"]
    options = parse(container["command"][2:])
    assert parse_training(options.program.args).run.resume == "auto"
    cluster = find_cluster(options, {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert cluster.nnodes == (job["spec"]["completions"],) * 2 == (job["spec"]["parallelism"],) * 2
    assert cluster.node_rank == 1
    name, port = job["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert cluster.endpoint == f"{name}-0.{service['metadata']['name']}:{port}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert options.grace is not None
    assert options.grace < pod["terminationGracePeriodSeconds"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy allows no other"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()
    assert "/dev/shm" in mounts.values()
