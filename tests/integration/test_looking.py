"""Looking inside and the records of real runs, on one rank and two."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.conftest import ROOT, Command, torchrun

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


def test_evaluation_under_torchrun_counts_each_image_once(command: Command, tmp_path: Path) -> None:
    options = ["--dataset", "digits", "--epochs", "1", "--device", "cpu", "--no-tensorboard", "--out-dir", "run"]
    assert command(str(ROOT / "ddp_train" / "main.py"), *options).returncode == 0
    found = []
    for launch in (["-m", "ddp_train.evaluate"], torchrun(2, "-m", "ddp_train.evaluate")):
        words = ["--checkpoint", str(tmp_path / "cwd" / "run"), "--device", "cpu", "--json"]
        done = command(*launch, *words, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    one, two = found
    assert one["samples"] == two["samples"] == 359
    assert one["confusion"] == two["confusion"] and one["top5"] == two["top5"]
    assert abs(one["loss"] - two["loss"]) < 1e-6
    done = command(*torchrun(2, "-m", "ddp_train.evaluate"), "--checkpoint", "nowhere", "--device", "cpu", cwd=ROOT)
    assert done.returncode != 0 and done.stderr.count("error: cannot read nowhere") == 1
