"""Steps before the clock: every shape is seen, and nothing of them is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddp_train.assemble.build import Run, build
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks
from ddp_train.tune.warm_up import warm_up

CPU = torch.device("cpu")


def make(folder: Path, words: str) -> Run:
    common = "--dataset synthetic --synthetic-samples 20 --batch-size 8 --epochs 3 --no-tensorboard --amp off --out-dir"
    return build(parse([*common.split(), str(folder), *words.split()]), Ranks(), CPU)


@pytest.mark.parametrize("words", ["--model speedrun --width-mult 0.1 --optimizer muon", "--model small --ema 0.9"])
def test_the_run_is_what_it_was(tmp_path: Path, words: str) -> None:
    runs = [make(tmp_path / name, words) for name in ("cold", "warm")]
    assert warm_up(runs[1].trainer) == [(8, (3, 32, 32)), (4, (3, 32, 32))]
    for run in runs:
        run.trainer.fit()
    cold, warm = (run.trainer.components for run in runs)
    for name, value in cold.evaluated.state_dict().items():
        assert torch.equal(warm.evaluated.state_dict()[name], value), name
    assert runs[0].trainer.progress.step == runs[1].trainer.progress.step == 9


def test_every_size_of_growing_images(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run", "--model speedrun --width-mult 0.1 --progressive-resize 24 --progressive-resize-epochs 2"
    )
    seen: list[tuple[int, ...]] = []
    run.trainer.components.network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    sizes = [(3, side, side) for side in (24, 28, 32)]
    assert warm_up(run.trainer, passes=1) == [(count, size) for size in sizes for count in (8, 4)]
    assert seen == [(count, *size) for size in sizes for count in (8, 4)]
