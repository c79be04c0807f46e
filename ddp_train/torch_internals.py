"""The only module that uses torch's private API. Each use has a fallback, for a torch version without that API.

Leaving the compiler out saves most. torch marks functions that torch.compile must not trace (methods of optimizers,
DistributedDataParallel's forward pass). At its first call a marked function imports torch._dynamo, and with it sympy,
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
    """From now on, call the functions that torch marks for the compiler directly, without importing the compiler."""
    marking = getattr(torch, "_disable_dynamo", None)
    if marking is None or COMPILER in sys.modules:
        return
    mark = marking(lambda: None).__code__
    for attribute in (*vars(Optimizer).values(), *vars(DistributedDataParallel).values()):
        function: Any = attribute
        while callable(function):  # the function, then each function that it wraps
            if getattr(function, "__code__", None) is mark:
                # torch caches the compiler's version of the function here, and asks the compiler only if it is missing.
                function.__wrapped__.__dynamo_disable = function.__wrapped__
            function = getattr(function, "__wrapped__", None)


def without_compiler(make: Callable[[], T]) -> T:
    """Call `make`, which creates a DistributedDataParallel; its query of a compiler setting gets the default value."""
    if COMPILER in sys.modules:
        return make()
    ask = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    torch._dynamo = SimpleNamespace(utils=ask)  # type: ignore[assignment]
    try:
        return make()
    except AttributeError:  # this torch asks the compiler for more
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
    """Run one backward pass into the leaves only; its graph is not kept, and the pass itself is not recorded."""
    run((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@functools.cache
def _engine() -> Callable[..., object] | None:
    """torch's autograd engine, if a trial with this torch gives the expected gradient; else None."""
    run: Callable[..., object] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return None
    leaf = torch.zeros((), requires_grad=True)
    try:
        _pass(run, leaf * 2.0, torch.full((), 3.0))
    except Exception:  # this torch takes other arguments, or other types
        return None
    return run if leaf.grad is not None and leaf.grad == 6.0 else None


def foreach(
    operation: str, tensors: Sequence[Tensor], *others: Sequence[Tensor] | Tensor | float, **options: float
) -> Any:
    """Tensor's method `operation` ("add_", "norm", ...) on each tensor, in one pass over all of them.

    others: each argument has one tensor for each of `tensors`, or is one number (or scalar tensor) for all. Returns the
    list of results. Public way: a loop.
    """
    together = getattr(torch, f"_foreach_{operation}", None)
    if together is not None:
        return together(tensors, *others, **options)
    method = getattr(Tensor, operation)
    rows = zip(tensors, *(repeat(o) if isinstance(o, float | Tensor) else o for o in others), strict=False)
    return [method(*row, **options) for row in rows]


def any_not_finite(tensors: Sequence[Tensor], bad: Tensor, one: Tensor) -> bool:
    """Whether any value is not finite, by one pass of GradScaler's kernel, which also multiplies the values by `one`.

    bad, one: float32 scalars, 0 and 1, which keep these values. Public way: torch.isfinite, tensor by tensor.
    """
    check = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if check is None:
        return not all(bool(torch.isfinite(_numbers(tensor)).all()) for tensor in tensors)
    try:
        check(tensors, bad, one)
    except RuntimeError:  # asking every tensor for its kind beforehand takes longer
        check([_numbers(tensor) for tensor in tensors], bad, one)
    if found := bool(bad):
        bad.zero_()
    return found


def _numbers(tensor: Tensor) -> Tensor:
    """The numbers as GradScaler's kernel takes them: those that a sparse tensor stores, and complex ones as pairs."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


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
    """Number of collectives that this rank has issued to a process group. Public way: none; returns None."""
    try:
        return int(group._get_sequence_number_for_group())
    except (AttributeError, RuntimeError):
        return None


def bucket_count(ddp: DistributedDataParallel) -> int:
    """Number of all-reduces that the wrapper needs for a gradient. Only where `can_complete_allreduces`."""
    return len(ddp.reducer._get_zeros_like_grad_buckets())


def complete_allreduces(ddp: DistributedDataParallel, issued: int) -> None:
    """Take part with zeros in the all-reduces of a backward pass, after the first `issued` of them.

    As torch's Join does for a rank that has run out of samples.
    """
    reducer: Any = ddp.reducer
    missing = reducer._get_zeros_like_grad_buckets()[issued:]
    for future in [reducer._run_comm_hook(bucket) for bucket in missing]:  # all are issued before the first wait
        future.wait()


def reset_reducer(ddp: DistributedDataParallel) -> None:
    """Make the wrapper discard an interrupted backward pass. Must be called on all ranks."""
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
    """Have torch.compile call `begin` and `end` when it compiles; False where this torch cannot. Public way: none."""
    try:
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(begin)
        callback_handler.register_end_callback(end)
    except (ImportError, AttributeError):
        return False
    return True
