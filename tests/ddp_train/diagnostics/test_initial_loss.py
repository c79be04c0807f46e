"""The loss of the first step against ln(classes)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ddp_train.diagnostics.initial_loss import judge
from tests.ddp_train.techniques import runs


def test_an_untrained_network_stands_at_ln_classes() -> None:
    logits, labels = torch.zeros(64, 10), torch.randint(10, (64,))
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(math.log(10))
    assert judge(loss, 10) is None


@pytest.mark.parametrize(
    ("loss", "word"), [(4.7, "scale of the last layer"), (math.nan, "normalisation"), (1.1, "labels may be visible")]
)
def test_a_loss_far_from_it_is_told(loss: float, word: str) -> None:
    line = judge(loss, 10)
    assert line is not None and word in line and "ln(10 classes) = 2.3" in line


def test_steps_that_measured_the_ranks_before_the_run_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.make("--lr 1e-6", tmp_path, "tests.ddp_train.diagnostics.spoilt:loud")
    quiet = torch.zeros(100_000, 10)
    run.trainer.components.loss(quiet, torch.zeros(len(quiet), dtype=torch.int64))
    for observer in run.observers:
        observer.on_start(run.facts)
    run.trainer.fit()
    assert capsys.readouterr().err.count("note: the loss of the first step is") == 1


def test_a_run_tells_it_once_and_not_after_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = "tests.ddp_train.diagnostics.spoilt:loud"
    runs.train_with_a_kill("--lr 1e-6", tmp_path, network, at=14, saved=4)
    assert capsys.readouterr().err.count("note: the loss of the first step is") == 1
    runs.make("--no-initial-loss-check --lr 1e-6", tmp_path / "without", network).trainer.fit()
    assert "note:" not in capsys.readouterr().err
