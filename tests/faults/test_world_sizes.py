"""A run that goes on with another number of ranks sees the same samples in the same global batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_train.checkpoint import format as checkpoint_format
from tests.faults.runs import PLAIN, Runs

Times = Callable[[int, int], int]
STEPS = 40
OPTIONS = "--epochs 4 --save-every epoch --lr 0.01 --technique tests.faults.seen:record"


def seen(folder: Path) -> dict[int, list[int]]:
    """Step -> the samples of its global batch, in order, each with its place."""
    found: dict[int, list[Any]] = {}
    for file in folder.glob("seen-*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault(entry["step"], []).append((entry["rank"], entry["images"]))
    return {step: [image for _, images in sorted(parts) for image in images] for step, parts in found.items()}


@pytest.mark.parametrize("sizes", [(2, 1, 2), (4, 1, 2, 4)], ids=str)
def test_the_same_samples_and_weights(sizes: tuple[int, ...], runs: Runs, times: Times) -> None:
    if len(sizes) > 3 and times(0, 1) == 0:
        pytest.skip("more processes than a short run should start")
    status, text = runs.finish("whole", OPTIONS, ranks=sizes[0], network=PLAIN)
    assert status == 0, text
    stops = [STEPS * (i + 1) // len(sizes) + 1 for i in range(len(sizes) - 1)]
    for size, stop in zip(sizes, [*stops, None], strict=True):
        accidents = [] if stop is None else [{"rank": 0, "step": stop, "what": "term", "after": False}]
        status, text = runs.finish("run", f"{OPTIONS} --resume auto", ranks=size, network=PLAIN, accidents=accidents)
        assert status == (0 if stop is None else 143), text
    whole, parts = (seen(runs.folder / name) for name in ("whole", "run"))
    assert sorted(whole) == list(range(STEPS)) and whole == parts
    one, other = (checkpoint_format.newest(runs.folder / name).state["model"] for name in ("whole", "run"))
    for name, value in one.items():  # type: ignore[attr-defined]
        assert torch.allclose(value, other[name], rtol=0, atol=1e-6), name  # type: ignore[index]
