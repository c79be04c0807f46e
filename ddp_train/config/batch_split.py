"""How a global batch is split into per-rank batches and micro-batches, and how the learning rate scales with it.

Pure arithmetic, without torch, so that the launcher can show it before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

REFERENCE_BATCH = 128
"""The global batch that `--lr` refers to when it is scaled."""


def split(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` items in proportion to `weights`, into whole numbers that sum to `total` exactly.

    Largest remainder (Hamilton's method); ties go to the lower position. A weight of 0 gets nothing.

    >>> split(10, [1, 1, 1])
    [4, 3, 3]

    Errors: ValueError when total is negative, a weight is negative or not finite, or all are 0.
    """
    whole = math.fsum(weights)
    if total < 0 or whole <= 0 or any(w < 0 or not math.isfinite(w) for w in weights):
        raise ValueError(f"cannot split {total} by {list(weights)}: no number may be negative, nor all weights 0")
    exact = [total * w / whole for w in weights]
    parts = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    by_remainder = [i for i in by_remainder if weights[i] > 0]
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def shards_of_rank(shards: int, rank: int, world_size: int) -> range:
    """The consecutive logical shards that a rank computes. Each shard belongs to one rank, and each rank has at least
    one, if there are at least as many shards as ranks.

    >>> [shards_of_rank(8, rank, 3) for rank in range(3)]
    [range(0, 2), range(2, 5), range(5, 8)]
    """
    return range(shards * rank // world_size, shards * (rank + 1) // world_size)


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for positive b."""
    return -(-a // b)


def scale_learning_rate(base: float, global_batch: int, rule: Literal["sqrt", "linear", "none"]) -> float:
    """The peak learning rate at `global_batch`, when `base` is the rate for REFERENCE_BATCH.

    linear: Goyal et al. 2017 (arXiv:1706.02677). sqrt: Krizhevsky 2014 (arXiv:1404.5997), the milder
    rule, which keeps the variance of an update constant.
    """
    ratio = global_batch / REFERENCE_BATCH
    return base * {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]
