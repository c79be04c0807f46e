"""Overfitting one batch: can this network, with these settings, learn anything at all? `--overfit-one-batch STEPS`.

The network is trained on the same batch (augmented once) at the peak learning rate. A working network soon memorizes
it; if the loss stays high, the fault is in the network, the labels or the rate, and a longer run will not fix it.
Changes to the batch or the target (mixup, CutMix, label smoothing) are left out, because the loss could not reach zero
with them. Source: Karpathy 2019, "A Recipe for Training Neural Networks" ("overfit one batch").
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ddp_core.files import write_text
from ddp_train.engine.trainer import Trainer
from ddp_train.optim.losses import cross_entropy_sum

NEAR_ZERO = 0.05
"""Limit of the loss as a share of ln(classes), which is the loss without any knowledge."""


@dataclass(frozen=True)
class Found:
    """`losses`: mean of the batch before each step; `learned`: whether the last came near zero, below `limit`."""

    images: int
    losses: tuple[float, ...]
    limit: float
    learned: bool


def overfit_one_batch(trainer: Trainer, steps: int, classes: int) -> Found:
    """Train on the first global batch for up to `steps` steps. The network is useless afterwards. All ranks take part.

    Ends early when the loss has come near zero, or is no longer finite.
    """
    components = trainer.components
    techniques = [one for one in components.techniques if one.batch is None and one.loss is None]
    parts = replace(components, loss=cross_entropy_sum(), techniques=techniques, schedule=lambda step: 1.0)
    single = Trainer(replace(parts, nan_guard=None))  # which would end the run where the loss is not finite
    first = replace(next(iter(components.pipeline.train(0))), class_weight=None)
    batches = list(first.batches)
    limit = NEAR_ZERO * math.log(max(2, classes))
    losses: list[float] = []
    components.model.train()
    while len(losses) < steps:
        losses.append(single.measure_step(replace(first, batches=iter(batches))))
        if losses[-1] < limit or not math.isfinite(losses[-1]):
            break
    return Found(first.size, tuple(losses), limit, losses[-1] < limit)


def judge(found: Found) -> str:
    """The result in one line."""
    fall = f"loss {found.losses[0]:.4g} -> {found.losses[-1]:.4g} in {len(found.losses)} steps on one batch"
    if found.learned:
        return f"{fall} of {found.images} images: near zero, the network can learn"
    lowest = min((loss for loss in found.losses if math.isfinite(loss)), default=math.nan)
    return (
        f"{fall} of {found.images} images (lowest {lowest:.4g}, near zero is below {found.limit:.2g}): "
        "look at the labels, at --lr (--tune lr measures it), and at the layers (--gradient-flow, --watch-numbers); "
        "dropout also keeps it up"
    )


def write(found: Found, folder: Path) -> Path:
    """Write overfit_one_batch.json into `folder`; returns its path."""
    path = folder / "overfit_one_batch.json"
    losses = [loss if math.isfinite(loss) else None for loss in found.losses]
    document = {"schema": "ddp-train-one-batch/1", **asdict(found), "losses": losses}
    write_text(path, json.dumps(document, indent=2) + "\n")
    return path
