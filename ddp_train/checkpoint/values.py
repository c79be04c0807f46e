"""Nested values of tensors and plain types: what a checkpoint may hold, and whether its numbers are finite."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch

from ddp_train.checkpoint.inspection import DTYPES, is_key

_LEAVES = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}


def checked_copy(
    value: Mapping[str, object], where: str, tensor: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, object]:
    """A copy of `value` with new containers, and `tensor` applied to each tensor.

    Raises TypeError for a value that could not be loaded again; at loading it would be too late.
    """
    copied: dict[str, object] = OrderedDict() if isinstance(value, OrderedDict) else {}
    for key, item in value.items():
        if not is_key(key):
            raise TypeError(f"a key of {where} is a {_name(key)}: not a plain value below 2 ** 61")
        copied[key] = _copy(item, f"{where}[{key!r}]", tensor)
    if isinstance(copied, OrderedDict) and hasattr(value, "_metadata"):  # the versions of a state_dict's modules
        copied._metadata = _copy(value._metadata, f"{where}._metadata", tensor)  # type: ignore[attr-defined]
    return copied


def _copy(value: object, where: str, tensor: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """A copy with `tensor` applied to each tensor. Errors: TypeError for a value that cannot be kept."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.dtype not in DTYPES:
            raise TypeError(f"{where} is a tensor of {value.dtype} and {value.layout}: only dense ones can be kept")
        return tensor(value)
    if type(value) in _LEAVES and value != b"":  # pickle writes empty bytes as a call that torch refuses
        return value
    if type(value) in (dict, OrderedDict):
        assert isinstance(value, dict)
        return checked_copy(value, where, tensor)
    if type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        return type(value)(_copy(item, f"{where}[{index}]", tensor) for index, item in enumerate(value))
    raise TypeError(f"{where} is a {_name(value)}: not a tensor or plain value")


def _name(value: object) -> str:
    """A value's class with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a contiguous copy where it repeats its memory (an expanded buffer), which loading would refuse."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.nbytes <= tensor.untyped_storage().nbytes() else tensor.contiguous()


def not_finite(state: object) -> str | None:
    """Describes the first tensor in `state` that holds NaN or infinite values, with its place; None without any.

    A mask of zeros and minus infinities (for attention) is accepted.
    """
    waiting: list[tuple[str, object]] = [("", state)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{where}[{key!r}]", item) for key, item in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{where}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, torch.Tensor) and not is_finite(value):
            count = int((~value.isfinite()).sum())
            return f"{where} holds {count:,} values of {value.numel():,} that are NaN or infinite"
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; a mask of 0 and -inf counts as finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    if values.dtype.itemsize == 1:
        values = values.float()
    low, high = (bound.item() for bound in torch.aminmax(values))  # both are NaN if any value is NaN
    if math.isfinite(low) and math.isfinite(high):
        return True
    return low == -math.inf and high == 0 and bool(((values == 0) | (values == -math.inf)).all())
