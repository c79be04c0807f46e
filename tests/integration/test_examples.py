"""The programs in examples/: short, and the same weights on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddp_train.checkpoint import format as checkpoint_format
from tests.ranks import ROOT, run_ranks

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def weights(folder: Path, example: Path, ranks: int) -> torch.Tensor:
    out = folder / f"{example.stem}-{ranks}"
    run_ranks(ranks, example, "--epochs", "1", "--out-dir", str(out), folder=folder)
    kept = checkpoint_format.load(out / checkpoint_format.LATEST)["model"]
    assert isinstance(kept, dict) and (out / "done.json").is_file()
    return torch.cat([tensor.flatten() for tensor in kept["net"].values()])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_the_same_on_one_rank_and_on_two(example: Path, tmp_path: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60
    alone, both = (weights(tmp_path, example, ranks) for ranks in (1, 2))
    assert float((alone - both).abs().max()) < 1e-6
