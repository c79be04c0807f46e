"""torch's functions that name a device, or that bring values to the host: each as CUDA has it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .memory import CPU, HOST, Allocation, allocate, allocation_of, mark
from .operations import tensors_in

if TYPE_CHECKING:
    from .install import Ghost

Base = torch._C.TensorBase
FACTORIES = (
    "arange", "as_tensor", "asarray", "empty", "empty_like", "empty_permuted", "empty_strided", "eye", "full",
    "full_like", "hann_window", "linspace", "logspace", "ones", "ones_like", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices",
    "zeros", "zeros_like",
)  # fmt: skip
METHODS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
FROM_VALUES = ("as_tensor", "asarray", "tensor", "new_tensor")
"""Their values come from the host: to a device through memory that is not pinned."""
OF_THE_HOST = ("from_numpy", "frombuffer", "load")


def patch(ghost: Ghost) -> None:
    """Put the functions of this module in the place of torch's."""
    replace = ghost.patches.replace
    for name in FACTORIES:
        replace(torch, name, factory(ghost, getattr(torch, name), name))
    for name in METHODS:
        replace(Tensor, name, factory(ghost, getattr(Base, name), name))
    for name in OF_THE_HOST:
        replace(torch, name, on_host(getattr(torch, name)))
    methods = Methods(ghost)
    replace(Tensor, "device", property(methods.device))
    replace(Tensor, "is_cuda", property(lambda tensor: methods.device(tensor).type == "cuda"))
    replace(Tensor, "is_cpu", property(lambda tensor: methods.device(tensor).type == "cpu"))
    for name in ("to", "cuda", "cpu", "tolist", "numpy", "pin_memory", "is_pinned", "record_stream", "get_device"):
        replace(Tensor, name, as_method(getattr(methods, name)))
    replace(Tensor, "__array__", methods.array(Tensor.__array__))
    replace(Tensor, "__deepcopy__", methods.deepcopy(Tensor.__deepcopy__))
    replace(torch.UntypedStorage, "device", property(storage_device(torch.UntypedStorage.device)))
    replace(torch.UntypedStorage, "is_cuda", property(lambda storage: storage.device.type == "cuda"))
    replace(torch.UntypedStorage, "clone", lambda storage: torch.UntypedStorage(storage.nbytes()).copy_(storage))
    for owner in (torch.nn.functional, torch._C._nn):
        replace(owner, "one_hot", ghost.quietly(owner.one_hot))  # looks for the largest class on the CPU alone
    grouped = group_by_device(torch._C._group_tensors_by_device_and_dtype)
    replace(torch._C, "_group_tensors_by_device_and_dtype", grouped)


def as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function, which binds as a method does; a bound one would not."""

    def method(tensor: Tensor, *args: Any, **options: Any) -> Any:
        return function(tensor, *args, **options)

    return method


def factory(ghost: Ghost, make: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """`make` for a device of any kind."""

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Tensor:
        device, pinned = ghost.device(options.pop("device", None)), options.pop("pin_memory", False)
        if device is not None:
            options["device"] = CPU if device.type == "cuda" else device
        elif ghost.default_device is not None and not name.startswith("new_") and not name.endswith("_like"):
            device = ghost.default_device
        given = [*tensors_in(args)] if name in FROM_VALUES else []
        out = make(*args, **options)
        if any(out is one for one in given) and device in (None, one_device_of(out)):
            return out
        if pinned:
            return pin(out)
        if device is not None and device.type == "cuda":
            if name in FROM_VALUES and not all(one_device_of(one) == device for one in given or [out]):
                ghost.wait(f"torch.{name} of values of the host", device)
            return allocate(out, device, ghost.gpus, name)
        if device is CPU or (device is None and allocation_of(out) is None) or device == CPU:
            mark_host(out)
        return out

    return made


def one_device_of(tensor: Tensor) -> torch.device:
    held = allocation_of(tensor)
    return held.device if held is not None else Base.device.__get__(tensor)


def mark_host(tensor: Tensor) -> Tensor:
    if Base.device.__get__(tensor).type == "cpu":
        mark(tensor, HOST)
    return tensor


def pin(tensor: Tensor) -> Tensor:
    mark(tensor, Allocation(CPU, pinned=True))
    return tensor


def on_host(make: Callable[..., Any]) -> Callable[..., Any]:
    """What it returns is on the host."""

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Any:
        out = make(*args, **options)
        for tensor in tensors_in(out):
            mark_host(tensor)
        return out

    return made


def storage_device(real: Any) -> Callable[[torch.UntypedStorage], torch.device]:
    def device(storage: torch.UntypedStorage) -> torch.device:
        held = getattr(storage, "_ghost", None)
        return real.__get__(storage) if held is None else held.device

    return device


def group_by_device(real: Callable[..., Any]) -> Callable[..., Any]:
    """Optimizers treat tensors device by device, and ask in C++ which is which."""

    def grouped(lists: Any, *args: Any, **options: Any) -> Any:
        found = {}
        for (device, kind), group in real(lists, *args, **options).items():
            first = next((t for row in group[0] for t in row if isinstance(t, Tensor)), None)
            found[(device if first is None else first.device, kind)] = group
        return found

    return grouped


class Methods:
    """Methods of a tensor. Each takes the tensor first."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost

    def device(self, tensor: Tensor) -> torch.device:
        return one_device_of(tensor)

    def get_device(self, tensor: Tensor) -> int:
        device = one_device_of(tensor)
        return device.index if device.type == "cuda" else -1

    def to(self, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        copy = options.pop("copy", False)
        other = args[0] if args and isinstance(args[0], Tensor) else options.pop("other", None)
        if other is not None:
            args = (other.device, other.dtype, *args[1:])
        if len(args) == 4:
            *args, copy = args  # type: ignore[assignment]
        device, dtype, at_once, order = torch._C._nn._parse_to(*args, **options)
        return self._move(tensor, self._ghost.device(device), dtype, at_once=at_once, copy=copy, order=order)

    def cuda(self, tensor: Tensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
        there = self._ghost.device(device if device is not None else "cuda")
        return self._move(tensor, there, None, at_once=non_blocking, order=options.get("memory_format"))

    def cpu(self, tensor: Tensor, **options: Any) -> Tensor:
        return self._move(tensor, CPU, None, order=options.get("memory_format"))

    def _move(
        self,
        tensor: Tensor,
        target: torch.device | None,
        dtype: torch.dtype | None,
        *,
        at_once: bool = False,
        copy: bool = False,
        order: Any = None,
    ) -> Tensor:
        source = one_device_of(tensor)
        kept = {"dtype": dtype or tensor.dtype, "memory_format": order or torch.preserve_format}
        if target is not None and target.type not in ("cpu", "cuda"):
            return Base.to(tensor, target, copy=copy, **kept)
        if target is None or target == source:
            return Base.to(tensor, copy=copy, non_blocking=at_once, **kept)
        with self._ghost.aside():
            moved = Base.to(tensor, CPU, copy=True, **kept)
        if target.type == "cuda":
            allocate(moved, target, self._ghost.gpus, "to")
        elif at_once:
            pin(moved)  # torch takes pinned memory for a copy that is not waited for
        else:
            mark_host(moved)
        self._ghost.crossing(moved, tensor, at_once)
        return moved

    def tolist(self, tensor: Tensor) -> Any:
        self._read(tensor, "tolist")
        return Base.tolist(tensor)

    def numpy(self, tensor: Tensor, *args: Any, **options: Any) -> Any:
        if one_device_of(tensor).type == "cuda":
            raise TypeError(
                f"can't convert {one_device_of(tensor)} device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        self._read(tensor, "numpy")
        return Base.numpy(tensor, *args, **options)

    def array(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def __array__(tensor: Tensor, *args: Any, **options: Any) -> Any:
            return self.numpy(tensor) if one_device_of(tensor).type == "cuda" else real(tensor, *args, **options)

        return __array__

    def _read(self, tensor: Tensor, kind: str) -> None:
        device = one_device_of(tensor)
        if device.type == "cuda":
            self._ghost.wait(kind, device)
        else:
            self._ghost.must_be_done(tensor)

    def pin_memory(self, tensor: Tensor, device: Any = None) -> Tensor:
        if one_device_of(tensor).type == "cuda":
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return tensor if self.is_pinned(tensor) else pin(Base.clone(tensor))

    def is_pinned(self, tensor: Tensor, device: Any = None) -> bool:
        held = allocation_of(tensor)
        return held is not None and held.pinned

    def record_stream(self, tensor: Tensor, stream: Any) -> None:
        pass

    def deepcopy(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def __deepcopy__(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
            copied = real(tensor, memo)
            device = one_device_of(tensor)
            return allocate(copied, device, self._ghost.gpus, "deepcopy") if device.type == "cuda" else copied

        return __deepcopy__
