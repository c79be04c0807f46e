"""Launcher and trainer on GPUs that are not there: from the plan to done.json, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ghost import cuda
from tests.ghost.conftest import ROOT, GhostMachine
from tests.ghost.process import reports
from tests.ghost.runs import STEPS, make
from tests.ranks import run_ranks

TRAIN = "--dataset synthetic --synthetic-samples 64 --batch-size 16 --epochs 1 --model small --no-tensorboard"


def run(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks have seen of their runs (two_ranks.py)."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(2, str(ROOT / "tests" / "ghost" / "two_ranks.py"), str(folder), folder=folder, timeout_s=200)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_are_on_their_gpus_with_nccl(two: list[dict[str, Any]]) -> None:
    assert [rank["device"] for rank in two] == ["cuda:0", "cuda:1"]
    assert [rank["backend"] for rank in two] == ["nccl", "nccl"]
    assert all("No backend type associated with device type cpu" in rank["cpu tensor"] for rank in two)
    expected = [f"GPU-00000000-0000-0000-0000-00000000000{number}" for number in range(2)]
    assert [rank["uuids"] for rank in two] == [expected, expected]


def test_no_step_of_several_ranks_waits(two: list[dict[str, Any]]) -> None:
    for name in ("default", "loader"):
        assert [(rank[name]["steps"], rank[name]["waits"]) for rank in two] == [(STEPS, [])] * 2, name
        assert two[0][name]["weights"] == two[1][name]["weights"]


def test_batch_norm_over_the_ranks_is_that_of_the_whole_batch(two: list[dict[str, Any]], tmp_path: Path) -> None:
    """By torch's own function, which asks the GPU in each layer which ranks have samples."""
    with cuda():
        alone = make("--model tests.ddp_train.techniques.tiny:normed", tmp_path / "run")
        alone.trainer.fit()
        weights = [float(p.detach().double().sum()) for p in alone.trainer.components.network.parameters()]
    for rank in two:
        assert rank["batch norm"]["weights"] == pytest.approx(weights, rel=1e-4, abs=1e-5)
        (place,) = rank["batch norm"]["waits"]
        assert "SynchronisedBatchNorm.forward: index with a mask" in place


def test_the_wrapper_does_its_all_reduces_itself(two: list[dict[str, Any]]) -> None:
    """Kind: bookkeeping that is paid for where nobody needs it."""
    assert [rank["default"]["hooked"] for rank in two] == [False, False]


def test_memory_that_runs_out_on_one_rank_costs_one_attempt(two: list[dict[str, Any]]) -> None:
    for rank in two:
        seen = rank["out of memory"]
        assert (seen["steps"], seen["accumulate"], rank["default"]["accumulate"]) == (STEPS, 2, 1)
        assert seen["weights"] == pytest.approx(rank["default"]["weights"], rel=1e-4)


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
