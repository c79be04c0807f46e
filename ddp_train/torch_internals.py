"""The only module that uses torch's private API. Each use has a public way as a fallback, for a torch that moved it.

Leaving the compiler out saves most. torch marks what torch.compile shall not look into (methods of optimizers,
DistributedDataParallel's forward pass). The mark imports torch._dynamo at its first call, and with it sympy,
torch._inductor and torch.distributed.tensor: 870 of the 2,313 modules of a rank with torch 2.15
(`python -m benchmarks.start_up`). Where nothing is compiled, the marked function can be called as it is.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer, optimizer

COMPILER = "torch._dynamo"
T = TypeVar("T")


def leave_compiler_out() -> None:
    """Call what torch marks for the compiler as it is, from now on."""
    marking = getattr(torch, "_disable_dynamo", None)
    if marking is None or COMPILER in sys.modules:
        return
    mark = marking(lambda: None).__code__
    for attribute in (*vars(Optimizer).values(), *vars(DistributedDataParallel).values()):
        function: Any = attribute
        while callable(function):  # a function, and those that it was put around
            if getattr(function, "__code__", None) is mark:
                # Where torch keeps what the compiler has made of the function, instead of asking it again.
                function.__wrapped__.__dynamo_disable = function.__wrapped__
            function = getattr(function, "__wrapped__", None)


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


def foreach(
    operation: str, tensors: Sequence[Tensor], *others: Sequence[Tensor] | Tensor | float, **options: float
) -> Any:
    """Tensor's method `operation` ("add_", "norm", ...) on each tensor, in one pass over all of them.

    others: for each argument one tensor a tensor, or one number (or scalar tensor) for all. Returns the list of
    results. Public way: a loop.
    """
    together = getattr(torch, f"_foreach_{operation}", None)
    if together is not None:
        return together(tensors, *others, **options)
    method = getattr(Tensor, operation)
    rows = zip(tensors, *(repeat(o) if isinstance(o, float | Tensor) else o for o in others), strict=False)
    return [method(*row, **options) for row in rows]


def any_not_finite(tensors: Sequence[Tensor], bad: Tensor, one: Tensor) -> bool:
    """Whether a number in them is not finite, by one pass of GradScaler's kernel, which multiplies them by `one` too.

    bad, one: float32 scalars, 0 and 1, which keep these values. Public way: torch.isfinite, tensor by tensor.
    """
    check = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if check is None:
        return not all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    check(tensors, bad, one)
    if found := bool(bad):
        bad.zero_()
    return found


def is_watched(one: Optimizer) -> bool:
    """Whether a hook, the profiler or the compiler watches the steps of an optimizer; True where torch does not say."""
    try:
        return bool(
            one._optimizer_step_pre_hooks
            or one._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks
            or optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
            or torch.compiler.is_compiling()
        )
    except AttributeError:
        return True


def can_complete_allreduces(ddp: DistributedDataParallel) -> bool:
    """Whether `complete_allreduces` works with this torch. Public way: none; the step is then not retried."""
    names = ("_get_zeros_like_grad_buckets", "_run_comm_hook", "_reset_state")
    return all(hasattr(ddp.reducer, name) for name in names)


def collectives_issued(group: Any) -> int | None:
    """How many collectives this rank has given to a process group so far. Public way: none; None."""
    try:
        return int(group._get_sequence_number_for_group())
    except (AttributeError, RuntimeError):
        return None


def bucket_count(ddp: DistributedDataParallel) -> int:
    """How many all-reduces the wrapper needs for a gradient; where `can_complete_allreduces`."""
    return len(ddp.reducer._get_zeros_like_grad_buckets())


def complete_allreduces(ddp: DistributedDataParallel, issued: int) -> None:
    """Take part with zeros in the all-reduces of a backward pass, after the first `issued` of them.

    As torch's Join does for a rank that has run out of samples.
    """
    reducer: Any = ddp.reducer
    missing = reducer._get_zeros_like_grad_buckets()[issued:]
    for future in [reducer._run_comm_hook(bucket) for bucket in missing]:  # none may end before the last
        future.wait()


def reset_reducer(ddp: DistributedDataParallel) -> None:
    """Let the wrapper forget an interrupted backward pass. To be called on all ranks alike."""
    reducer: Any = ddp.reducer
    reducer._reset_state()


def sync_batch_norm() -> Callable[..., Tensor] | None:
    """The differentiable function of torch's SyncBatchNorm, for GPUs; None where this torch has none."""
    with suppress(ImportError):
        from torch.nn.modules._functions import SyncBatchNorm

        apply: Callable[..., Tensor] = SyncBatchNorm.apply
        return apply
    return None


def on_compilation(begin: Callable[..., None], end: Callable[..., None]) -> bool:
    """Have torch.compile call these when it compiles. False where this torch cannot: torch has no public way."""
    try:
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(begin)
        callback_handler.register_end_callback(end)
    except (ImportError, AttributeError):
        return False
    return True
