"""`--tune estimate`: memory by part against what the tensors hold, and a run's time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_core.errors import OptionError
from ddp_launch.cli.options import parse
from ddp_train.assemble.build import build
from ddp_train.config import parse as config
from ddp_train.distributed.process_group import Ranks
from ddp_train.main import main
from ddp_train.tune import estimate
from ddp_train.tune.steps import Line

WORDS = [
    *(
        "--dataset",
        "synthetic",
        "--synthetic-samples",
        "96",
        "--batch-size",
        "16",
        "--accumulate",
        "2",
        "--epochs",
        "7",
    ),
    *("--model", "tests.ddp_train.techniques.tiny:plain", "--optimizer", "adamw", "--amp", "off", "--no-tensorboard"),
    *("--device", "cpu"),
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MOST_STEPS", 8)


def test_the_parts_are_those_of_the_tensors_and_nothing_is_trained(tmp_path: Path) -> None:
    run = build(config.parse([*WORDS, "--out-dir", str(tmp_path / "run")]), Ranks(), torch.device("cpu"))
    components = run.trainer.components
    before = [p.clone() for p in components.network.parameters()]
    found = estimate.estimate(run.trainer, 24)
    count = sum(p.numel() for p in components.network.parameters())
    assert found.parameters == count
    assert (found.memory.weights, found.memory.gradients) == (4 * count, 4 * count)
    # Two moments for each number, and a count of steps for each tensor.
    assert found.memory.optimizer == 8 * count + 4 * len(before)
    assert found.memory.activations.slope > 0
    assert (found.micro_batch, found.steps_per_epoch, found.epochs) == (8, 6, 7)
    assert found.epoch_seconds == pytest.approx(6 * found.step_seconds + found.evaluation_seconds)
    assert all(torch.equal(one, other) for one, other in zip(before, components.network.parameters(), strict=True))
    assert not components.optimizer.state
    assert run.trainer.progress.step == 0


def test_a_run_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--tune", "estimate", "--out-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "activations (micro-batch of 8)" in said
    assert "6 steps an epoch" in said
    assert json.loads((tmp_path / "run" / "estimate.json").read_text())["schema"] == "ddp-train-estimate/1"


def test_steps_are_timed_from_the_weights_that_a_run_begins_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--lr", "100", "--warmup-epochs", "2", "--tune", "estimate"]
    assert main([*words, "--out-dir", str(tmp_path / "run")]) == 0
    assert "the loss of the first step" not in capsys.readouterr().err


def test_the_sum_of_the_parts() -> None:
    assert estimate.Memory(100, 20, 3, Line(10.0, 2.0)).total(8) == 149


def test_the_launchers_option() -> None:
    assert parse(["--estimate", "--epochs", "3"]).program.args == ("--epochs", "3", "--tune", "estimate")
    with pytest.raises(OptionError, match="--estimate measures the bundled trainer"):
        parse(["--estimate", "train.py"])
