"""A global batch gives the same gradient however it is cut, and ranks follow the single process.

Real ranks with gloo; the reference is one process, this one, that sees the whole global batch at once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_train.distributed.process_group import Ranks
from tests.integration import run_steps
from tests.ranks import run_ranks

Found = dict[str, torch.Tensor]

ROWS = [[*range(16)], [*range(16, 32)], [*range(32, 48)]], [[*range(10)], [*range(10, 16)]]
"""Three micro-batches on the first rank and two on the second."""

# The k-th micro-batches of both ranks, which batch norm sees together: 21 + 1, 21 + 1 and 20 + 0.
MEETING = [[[*range(21), 62], [*range(21, 42), 63], [*range(42, 62)]]]

# Cases by number of ranks. 150 samples in batches of 64: every third batch is a partial one of 22.
EXACT: dict[int, list[dict[str, Any]]] = {
    1: [{"name": "accumulate 3", "batch": 64, "accumulate": 3}],
    2: [
        {"name": "even", "batch": 64},
        {"name": "48 + 16", "batch": 64, "shares": [48, 16]},
        {"name": "63 + 1", "batch": 64, "shares": [63, 1]},
        {"name": "64 + 0", "batch": 64, "shares": [64, 0]},
        {"name": "48 + 16, then 9 + 55", "batch": 64, "shares": [48, 16], "moved": [9, 55]},
        {"name": "48 + 16, then 0 + 64", "batch": 64, "shares": [48, 16], "moved": [0, 64]},
        {"name": "accumulate 3", "batch": 64, "accumulate": 3},
        {"name": "48 + 16, accumulate 3", "batch": 64, "shares": [48, 16], "accumulate": 3},
        {"name": "clipped", "batch": 64, "shares": [48, 16], "clip": 0.01, "lr": 0.1},
        {"name": "3 x 16 + (10 + 6)", "batch": 64, "samples": 128, "steps": 2, "shares": [48, 16], "rows": ROWS},
        {"name": "scaled", "batch": 64, "shares": [48, 16], "scale": 1024.0},
        {"name": "scaled, clipped", "batch": 64, "shares": [48, 16], "scale": 65536.0, "clip": 0.01},
        *(
            {"name": f"batch norm {a} + {b}", "batch": 64, "shares": [a, b], "batch_norm": True}
            for a, b in ((32, 32), (48, 16), (63, 1), (64, 0))
        ),
        {"name": "batch norm, steps", "batch": 64, "shares": [48, 16], "batch_norm": True, "lr": 0.05},
        {
            "name": "batch norm, passes",
            "batch": 64,
            "samples": 128,
            "steps": 2,
            "batch_norm": True,
            "shares": [62, 2],
            "accumulate": 3,
            "reference": {"rows": MEETING},
        },
    ],
    3: [
        {"name": "5 + 3 + 1", "batch": 9, "shares": [5, 3, 1]},
        {"name": "two samples for three ranks", "batch": 37, "steps": 5},
        {"name": "batch norm 5 + 3 + 1", "batch": 9, "shares": [5, 3, 1], "batch_norm": True},
        {"name": "batch norm, two samples for three ranks", "batch": 37, "steps": 5, "batch_norm": True},
    ],
}
CURVE = {"name": "curve", "steps": 20, "batch": 64, "samples": 500, "lr": 0.1, "augment": "heavy"}
BOUNDS = {(False, False): 2e-7, (False, True): 1e-15, (True, False): 1e-6, (True, True): 1e-13}
"""Of any element of the gradient, by (batch norm, float64): the mathematics is exact, and what is left is rounding.

Batch norm over two samples divides by small deviations, and convolutions round by the processor's kernels: of the
former bound, 1e-14, an EPYC without AMX needs two and a half times as much."""


def on_one(case: dict[str, Any]) -> Found:
    return run_steps.run(case, Ranks())


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Found]]:
    """Every case and the curve, by one start of so many ranks."""

    @functools.cache
    def run(ranks: int) -> dict[str, Found]:
        cases = [*cases_of(ranks), CURVE]
        if ranks == 1:
            return {case["name"]: on_one(case) for case in cases}
        folder = tmp_path_factory.mktemp("steps")
        (folder / "cases.json").write_text(json.dumps(cases))
        words = (str(folder / name) for name in ("cases.json", "result.pt"))
        run_ranks(ranks, Path(run_steps.__file__), *words, folder=folder)
        return torch.load(folder / "result.pt", weights_only=True)

    return run


def cases_of(ranks: int) -> list[dict[str, Any]]:
    """In float32 and float64."""
    return [
        {"steps": 3, "samples": 150, "lr": 0.0, **case, "double": double, "name": f"{case['name']}, double {double}"}
        for case in EXACT[ranks]
        for double in (False, True)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_split_gives_the_gradient_of_the_global_batch(train: Callable[[int], dict[str, Found]], ranks: int) -> None:
    # The reference: no shares, no accumulation, one process; clipping is part of the step and stays.
    cut = ("shares", "moved", "accumulate", "rows", "scale", "reference")
    found = train(ranks)
    for case in cases_of(ranks):
        whole = {k: v for k, v in case.items() if k not in cut} | case.get("reference", {})
        ours, theirs = found[case["name"]], on_one(whole)
        gradient, whole_gradient = (side["gradients"].double() for side in (ours, theirs))
        assert whole_gradient.abs().max() > 1e-3, "a gradient of nothing proves nothing"
        difference = (gradient - whole_gradient).abs().max().item()
        bound = BOUNDS[bool(case.get("batch_norm")), case["double"]]
        assert difference < bound, f"{case['name']}: {difference:.2e}"
        # Running statistics are those of the single process, on every rank.
        assert ours["buffers"].allclose(theirs["buffers"], rtol=1e-5, atol=1e-6), case["name"]
        assert (ours["buffers"] == ours["buffers"][0]).all(), case["name"]
        # The weights stood still or moved alike, so the test scores must agree: each of the 37 images counts once.
        assert ours["scores"][2] == theirs["scores"][2] == (case["samples"] // 4)
        assert ours["scores"].allclose(theirs["scores"], rtol=1e-5), f"{case['name']}: {ours['scores'].tolist()}"


def test_two_ranks_follow_the_single_process_for_20_steps(train: Callable[[int], dict[str, Found]]) -> None:
    one = train(1)["curve"]
    for ranks in (2, 3):
        several = train(ranks)["curve"]
        relative = (several["losses"] - one["losses"]).abs() / one["losses"].abs()
        assert relative.max() < 1e-4, f"{ranks} ranks: {relative.tolist()}"
    assert one["losses"][-1] < 0.8 * one["losses"][0], "the run must learn for the comparison to mean something"
