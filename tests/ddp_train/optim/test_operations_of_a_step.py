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
from ddp_train.engine.trainer import Trainer
from tests.ghost import cuda

NOTHING_TO_DO = ("aten::empty", "aten::_local_scalar_dense", "profiler::")
"""Beside views: room that is taken, numbers that are read on the host, and names for the profiler."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched, but for what gives the device nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and not function.name().startswith(NOTHING_TO_DO):
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def count(folder: Path, device: torch.device) -> Counter[str]:
    """The operations of a step with the first layer frozen, under autocast."""
    words = "--preset speedrun --dataset synthetic --synthetic-samples 48 --batch-size 16 --width-mult 0.25 --epochs 2"
    words += " --whiten-bias-epochs 0 --amp bf16 --no-tensorboard --out-dir"
    trainer: Trainer = build(parse([*words.split(), str(folder / "run")]), Ranks(), device).trainer
    trainer.components.model.train()
    first, second, third = trainer.components.pipeline.train(0)
    trainer.train_step(first)
    trainer.train_step(second)
    with Operations() as seen:
        trainer.train_step(third)
    return seen.counts


def products(counts: Counter[str]) -> tuple[int, ...]:
    return tuple(counts[f"aten::{name}"] for name in ("bmm", "baddbmm", "mm", "addmm"))


def test_a_step_of_the_speedrun_on_a_gpu(tmp_path: Path) -> None:
    """130; it was 227, by the same count, with a batch of products for each shape and each choice for each matrix."""
    with cuda():
        counts = count(tmp_path, torch.device("cuda", 0))
    assert counts.total() <= 130, counts.most_common(12)
    # Three iterations of three products for each of two short sides; and the last layer.
    assert products(counts) == (6, 12, 3, 0)


def test_a_step_of_the_speedrun_on_a_cpu(tmp_path: Path) -> None:
    """Without zeros that fill batches up: three more of one matrix each."""
    counts = count(tmp_path, torch.device("cpu"))
    assert counts.total() <= 145, counts.most_common(12)
    assert products(counts) == (3, 6, 9 + 3, 18)
