"""The programs in examples/: short, the same weights on any number of ranks, and the same bits after a kill."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddp_train.checkpoint import format as checkpoint_format
from tests.ranks import ROOT, run_ranks
from tests.warm import WarmPopen

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EPOCHS = {"character_transformer": 1, "image_folder": 3, "tabular_regression": 2}
"""Of 20 steps or more."""


def weights(folder: Path, example: Path, ranks: int, epochs: int) -> torch.Tensor:
    out = folder / f"{example.stem}-{ranks}"
    run_ranks(ranks, example, "--epochs", str(epochs), "--out-dir", str(out), folder=folder)
    kept = checkpoint_format.load(out / checkpoint_format.LATEST)["model"]
    assert isinstance(kept, dict) and (out / "done.json").is_file()
    return torch.cat([tensor.flatten() for tensor in kept["net"].values()])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_the_same_on_any_number_of_ranks(
    example: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert len(example.read_text().splitlines()) <= 60
    whole = request.config.getoption("--whole")
    epochs = EPOCHS[example.stem] if whole else 1
    alone = weights(tmp_path, example, 1, epochs)
    for ranks in (2, 3) if whole else (2,):
        assert float((alone - weights(tmp_path, example, ranks, epochs)).abs().max()) < 1e-6, ranks


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_that_is_killed_at_any_moment_ends_with_the_same_bits(
    example: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("ten kills of each example: --whole")
    started = time.monotonic()
    (tmp_path / "whole").mkdir()
    whole, seconds = weights(tmp_path / "whole", example, 1, 3), time.monotonic() - started
    command = [sys.executable, str(example), "--epochs", "3", "--out-dir", str(tmp_path / f"{example.stem}-1")]
    env, streams = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, {"stdin": subprocess.DEVNULL}
    draw = random.Random(example.stem)
    for number in range(10):
        with (tmp_path / f"killed-{number}.txt").open("wb") as output:
            process = WarmPopen(command, cwd=ROOT, env=env, stdout=output, stderr=output, **streams)
        time.sleep(draw.uniform(0.1, seconds))
        process.kill()
        process.wait()
    assert torch.equal(weights(tmp_path, example, 1, 3), whole)
