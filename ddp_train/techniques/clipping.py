"""Gradient clipping by norm (Pascanu et al. 2013, arXiv:1211.5063): a longer gradient is scaled down to the limit.

Effect: a single wild batch cannot throw the weights off. Cost: one norm over all gradients a step. The norm before
clipping is recorded. Under fp16 it sees the unscaled gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--clip-grad NORM`."""
    limit = context.config.optim.clip_grad
    assert limit is not None
    return clip(limit)


def clip(limit: float) -> Technique:
    """Clip gradients at the norm `limit`."""
    clipping = _Clipping(limit)
    return Technique(name="clip_grad", gradient=clipping, report=clipping.report, state=clipping, looks=True)


class _Clipping:
    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._norm: torch.Tensor | None = None

    def __call__(self, parameters: Sequence[nn.Parameter], moment: Moment) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(parameters, self._limit)

    def report(self) -> Mapping[str, float]:
        """The norm before clipping, of the latest step."""
        return {} if self._norm is None else {"gradient_norm": float(self._norm)}

    def state_dict(self) -> dict[str, Any]:
        """The latest norm, since the record of an epoch may be written after a resume; None before the first step."""
        return {"norm": self._norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the norm."""
        self._norm = state["norm"]
