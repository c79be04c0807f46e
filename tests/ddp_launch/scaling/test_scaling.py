"""--scaling on real ranks of a program of the user's: a slowed network, loader or rank is named as the main cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from ddp_launch.cli.options import parse
from ddp_launch.plan.plan import MachineFacts, make_plan
from ddp_launch.scaling import command
from ddp_launch.scaling.trial import Observed, Trial
from gpu_topology.host.host import read_host
from gpu_topology.topology import Topology
from tests.ddp_launch.conftest import ROOT

PROGRAM = """
import os, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

SLOW = os.environ["SLOW"]
assert "DDP_LAUNCH_OBSERVE" not in os.environ
torch.set_num_threads(1)
dist.init_process_group("gloo")

class Samples(TensorDataset):
    def __getitem__(self, index):
        if SLOW == "input":
            time.sleep(0.005)
        return super().__getitem__(index)

net = DistributedDataParallel(torch.nn.Linear(512, 512))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for _ in range(1000):
    for images, in DataLoader(Samples(torch.ones(2048, 512)), batch_size=16):
        if SLOW == "rank" and dist.get_rank() == 1:
            time.sleep(0.08)
        net(images).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
"""
WIRE = "ip link set lo up; ip link set lo mtu 1500; tc qdisc add dev lo root tbf rate 60mbit burst 256kb limit 30mb"
TIMEOUT_S = 280


def measured(launcher: Any, slow: str, *within: str) -> dict[str, Any]:
    """What --scaling says of the program."""
    launcher.script(PROGRAM)
    words = ["--cpu", "--scaling", "1", "--json", "program.py"]
    if within:
        process = subprocess.Popen(
            [*within, sys.executable, str(ROOT / "launch.py"), *words],
            cwd=launcher.folder,
            env=launcher.env | {"SLOW": slow},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    else:
        process = launcher.start(*words, SLOW=slow)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    assert [trial["ranks"] for trial in found["trials"]] == [1, 2]
    return found


def test_a_slow_loader(launcher: Any) -> None:
    found = measured(launcher, "input")
    assert found["main_cause"] == "input", found
    assert "program.py:14 (__getitem__)" in found["sentence"]
    assert found["scaling"] == "weak"
    assert "batches of 16" in found["why"]


def test_a_slow_rank(launcher: Any) -> None:
    found = measured(launcher, "rank")
    assert found["main_cause"] == "waiting", found
    assert found["trials"][1]["slow_rank"] == 1
    assert "rank 1" in found["sentence"]
    assert "program.py:22 (<module>)" in found["sentence"]


def test_a_slow_network(launcher: Any) -> None:
    own_network = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    made = subprocess.run([*own_network, "sh", "-euc", WIRE], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network of its own, or no tc with tbf here: {made.stderr.strip()}")
    found = measured(launcher, "network", *own_network, "sh", "-euc", f'{WIRE}; exec "$@"', "sh")
    assert found["main_cause"] == "communication", found
    assert found["trials"][1]["shares"]["communication"] > 0.5


def test_the_trainer_divides_its_batch_and_leaves_no_folder(launcher: Any) -> None:
    words = ("--dataset", "synthetic", "--synthetic-samples", "2048", "--batch-size", "64")
    process = launcher.start("--cpu", "--scaling", "1", "--json", *words)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["scaling"] == "strong"
    assert [trial["ranks"] for trial in found["trials"]] == [1, 2]
    assert all(abs(sum(trial["shares"].values()) - 1) < 0.01 for trial in found["trials"]), found
    assert {path.name for path in launcher.folder.iterdir()} == {"tmp"}
    assert not [path for path in (launcher.folder / "tmp").iterdir() if path.name.startswith("ddp-launch-scaling")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_trial_too(launcher: Any, number: signal.Signals) -> None:
    launcher.script("import pathlib, time; pathlib.Path('started').touch(); time.sleep(600)")
    process = launcher.start("--cpu", "--scaling", "program.py")
    launcher.wait_for("started")
    process.send_signal(number)
    assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 15
    while launcher.alive() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nproc", "1"), "this plan has one"),
        (("--scaling", "0"), "--scaling '0': expected seconds from 1 to 600"),
        (("--dry-run",), "--scaling and --dry-run exclude each other"),
        (("--nnodes", "2", "--rdzv-endpoint", "localhost:29400"), "measures on one machine"),
    ],
)
def test_wrong_use_is_one_line(launcher: Any, words: tuple[str, ...], said: str) -> None:
    launcher.script("import torch")
    done = launcher.run("--cpu", "--scaling", *words, "program.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_program_that_fails_or_does_not_train(launcher: Any) -> None:
    launcher.script("raise ValueError('no data here')")
    done = launcher.run("--cpu", "--scaling", "program.py")
    assert done.returncode == 1
    assert "ValueError: no data here" in done.stderr
    assert "error: --scaling: the trial on 1 rank failed with status 1" in done.stderr
    launcher.script("import torch")
    done = launcher.run("--cpu", "--scaling", "program.py")
    assert done.returncode == 2
    assert "on 1 rank the program ended with 0 steps of an optimizer" in done.stderr


@pytest.mark.parametrize(
    ("raised", "status", "last"),
    [
        ("UserError('torch 2.0 is too old', 'install 2.6')", 2, "error: torch 2.0 is too old; install 2.6"),
        ("RuntimeError('a defect')", 1, "RuntimeError: a defect"),
    ],
)
def test_a_trial_that_cannot_start_says_why(launcher: Any, raised: str, status: int, last: str) -> None:
    code = f"""
from pathlib import Path
from ddp_core.errors import UserError
from ddp_launch.cli.options import parse
from ddp_launch.scaling.trial import TrialFailed, measure, options_of_a_trial
def launch(options):
    raise {raised}
folder = Path("trial")
try:
    measure(options_of_a_trial(parse(["--cpu", "--scaling", "program.py"]), 1, folder), launch, 1.0, folder)
except TrialFailed as error:
    print(error.status, error.lines[-1])
"""
    env = launcher.env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=launcher.folder, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{status} {last}\n", "")


def test_a_cpu_quota_limits_the_possible_speed_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container on a machine of 64 cores may use two of them at a time."""
    options = parse(["--cpu", "--nproc", "4", "--scaling", "--json", "a.py"])
    host = replace(read_host(), usable_cpus=2)
    plan = make_plan(options, MachineFacts(topology=Topology(), host=host, environ={}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    seen = Observed(steps=10, seconds=1.0)
    monkeypatch.setattr(command, "measure", lambda trial, *_: Trial(trial.nproc, (seen,) * trial.nproc))
    assert command.run(options, plan, lambda trial: 0) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert [trial["possible_speed_up"] for trial in trials] == [1.0, 2.0, 2.0]
