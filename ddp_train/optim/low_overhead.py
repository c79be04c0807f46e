"""torch's optimizers reduced to the arithmetic of their step: the same bits for less host time.

torch wraps each step twice: with a profiler range and the registered hooks, and with a mark for torch.compile, which
imports torch._dynamo. A step that is not compiled, profiled or hooked needs neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddp_train.torch_internals import foreach, is_watched

Step = Callable[..., Any]
SAME = ("lr", "momentum", "nesterov", "dampening", "maximize", "foreach")


def without_shells(kind: type[Optimizer], arithmetic: Step) -> Step:
    """A step method for `kind`: runs `arithmetic`, or torch's own step where that is compiled, profiled or hooked."""
    # The first instance of an optimizer class wraps the step of the whole class for the profiler.
    marked = kind.step.__wrapped__ if getattr(kind.step, "hooked", False) else kind.step  # type: ignore[attr-defined]
    shelled: Step = Optimizer.profile_hook_step(marked)

    def step(self: Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        """One step, see torch.optim.Optimizer.step."""
        if closure is not None or is_watched(self):
            return shelled(self, closure)
        with torch.no_grad():
            arithmetic(self)
        return None

    step.hooked = True  # type: ignore[attr-defined]  # else torch would wrap this step too
    return step


_torchs_sgd: Step = inspect.unwrap(torch.optim.SGD.step)


def _sgd(self: Optimizer) -> None:
    """Step all groups in one pass if they differ only in weight decay and have momentum buffers, else as torch does."""
    groups = self.param_groups
    first = groups[0]
    momentum, rate = first["momentum"], first["lr"]
    if not (first["foreach"] and momentum) or first["dampening"] or first["maximize"]:
        return _torchs_sgd(self)
    parameters: list[Tensor] = []
    gradients: list[Tensor] = []
    for group in groups:
        if group is not first and any(group[name] != first[name] for name in SAME):
            return _torchs_sgd(self)
        own = [p for p in group["params"] if p.grad is not None]
        its: Any = [p.grad for p in own]
        if own and group["weight_decay"] != 0:
            its = foreach("add", its, own, alpha=group["weight_decay"])
        parameters += own
        gradients += its
    buffers = [self.state[p].get("momentum_buffer") for p in parameters]
    if not parameters or any(buffer is None for buffer in buffers):
        return _torchs_sgd(self)
    foreach("mul_", buffers, momentum)
    foreach("add_", buffers, gradients)
    if first["nesterov"]:
        foreach("add_", gradients, buffers, alpha=momentum)
    foreach("add_", parameters, gradients if first["nesterov"] else buffers, alpha=-rate)
    return None


class SGD(torch.optim.SGD):
    """torch's SGD without the shells around its step."""

    step = without_shells(torch.optim.SGD, _sgd)

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                for parameter in group["params"]:
                    # torch's fused step allocates this buffer in the first step, and leaves it uninitialized where
                    # GradScaler skips that step. Starting from zeros, the first momentum is the gradient as well.
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Adam(torch.optim.Adam):
    """torch's Adam without the shells around its step."""

    step = without_shells(torch.optim.Adam, inspect.unwrap(torch.optim.Adam.step))


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the shells around its step."""

    step = without_shells(torch.optim.AdamW, inspect.unwrap(torch.optim.AdamW.step))
