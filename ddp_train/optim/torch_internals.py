"""Leaves torch.compile's machinery out of a process that compiles nothing: it takes longest of all that a rank imports.

torch marks what torch.compile shall not look into (methods of optimizers, DistributedDataParallel's forward pass). The
mark imports torch._dynamo at its first call, and with it sympy, torch._inductor and torch.distributed.tensor: 870 of
the 2,313 modules of a rank with torch 2.15 (`python -m benchmarks.start_up`). Where nothing is compiled the marked
function can be called as it is. A torch that does these things in another way imports what it needs, as ever.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import CodeType, SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

COMPILER = "torch._dynamo"
T = TypeVar("T")


def leave_compiler_out() -> None:
    """Call what torch marks for the compiler as it is, from now on."""
    marking = getattr(torch, "_disable_dynamo", None)
    if marking is None or COMPILER in sys.modules:
        return
    code = marking(_nothing).__code__
    for kind in (Optimizer, DistributedDataParallel):
        for attribute in vars(kind).values():
            for function in _layers(attribute):
                if _code(function) is code:
                    # Where torch keeps what the compiler has made of the function, instead of asking it again.
                    function.__wrapped__.__dynamo_disable = function.__wrapped__


def _layers(function: Any) -> Iterator[Any]:
    """A function, and the functions that it was put around."""
    while callable(function):
        yield function
        function = getattr(function, "__wrapped__", None)


def _code(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


def _nothing() -> None:
    """To see what a mark looks like."""


def without_compiler(make: Callable[[], T]) -> T:
    """What `make` makes of DistributedDataParallel, which asks for a setting of the compiler's; it gets the default."""
    if COMPILER in sys.modules:
        return make()
    ask = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    torch._dynamo = SimpleNamespace(utils=ask)  # type: ignore[assignment]
    try:
        return make()
    except AttributeError:  # a torch that asks for more
        pass
    finally:
        if COMPILER not in sys.modules:
            del torch._dynamo
    return make()


def backward(loss: Tensor, seed: Tensor) -> None:
    """`loss.backward(seed)` without torch's check of the seed's shape, for which it imports sympy."""
    run = _engine()
    if run is None:
        loss.backward(seed)
    else:
        _pass(run, loss, seed)


def _pass(run: Callable[..., object], loss: Tensor, seed: Tensor) -> None:
    """Into the leaves alone; no graph is kept for another pass, none is made of this one."""
    run((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@functools.cache
def _engine() -> Callable[..., object] | None:
    """torch's engine by itself, if it does in this torch what it is meant to."""
    run: Callable[..., object] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return None
    leaf = torch.zeros((), requires_grad=True)
    try:
        _pass(run, leaf * 2.0, torch.full((), 3.0))
    except Exception:  # takes other arguments, or other types of them
        return None
    return run if leaf.grad is not None and leaf.grad == 6.0 else None
