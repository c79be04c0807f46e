"""--overfit-one-batch: a sound network learns its batch, an unsound one is told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ddp_train.main import main
from ddp_train.tune.overfit_one_batch import Found, judge, overfit_one_batch
from tests.ddp_train.techniques import runs

WORDS = ["--dataset", "digits", "--device", "cpu", "--batch-size", "32", "--no-tensorboard", "--amp", "off"]


def test_a_sound_network_learns_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = [*WORDS, "--overfit-one-batch", "200", "--mixup", "0.5", "--label-smoothing", "0.1", "--lr", "0.02"]
    assert main([*words, "--out-dir", str(out)]) == 0
    found = json.loads((out / "overfit_one_batch.json").read_text())
    assert found["learned"] and found["images"] == 32
    assert found["losses"][0] > 1.5 and found["losses"][-1] < 0.05 * math.log(10) and len(found["losses"]) < 200
    text = capsys.readouterr().out
    assert "of 32 images: near zero, the network can learn" in text and not (out / "best_model.pth").exists()


def test_the_batch_is_the_same_in_every_step(tmp_path: Path) -> None:
    run = runs.make("--lr 1e-9 --augment none", tmp_path, runs.PLAIN)
    found = overfit_one_batch(run.trainer, 4, 10)
    assert found.losses == pytest.approx([found.losses[0]] * 4, rel=1e-5) and not found.learned
    batch = next(iter(next(iter(run.trainer.components.pipeline.train(0))).batches))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(run.trainer.components.network(batch.images), batch.labels)
    assert found.losses[0] == pytest.approx(loss.item(), rel=1e-4)


def test_one_that_cannot_learn_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--overfit-one-batch", "5", "--lr", "1e-8", "--out-dir", str(tmp_path / "run")]) == 1
    assert "look at the labels, at --lr" in capsys.readouterr().out


def test_it_ends_where_the_loss_is_not_finite(tmp_path: Path) -> None:
    run = runs.make("--lr 1", tmp_path, "tests.ddp_train.techniques.tiny:cliff")
    found = overfit_one_batch(run.trainer, 50, 10)
    assert 1 < len(found.losses) < 50 and not math.isfinite(found.losses[-1]) and not found.learned


def test_a_loss_that_is_lost_can_be_told() -> None:
    assert "loss 2.3 -> nan in 2 steps" in judge(Found(8, (2.3, math.nan), 0.1, False))
