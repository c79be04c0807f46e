"""How many operations a step of the preset speedrun gives to the device: a small network's step is their launches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks

AT_MOST = 180
"""177 with torch 2.14 under autocast; it was 268 with a loop over the matrices."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched, but for views, which give the device nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view:
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_of_the_speedrun(tmp_path: Path) -> None:
    words = "--preset speedrun --dataset synthetic --synthetic-samples 48 --batch-size 16 --width-mult 0.25 --epochs 2"
    words += " --amp bf16 --no-tensorboard --out-dir"
    trainer = build(parse([*words.split(), str(tmp_path / "run")]), Ranks(), torch.device("cpu")).trainer
    trainer.components.model.train()
    first, second, third = trainer.components.pipeline.train(0)
    trainer.train_step(first)
    trainer.train_step(second)
    with Operations() as seen:
        trainer.train_step(third)
    assert seen.counts.total() <= AT_MOST, seen.counts.most_common(12)
    products = {name: seen.counts[f"aten::{name}"] for name in ("bmm", "baddbmm", "mm", "addmm")}
    # Three iterations of three products for each of four shapes, one of them of three matrices; and the last layer.
    assert (products["bmm"], products["baddbmm"]) == (3, 6)
    assert products["mm"] + products["addmm"] == 27 + 3
