"""Numbers over all ranks: sums, means and gathered values, exact and in rank order, whatever the backend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train.distributed.process_group import gather
from ddp_train.technique import Moment

if TYPE_CHECKING:
    from ddp_train.library.run import Run
    from ddp_train.library.setup import Process


def _everyone(value: Any, process: Process) -> list[Any]:
    """Every rank's `value`, in rank order; tensors on the host."""
    mine = value.detach().cpu() if isinstance(value, Tensor) else value
    return gather(mine, process.ranks, process.flag_exchange.group)


def total(value: Any, process: Process) -> Any:
    """See Run.sum."""
    found = _everyone(value, process)
    if isinstance(value, Tensor):
        summed = found[0].clone()
        for other in found[1:]:
            summed += other
        return summed.to(value.device)
    if isinstance(value, bool | int | float):
        return sum(found) if all(isinstance(one, int) for one in found) else math.fsum(found)
    raise UserError(f"run.sum() takes numbers and tensors, not a {type(value).__name__}")


def mean(amount: Any, count: Any, process: Process) -> float:
    """See Run.mean. NaN where there is nothing to take the mean of."""
    if count is None:
        elements = amount.detach() if isinstance(amount, Tensor) else torch.as_tensor(amount, dtype=torch.float64)
        amount, count = elements.double().sum(), elements.numel()
    pairs = _everyone((_number(amount), _number(count)), process)
    over, under = (math.fsum(part) for part in zip(*pairs, strict=True))
    return over / under if under else math.nan


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UserError(f"run.mean(total, count) takes one number each, not a tensor of shape {list(value.shape)}")
    return float(value)


def gathered(value: Any, process: Process) -> Any:
    """See Run.gather."""
    found = _everyone(value, process)
    if not isinstance(value, Tensor):
        return found
    joined = torch.stack(found) if value.ndim == 0 else torch.cat(found)
    return joined.to(value.device)


class SecondPass:
    """Finds what is wrong with this rank's part of a step that is not finite (see nan_guard.SecondPass)."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, moment: Moment) -> tuple[str | None, list[int]]:
        """Look at the losses of the step: the loop's body is the user's, and is not run again."""
        training = self._run._training
        assert training is not None
        losses = [loss for loss in training.loop.metrics.of_step if not math.isfinite(loss)]
        part = training.steps.part
        indices = [] if part is None else list(part.indices)
        return (f"the loss is {float(losses[0])}" if losses else None), indices
