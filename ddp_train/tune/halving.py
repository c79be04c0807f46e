"""Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) as a pure plan over what is known so far."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["next_job", "rungs"]


def rungs(epochs: int, eta: int, first: int) -> tuple[int, ...]:
    """Epochs after which trials are compared: `first`, each further one `eta` times as many, and `epochs` at last."""
    found = []
    while first < epochs:
        found.append(first)
        first *= eta
    return (*found, epochs)


def next_job(
    scores: Mapping[int, Mapping[int, float | None]], trials: int, steps: tuple[int, ...], eta: int
) -> tuple[int, int] | None:
    """(trial, epochs) to run next; None when the search is over.

    scores: trial -> {epochs: score, None for a run that failed}. At each rung the best of `eta` parts go on.
    """
    alive = list(range(trials))
    for rung in steps:
        for trial in alive:
            if rung not in scores.get(trial, {}):
                return trial, rung
        ranked = sorted(
            (trial for trial in alive if scores[trial][rung] is not None),
            key=lambda trial: (-(scores[trial][rung] or 0.0), trial),
        )
        alive = ranked[: max(1, len(alive) // eta)]
    return None
