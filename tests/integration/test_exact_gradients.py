"""A global batch gives the same gradient however it is cut, and ranks follow the single process.

Real ranks under torchrun, gloo; the reference is one process that sees the whole global batch at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import Command, torchrun

WORKER = str(Path(__file__).with_name("run_steps.py"))

# Cases by number of ranks. 150 samples in batches of 64: every third batch is a partial one of 22.
EXACT: dict[int, list[dict[str, Any]]] = {
    1: [{"name": "accumulate 3", "batch": 64, "accumulate": 3}],
    2: [
        {"name": "even", "batch": 64},
        {"name": "48 + 16", "batch": 64, "shares": [48, 16]},
        {"name": "63 + 1", "batch": 64, "shares": [63, 1]},
        {"name": "64 + 0", "batch": 64, "shares": [64, 0]},
        {"name": "accumulate 3", "batch": 64, "accumulate": 3},
        {"name": "48 + 16, accumulate 3", "batch": 64, "shares": [48, 16], "accumulate": 3},
        {"name": "clipped", "batch": 64, "shares": [48, 16], "clip": 0.01, "lr": 0.1},
    ],
    3: [
        {"name": "5 + 3 + 1", "batch": 9, "shares": [5, 3, 1]},
        {"name": "two samples for three ranks", "batch": 37, "steps": 5},
    ],
}


@pytest.fixture
def train(command: Command, tmp_path: Path) -> Any:
    def run(ranks: int, cases: list[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
        file, result = tmp_path / f"cases-{ranks}.json", tmp_path / f"result-{ranks}.pt"
        file.write_text(json.dumps(cases))
        launch = torchrun(ranks) if ranks > 1 else []
        done = command(*launch, WORKER, str(file), str(result))
        assert done.returncode == 0, done.stderr
        return torch.load(result, weights_only=True)

    return run


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_split_gives_the_gradient_of_the_global_batch(train: Any, ranks: int) -> None:
    cases = [
        {"steps": 3, "samples": 150, "lr": 0.0, **case, "double": double, "name": f"{case['name']}, double {double}"}
        for case in EXACT[ranks]
        for double in (False, True)
    ]
    # The reference: no shares, no accumulation, one process; clipping is part of the step and stays.
    whole = [{k: v for k, v in case.items() if k not in ("shares", "accumulate")} for case in cases]
    found, expected = train(ranks, cases), train(1, whole)
    for case in cases:
        ours, theirs = (side[case["name"]]["gradients"].double() for side in (found, expected))
        assert theirs.abs().max() > 1e-4, "a gradient of nothing proves nothing"
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        # In float64 the mathematics shows; in float32 the rounding of sums in another order is left.
        assert difference < (1e-14 if case["double"] else 5e-6), f"{case['name']}: {difference:.2e}"
        # The weights stood still or moved alike, so the test scores must agree: each of the 37 images counts once.
        ours, theirs = (side[case["name"]]["scores"] for side in (found, expected))
        assert ours[2] == theirs[2] == 37
        assert ours.allclose(theirs, rtol=1e-5), f"{case['name']}: {ours.tolist()} {theirs.tolist()}"


def test_two_ranks_follow_the_single_process_for_20_steps(train: Any) -> None:
    case = {"name": "curve", "steps": 20, "batch": 64, "samples": 500, "lr": 0.1, "augment": "heavy"}
    one = train(1, [case])["curve"]
    for ranks in (2, 3):
        several = train(ranks, [case])["curve"]
        relative = (several["losses"] - one["losses"]).abs() / one["losses"].abs()
        assert relative.max() < 1e-4, f"{ranks} ranks: {relative.tolist()}"
    assert one["losses"][-1] < 0.8 * one["losses"][0], "the run must learn for the comparison to mean something"
