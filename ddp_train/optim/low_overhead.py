"""torch's optimizers with the bare arithmetic of their step: the same bits, for less of the host's time.

torch puts two shells around each step: a name in its profiler, with the hooks that were registered, and a mark for
torch.compile, for which it imports torch._dynamo. Where a step is not compiled, profiled or hooked, nobody needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from ddp_train.torch_internals import is_watched

Step = Callable[..., Any]


def _without_shells(kind: type[Optimizer]) -> Step:
    """A step of `kind`: its arithmetic alone, or the whole one where somebody looks at it."""
    arithmetic = inspect.unwrap(kind.step)
    # The first optimizer of a class puts the profiler's shell around the step of all.
    marked = kind.step.__wrapped__ if getattr(kind.step, "hooked", False) else kind.step  # type: ignore[attr-defined]
    shelled: Step = Optimizer.profile_hook_step(marked)

    def step(self: Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None or is_watched(self):
            return shelled(self, closure)
        with torch.no_grad():
            arithmetic(self)
        return None

    step.hooked = True  # type: ignore[attr-defined]  # else torch would put its shell around this one
    return step


class SGD(torch.optim.SGD):
    step = _without_shells(torch.optim.SGD)

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                for parameter in group["params"]:
                    # torch's fused step makes this in the first step, and leaves it unfilled where GradScaler skips
                    # that step. From zeros the first momentum is the gradient too.
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Adam(torch.optim.Adam):
    step = _without_shells(torch.optim.Adam)


class AdamW(torch.optim.AdamW):
    step = _without_shells(torch.optim.AdamW)
