"""Looking inside and the records of real runs, on one rank and two."""

from __future__ import annotations

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
