"""Cutting batches and scaling the learning rate."""

from __future__ import annotations

import math
import random

import pytest

from ddp_train.config.batch_split import ceil_div, scale_learning_rate, split


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (64, [3, 1], [48, 16]),
        (64, [1, 0], [64, 0]),
        (9, [5, 3, 1], [5, 3, 1]),
        (1, [1, 1], [1, 0]),
        (0, [1, 1], [0, 0]),
        (2, [0, 1, 1, 1], [0, 1, 1, 0]),
    ],
)
def test_split(total: int, weights: list[float], parts: list[int]) -> None:
    assert split(total, weights) == parts


def test_split_is_exact_and_within_one_of_the_quota() -> None:
    rng = random.Random(0)
    for _ in range(500):
        weights = [rng.choice([0.0, 1.0, rng.random(), 1e-9]) for _ in range(rng.randint(1, 9))]
        if sum(weights) == 0:
            continue
        total = rng.randint(0, 5000)
        parts = split(total, weights)
        assert sum(parts) == total
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * weight / sum(weights)) < 1
            assert weight > 0 or part == 0


@pytest.mark.parametrize(
    ("total", "weights"), [(-1, [1.0]), (3, []), (3, [0.0]), (3, [-1.0, 2.0]), (3, [math.nan]), (3, [math.inf])]
)
def test_split_refuses_nonsense(total: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        split(total, weights)


def test_ceil_div() -> None:
    assert [ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_learning_rate_rules() -> None:
    assert scale_learning_rate(0.1, 512, "sqrt") == pytest.approx(0.2)
    assert scale_learning_rate(0.1, 512, "linear") == pytest.approx(0.4)
    assert scale_learning_rate(0.1, 512, "none") == 0.1
    assert scale_learning_rate(0.1, 128, "linear") == pytest.approx(0.1)
