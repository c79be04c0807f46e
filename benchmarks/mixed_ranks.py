"""Two ranks of unequal speed: shares by measured speed, compared with equal shares.

Two ranks on the CPU train a tiny network. Before a forward pass each waits --delay-ms for each of its samples, and the
slowed one k times as long (--slower). Computing adds the same to both, so that on a quiet machine the ratio stays below
its bound of (k + 1) / 2. The clock is the trainer's own: images per second of training, the median of the epochs;
calibration and evaluation are not counted.

One of two ranks is slowed. The bound is what arithmetic allows measured shares to gain.
"""

from __future__ import annotations

import os
import statistics

from benchmarks.harness import Arguments, Figures, measurement, number, text
from benchmarks.programs import train
from ddp_core.errors import UserError

BATCH, STEPS = 64, 12
TRAINING = (
    f"--cpu --nproc 2 --dataset synthetic --synthetic-samples {BATCH * STEPS} --batch-size {BATCH} --augment none "
    "--model tests.ddp_train.techniques.tiny:normed --technique tests.ddp_train.tune.slowed:create --sync-batch-norm "
    "--lr 0.01 --no-tensorboard"
)


def compare(slower: int, delay_ms: float, epochs: int) -> Figures:
    """Images per second with equal and with measured shares, where one of two ranks is `slower` times as slow."""
    env = os.environ | {"SLOWED": f"{delay_ms},{slower * delay_ms}", "OMP_NUM_THREADS": "1"}
    found: Figures = {"slower": slower, "bound": (slower + 1) / 2}
    for shares in ("equal", "measured"):
        run, _ = train([*TRAINING.split(), "--epochs", str(epochs), "--shares", shares], env)
        history = run["epochs"]
        found[shares] = round(statistics.median(epoch["images_per_second"] for epoch in history), 1)
        found["train_loss" if shares == "measured" else "train_loss_equal"] = history[-1]["train_loss"]
    found["shares"] = [history[-1]["extra"][f"share_{rank}"] for rank in range(2)]
    found["ratio"] = round(found["measured"] / found["equal"], 3)
    return found


@measurement(
    text("--slower", "2,3,4", "how many times as slow", "LIST"),
    number("--delay-ms", 12.0, "of the faster rank, per sample", "MS", least=0),
    number("--epochs", 2, f"of {STEPS} steps each"),
)
def main(arguments: Arguments) -> Figures:
    """Equal and measured shares for each ratio of speeds."""
    words = arguments.slower.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--slower {arguments.slower}: a list of whole numbers of at least 1 is accepted, as in 2,3,4")
    rows = [compare(int(word), arguments.delay_ms, arguments.epochs) for word in words]
    return {"delay_ms": arguments.delay_ms, "results": rows}
