"""Looking inside and the records of real runs, on one rank and two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddp_train import evaluate
from tests.integration.conftest import ROOT, Command, torchrun
from tests.ranks import run_ranks

SPOILT = "tests.ddp_train.diagnostics.spoilt:poisoned"


def test_all_ranks_end_alike_and_the_rank_is_named(command: Command, tmp_path: Path) -> None:
    options = ["--dataset", "synthetic", "--synthetic-samples", "160", "--batch-size", "16", "--epochs", "2"]
    options += ["--model", SPOILT, "--watch-numbers", "--no-tensorboard", "--amp", "off", "--device", "cpu"]
    done = command(
        *torchrun(2), str(ROOT / "ddp_train" / "main.py"), *options, "--out-dir", str(tmp_path / "run"), cwd=ROOT
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: step 14 (epoch 2), rank 1: the output of layer 2 (Poison) is not finite")


def test_evaluation_under_torchrun_counts_each_image_once(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dataset", "digits", "--epochs", "2", "--device", "cpu", "--no-tensorboard"]
    options += ["--out-dir", str(tmp_path / "run")]
    run_ranks(2, ROOT / "ddp_train" / "main.py", *options, "--amp", "off", folder=tmp_path)
    words = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--json"]
    assert evaluate.main(words) == 0
    one = json.loads(capsys.readouterr().out)
    done = command(*torchrun(2, "-m", "ddp_train.evaluate"), *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert one["samples"] == two["samples"] == 359
    assert one["confusion"] == two["confusion"] and one["top5"] == two["top5"]
    assert abs(one["loss"] - two["loss"]) < 1e-6
    _assert_closed(tmp_path / "run", one)
    done = command(*torchrun(2, "-m", "ddp_train.evaluate"), "--checkpoint", "nowhere", "--device", "cpu", cwd=ROOT)
    assert done.returncode != 0 and done.stderr.count("error: cannot read nowhere") == 1


def _assert_closed(folder: Path, found: dict[str, Any]) -> None:
    """The pictures and the card at the end of the run on two ranks tell what one rank finds in the best model."""
    for name in ("confusion_matrix.png", "worst_images.png", "training_curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    card = (folder / "model_card.md").read_text()
    best = json.loads((folder / "training_history.json").read_text())["best"]
    assert f"| best epoch | {best['epoch']} of 2 |" in card
    assert f"| top-1 accuracy | {found['top1']:.2%} |" in card and "| test images | 359 |" in card
    assert f"| mean cross-entropy | {found['loss']:.4f} |" in card
    for row in found["per_class"]:
        assert f"| {row['class']} | {row['accuracy']:.2%} of {row['samples']} |" in card
    assert "| machine | 2 ranks on cpu |" in card and "--dataset digits --epochs 2" in card
