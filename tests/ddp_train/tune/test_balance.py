"""`--policy mixed` end to end: real ranks, one of which becomes slower in the middle of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.distributed.load_balance import Speed
from ddp_train.main import main
from ddp_train.tune.balance import Balance

ROOT = Path(__file__).resolve().parents[3]
STEPS = 12
RUN = [
    *("--dataset", "synthetic", "--synthetic-samples", str(64 * STEPS), "--batch-size", "64", "--epochs", "5"),
    *("--model", "tests.ddp_train.techniques.tiny:normed", "--technique", "tests.ddp_train.tune.slowed:create"),
    *("--augment", "none", "--lr", "0.01", "--amp", "off", "--no-tensorboard"),
]


def test_a_rank_that_becomes_slower_gets_less_and_the_loss_curve_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, steady = tmp_path / "mixed", tmp_path / "steady"
    middle = 2 * STEPS + STEPS // 2
    slowed = {"SLOWED": "3,3", "SLOWED_FROM": f"{middle}:3,6", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", "2", "--policy", "mixed", *RUN]
    done = subprocess.run(
        [*command, "--out-dir", str(mixed)], cwd=ROOT, env=os.environ | slowed, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "by measured speed (predicted" in done.stderr + done.stdout
    # The steady run: a single process, which waits for nobody.
    monkeypatch.setenv("SLOWED", "0")
    assert main([*RUN, "--device", "cpu", "--out-dir", str(steady)]) == 0
    ours, theirs = (json.loads((out / "training_history.json").read_text())["epochs"] for out in (mixed, steady))
    for one, other in zip(ours, theirs, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-4)
    shares = [(epoch["extra"]["share_0"], epoch["extra"]["share_1"]) for epoch in ours]
    assert all(first + second == 64 for first, second in shares)
    # Slower from the middle of the third epoch on; a machine that is busy otherwise moves the shares a little.
    assert all(abs(first - 32) <= 8 for first, _ in shares[:3])
    assert all(abs(first - 2 / 3 * 64) <= 8 for first, _ in shares[4:])


def sampler() -> GlobalBatchSampler:
    return GlobalBatchSampler(range(100), global_batch=10, world_size=2)


def test_a_checkpoint_carries_the_division() -> None:
    before = Balance(sampler(), 1)
    before.load_state_dict(
        {"shares": [7, 3], "speeds": [[0.1, 0.2, None], [0.3, 0.4, 12]], "communication": 0.5, "waiting": 1}
    )
    state = json.loads(json.dumps(before.state_dict()))
    other = sampler()
    after = Balance(other, 1)
    after.load_state_dict(state)
    assert other.shares == (7, 3)
    assert after.state_dict() == before.state_dict()
    assert after._speeds == (Speed(0.1, 0.2), Speed(0.3, 0.4, 12))
    assert after.technique().report() == {"share_0": 7.0, "share_1": 3.0}


def test_a_division_of_other_ranks_is_measured_anew() -> None:
    three = GlobalBatchSampler(range(100), global_batch=10, world_size=3)
    balance = Balance(three, 1)
    balance.load_state_dict({"shares": [7, 3], "speeds": [], "communication": 0.0, "waiting": 0})
    assert three.shares == (1.0, 1.0, 1.0)
