"""Ranks of unequal speed: shares by measured speed against equal ones, with the bound that arithmetic sets.

    python -m benchmarks.mixed_ranks [--slower 2,3,4] [--delay-ms 12] [--epochs 2] [--out NAME]

Two ranks on the CPU train a tiny network; each waits --delay-ms for each of its samples before a forward pass, and the
slowed one so many times as long. What the computing itself takes comes on top of both, so that on a quiet machine the
ratio stays below its bound of (k + 1) / 2. The clock is the trainer's own: images per second of training, the median of
the epochs; calibration and evaluation are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Figures, Measurement, Option
from benchmarks.programs import LAUNCH, run

BATCH, STEPS = 64, 12


def measure(slower: int, delay_ms: float, epochs: int, folder: Path) -> Figures:
    """Images per second with equal and with measured shares, where one of two ranks is `slower` times as slow."""
    found: Figures = {"slower": slower, "bound": (slower + 1) / 2}
    for shares in ("equal", "measured"):
        out = folder / f"{shares}-{slower}"
        command = [*LAUNCH, "--cpu", "--nproc", "2", "--dataset", "synthetic"]
        command += ["--synthetic-samples", str(BATCH * STEPS), "--batch-size", str(BATCH), "--epochs", str(epochs)]
        command += ["--model", "tests.ddp_train.techniques.tiny:normed", "--no-tensorboard", "--augment", "none"]
        command += ["--technique", "tests.ddp_train.tune.slowed:create", "--sync-batch-norm", "--lr", "0.01"]
        command += ["--shares", shares, "--out-dir", str(out)]
        env = os.environ | {"SLOWED": f"{delay_ms},{slower * delay_ms}", "OMP_NUM_THREADS": "1"}
        run(command, env)
        history = json.loads((out / "training_history.json").read_text())["epochs"]
        found[shares] = round(statistics.median(epoch["images_per_second"] for epoch in history), 1)
        if shares == "measured":
            found["shares"] = [history[-1]["extra"][f"share_{rank}"] for rank in range(2)]
            found["train_loss"] = history[-1]["train_loss"]
        else:
            found["train_loss_equal"] = history[-1]["train_loss"]
    found["ratio"] = round(found["measured"] / found["equal"], 3)
    return found


def compare(arguments: argparse.Namespace) -> Figures:
    """All ratios of speed."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(int(slower), arguments.delay_ms, arguments.epochs, Path(folder))
            for slower in arguments.slower.split(",")
        ]
    return {"delay_ms": arguments.delay_ms, "results": rows}


OPTIONS = (
    Option("--slower", default="2,3,4", metavar="LIST", help="how many times as slow [2,3,4]"),
    Option("--delay-ms", type=float, default=12.0, metavar="MS", help="of the faster rank, per sample [12]"),
    Option("--epochs", type=int, default=2, metavar="N", help=f"of {STEPS} steps each [2]"),
)
main = Measurement("mixed_ranks", __doc__, compare, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
