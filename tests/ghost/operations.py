"""A dispatch mode over CPU tensors that holds them to CUDA's rules, operation by operation.

What autograd and DistributedDataParallel do in C++ passes here too. A tensor that they have made carries no mark yet:
it takes the device of those it meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .memory import CPU, HOST, Allocation, allocate, allocation_of, mark

if TYPE_CHECKING:
    from .install import Ghost

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "repeat_interleave", "_linalg_check_errors",
}  # fmt: skip
"""The host reads a result, to know a value or the size of what comes out. `repeat_interleave`: where the size of its
result is not given."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""They take indices of the host, and copy them to the device first."""
SCALARS = {"fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
"""Beside what is pointwise they take a number that lies on the host as a tensor without dimensions."""

# What torch refuses under torch.use_deterministic_algorithms, by the list in that function's documentation: the
# operation that refuses, and the entry that it belongs to (test_ghost.py holds the list against torch's).
CHANCE = {
    "avg_pool3d_backward": "torch.nn.AvgPool3d",
    "_adaptive_avg_pool2d_backward": "torch.nn.AdaptiveAvgPool2d",
    "_adaptive_avg_pool3d_backward": "torch.nn.AdaptiveAvgPool3d",
    "adaptive_max_pool2d_backward": "torch.nn.AdaptiveMaxPool2d",
    "fractional_max_pool2d_backward": "torch.nn.FractionalMaxPool2d",
    "fractional_max_pool3d_backward": "torch.nn.FractionalMaxPool3d",
    "max_unpool2d": "torch.nn.MaxUnpool2d",  # MaxUnpool1d is computed by it
    "max_unpool3d": "torch.nn.MaxUnpool3d",
    "upsample_linear1d_backward": "torch.nn.functional.interpolate",
    "upsample_bilinear2d_backward": "torch.nn.functional.interpolate",
    "_upsample_bilinear2d_aa_backward": "torch.nn.functional.interpolate",
    "upsample_bicubic2d_backward": "torch.nn.functional.interpolate",
    "_upsample_bicubic2d_aa_backward": "torch.nn.functional.interpolate",
    "upsample_trilinear3d_backward": "torch.nn.functional.interpolate",
    "reflection_pad1d_backward": "torch.nn.ReflectionPad1d",
    "reflection_pad2d_backward": "torch.nn.ReflectionPad2d",
    "reflection_pad3d_backward": "torch.nn.ReflectionPad3d",
    "nll_loss2d_forward": "torch.nn.NLLLoss",  # of whole images: that of one label is computed in order
    "_ctc_loss_backward": "torch.nn.CTCLoss",
    "_embedding_bag_dense_backward": "torch.nn.EmbeddingBag",
    "put_": "torch.Tensor.put_",
    "histc": "torch.histc",
    "bincount": "torch.bincount",  # with weights
    "median": "torch.median",  # with indices: the overload that has a dimension
    "grid_sampler_2d_backward": "torch.nn.functional.grid_sample",
    "grid_sampler_3d_backward": "torch.nn.functional.grid_sample",
    "scatter_reduce": "torch.Tensor.scatter_reduce",  # with "prod"
    "scatter_reduce_": "torch.Tensor.scatter_reduce",
}


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, also within lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)


class Operations(TorchDispatchMode):
    """See the module. A mode belongs to one thread."""

    def __init__(self, ghost: Ghost) -> None:
        super().__init__()
        self._ghost = ghost

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the mark for that would import the compiler, and take longer than most of it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            self._ghost.collectives.check(name, args)
        inputs = [*tensors_in(args, kwargs.values())]
        marks = [allocation_of(tensor) for tensor in inputs]
        device = next((m.device for m in marks if m is not None and m.device.type == "cuda"), None)
        if device is None:
            out = func(*args, **kwargs)
            if marks and None not in marks:
                for made in tensors_in(out):
                    if allocation_of(made) is None and made.device.type == "cpu":
                        mark(made, HOST)
            return out
        gpu = self._ghost.gpus[device.index]
        gpu.queued += 1
        self._check(func, name, args, kwargs, inputs, marks, device)
        out = func(*args, **kwargs)
        for tensor in (*inputs, *tensors_in(out)):
            if allocation_of(tensor) is None:
                allocate(tensor, device, self._ghost.gpus, name)
        return out

    def _check(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        marks: list[Allocation | None],
        device: torch.device,
    ) -> None:
        if name in ("copy_", "_foreach_copy_"):
            self._copy(name, args, kwargs)
        elif name in INDEXING:
            self._index(name, args, device)
        elif func.namespace != "c10d":
            one_device(func, name, inputs, marks)
        if name in WAITS and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
            self._ghost.wait(name, device)
        if name in CHANCE and torch.are_deterministic_algorithms_enabled() and by_chance(func, name, args, kwargs):
            raise RuntimeError(
                f"{name}_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or "
                "you can use the 'warn_only=True' option, if that's acceptable for your application."
            )
        if name.startswith("_fused_"):
            same_strides(name, args)

    def _copy(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        targets, sources = ([args[0]], [args[1]]) if name == "copy_" else args[:2]
        at_once = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        for target, source in zip(targets, sources, strict=True):
            to, of = allocation_of(target), allocation_of(source)
            if to is None and of is not None and of.gpu is not None:  # made in C++: one of the reducer's buckets
                allocate(target, of.device, self._ghost.gpus, name)
                to = allocation_of(target)
            to, of = to or HOST, of or HOST
            if to.device != of.device and CPU in (to.device, of.device):
                self._ghost.crossing(target, source, at_once)

    def _index(self, name: str, args: tuple[Any, ...], device: torch.device) -> None:
        itself = allocation_of(args[0])
        for index in tensors_in(args[1]):
            where = allocation_of(index)
            if itself is HOST and where is not None and where.gpu is not None:
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if index.dtype in (torch.bool, torch.uint8):
                self._ghost.wait(f"{name} with a mask", device)
            elif where is HOST:
                self._ghost.wait(f"{name} with indices of the host", device)
        for value in tensors_in(args[2:]):
            if allocation_of(value) is HOST and value.dim():
                raise mixed(f"{name}: values")


def mixed(what: str) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({what})"
    )


def one_device(func: Any, name: str, inputs: list[Tensor], marks: list[Allocation | None]) -> None:
    """Refuse tensors of several devices, as CUDA does. A number of the host is taken where it is a mere operand."""
    devices = {m.device for t, m in zip(inputs, marks, strict=True) if m is not None and (t.dim() or m.gpu)}
    if len(devices) > 1:
        raise mixed(str(func))
    takes_numbers = torch.Tag.pointwise in func.tags or name in SCALARS or name.startswith("_foreach_")
    if not takes_numbers and any(m is HOST for m in marks):
        raise mixed(str(func))


def by_chance(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operation of CHANCE is one of those that torch refuses."""
    if name == "bincount":
        return (args[1] if len(args) > 1 else kwargs.get("weights")) is not None
    if name == "median":
        return func._overloadname.startswith("dim")
    if name.startswith("scatter_reduce"):
        return "prod" in args or kwargs.get("reduce") == "prod"
    if name == "_embedding_bag_dense_backward":
        return 2 in args[5:8]  # the mode "max"
    return True


def same_strides(name: str, args: tuple[Any, ...]) -> None:
    """What CUDA's fused optimizers demand: a parameter, its gradient and its state in the same memory order."""
    rows = [row for row in args if isinstance(row, (list, tuple)) and row and isinstance(row[0], Tensor)]
    for first, *others in zip(*(row for row in rows if len(row) == len(rows[0])), strict=True):
        for other in others:
            if other.shape == first.shape and not same_order(first, other):
                raise RuntimeError(
                    f"{name}: params, grads and state must have the same dtype, device and strides: "
                    f"{tuple(first.shape)} has {first.stride()} and {other.stride()}"
                )


def same_order(one: Tensor, other: Tensor) -> bool:
    return all(a == b for a, b, size in zip(one.stride(), other.stride(), one.shape, strict=True) if size != 1)
