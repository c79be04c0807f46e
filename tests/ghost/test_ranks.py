"""Launcher and trainer on GPUs that are not there: from the plan to done.json, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ghost.conftest import ROOT, GhostMachine
from tests.ghost.process import reports

TRAIN = "--dataset synthetic --synthetic-samples 64 --batch-size 16 --epochs 1 --model small --no-tensorboard"


def run(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=False
    )


def test_two_ranks_of_nccl(ghost_machine: GhostMachine, tmp_path: Path) -> None:
    env = ghost_machine("rtx3090_2x_nvlink")
    launch = [str(ROOT / "launch.py"), "--auto", "--gpus", "0,1", *TRAIN.split(), "--out-dir", "run"]
    done = run(env, tmp_path, *launch)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "done.json").is_file()
    environment = json.loads((tmp_path / "run" / "training_history.json").read_text())["environment"]
    assert environment["all_reduce"] == "nccl"
    ranks = reports(tmp_path / "ghost")
    assert [ranks[rank]["current"] for rank in "01"] == [0, 1]
    assert ranks["0"]["collectives"] == ranks["1"]["collectives"] > 4
