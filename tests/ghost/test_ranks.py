"""Launcher and trainer on GPUs that are not there: from the plan to done.json, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_nvml.machine import load_machine
from tests.ghost import cuda
from tests.ghost.conftest import ROOT, GhostMachine
from tests.ghost.machines import rows
from tests.ghost.process import reports
from tests.ghost.runs import STEPS, make
from tests.ranks import run_ranks

STEP_PHASES = ("data", "forward", "backward", "step", "training", "device")
TRAIN = (
    "--dataset synthetic --synthetic-samples 80 --batch-size 8 --epochs 1 --no-tensorboard "
    "--model tests.ddp_train.techniques.tiny:normed"
)


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
    assert [rank["uuids, each sees one"] for rank in two] == [expected, expected]


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


def uuids(machine: dict[str, Any] | str) -> list[str]:
    return [row["uuid"] for row in rows(load_machine(machine))]


def test_two_ranks_under_a_mask_in_cudas_own_order(ghost_machine: GhostMachine, tmp_path: Path) -> None:
    """From the plan to done.json. CUDA counts the A100 (PCI 3) first and the T400 (PCI 1) last: "2,1"
    is PCI 2 and 0."""
    machine = load_machine("a100_a5000_t400")
    for gpu, speed in zip(machine["gpus"], (50, 1, 50, 90, 50), strict=True):
        gpu["cores"], gpu["energy"] = speed, [10**9, 200_000]
    env = ghost_machine(machine, CUDA_VISIBLE_DEVICES="2,1")
    # The check of peer access multiplies matrices of a GPU's size.
    words = ["--auto", "--no-preflight", *TRAIN.split(), "--out-dir", "run"]
    done = run(env, tmp_path, str(ROOT / "launch.py"), *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "done.json").is_file()
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    facts = history["environment"]
    assert (facts["all_reduce"], facts["world_size"], facts["device"]) == ("nccl", 2, "NVIDIA RTX A5000")
    energy_is_that_of_two_gpus(tmp_path / "run", history, done.stderr)
    weights = torch.load(tmp_path / "run" / "best_model.pth", weights_only=True)
    assert {str(value.device) for value in weights.values()} == {"cpu"}, "it loads on a machine without a GPU"
    watched = run(env, ROOT, "-m", "gpu_topology", "monitor", "--gpus", "0,2", "--seconds", "0.2", "--json")
    assert watched.returncode == 0, watched.stderr
    assert [gpu["uuid"] for gpu in json.loads(watched.stdout)["gpus"]] == [uuids(machine)[at] for at in (0, 2)]
    ranks = reports(tmp_path / "ghost")
    assert {ranks[rank]["gpus"][int(rank)]["uuid"] for rank in "01"} == {uuids(machine)[at] for at in (0, 2)}
    assert [ranks[rank]["current"] for rank in "01"] == [0, 1]
    assert ranks["0"]["collectives"] == ranks["1"]["collectives"] > 4
    for rank in "01":
        often = [wait for *wait, count in ranks[rank]["waits"] if wait[2] in STEP_PHASES and count >= 9]
        assert often == []


def energy_is_that_of_two_gpus(folder: Path, history: dict[str, Any], said: str) -> None:
    """200 W each, by their counters: of the epoch in the history, of the whole run in the events, on the page."""
    (epoch,) = history["epochs"]
    joules = epoch["extra"]["energy_joules"]
    assert history["energy"] == {"joules": joules, "epochs": 1}
    assert 2 * 200 * 0.9 * epoch["seconds"] < joules < 2 * 200 * 120
    assert {*history["rank_seconds"]} == {"0", "1"} and history["rank_seconds"]["1"]["backward"] > 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (whole,) = [event for event in events if event["event"] == "energy"]
    assert [gpu["index"] for gpu in whole["gpus"]] == [0, 2] and joules < whole["joules"] < 2 * 200 * 240
    assert " Wh; files in run" in said
    page = (folder / "report.html").read_text()
    assert "GPU 2</th>" in page and "GPU 3</th>" not in page and 'aria-label="Energy.' in page
    assert "NVIDIA RTX A5000" in page and "<title id=" in page, "the picture of the machine"


def test_four_ranks_on_mig_slices(ghost_machine: GhostMachine, tmp_path: Path) -> None:
    """Each rank sees one slice alone, as its first device; the run knows all four."""
    slices = [
        {"uuid": f"MIG-{n:08x}-aaaa-bbbb-cccc-{n:012x}", "profile": "3g.40gb", "memory_mib": 40000, "instance": 1}
        for n in range(4)
    ]
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "cc": [9, 0], "mig_mode": True, "energy": [1, 1000]}
    machine = {"gpus": [{**gpu, "mig": [one]} for one in slices]}
    env = ghost_machine(machine)
    done = run(env, tmp_path, str(ROOT / "launch.py"), "--auto", *TRAIN.split(), "--out-dir", "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "done.json").is_file()
    ranks = reports(tmp_path / "ghost")
    seen = [[one["uuid"] for one in ranks[rank]["gpus"]] for rank in "0123"]
    assert seen == [[one["uuid"]] for one in slices]
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    assert history["environment"]["world_size"] == 4
    assert "energy" not in history, "the counter is that of the whole GPU"
    assert '<h2 id="energy">' not in (tmp_path / "run" / "report.html").read_text()


def test_a_gpu_that_does_not_answer_is_no_ranks_fault(ghost_machine: GhostMachine, tmp_path: Path) -> None:
    """Kind: a wait without a phase. All ranks wait for their GPUs, and none is behind."""
    env = ghost_machine("rtx3090_2x_nvlink", GHOST_STUCK_FROM="4")
    words = ["--auto", "--gpus", "0,1", *TRAIN.split(), "--epochs", "2", "--step-timeout", "6", "--out-dir", "run"]
    done = run(env, tmp_path, str(ROOT / "launch.py"), *words)
    said = " ".join(done.stderr.split())
    assert done.returncode == 137, said
    assert "HungDevice: the GPUs of ranks 0, 1 have not answered for" in said
    assert "the ranks waited for their GPUs, of which one, or a link between them, did not answer" in said
    assert "dmesg | grep Xid" in said
    assert "a GPU did not answer ──" in said and " hung" not in said
