"""The few objects that a checkpoint's pickle may build, as facts about them.

Source: torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`, `_rebuild_parameter`), and what Python's pickle
writes under protocol 2 for Size, device, complex and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
"""The dtypes that a file may have, by torch's names."""
_STORAGE_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_STORAGES = {("torch", f"{name}Storage"): size for name, size in _STORAGE_BYTES.items()}
_STORAGES["torch.storage", "UntypedStorage"] = 1
_MOST_DIMENSIONS = 64  # torch's own limit


class Refused(ValueError):
    """The file holds what no checkpoint holds; one line says what."""


class ForeignObject(Refused):
    """The pickle names a class or function of another kind, which unpickling would call."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names, before it is called."""

    module: str
    name: str


@dataclass(frozen=True)
class Leaf:
    """A value of one of the small plain types."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The memory of tensors, and the record that it fills."""

    items: int
    item_bytes: int


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as the file describes it. Lengths count items of `item_bytes` bytes."""

    storage_items: int
    item_bytes: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def problem(self) -> str | None:
        """Why the file does not hold this tensor: a copy of it would be larger, or of other memory. Else None."""
        items = math.prod(self.shape)
        if items > self.storage_items:
            held = self.storage_items * self.item_bytes
            return f"expands to {items * self.item_bytes:,} bytes, of which the file holds {held:,}"
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return f"reaches beyond its {self.storage_items:,} items" if items and last >= self.storage_items else None


def known(module: str, name: str) -> Name | Leaf:
    """What a pickle may name. Raises ForeignObject for the rest."""
    if module == "torch" and name in ITEM_BYTES:
        return Leaf(name)
    if (module, name) in _STORAGES or (module, name) in _CALLS:
        return Name(module, name)
    raise ForeignObject(f"{module}.{name}"[:120])


def call(function: object, arguments: object) -> object:
    """What the call makes. Raises Refused for arguments that torch.save does not write."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("its pickle calls what is no function")
    build = _CALLS.get((function.module, function.name))
    made = build(arguments) if build is not None else None
    if made is None:
        raise Refused(f"its pickle calls {function.module}.{function.name} in a way that torch.save does not")
    return made


def storage(identity: object, records: dict[str, int]) -> Storage:
    """The storage of a persistent id. `records`: bytes by key. Raises Refused."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise Refused("its pickle refers to something that is no storage")
    _, kind, key, location, items = identity
    size = _STORAGES.get((kind.module, kind.name)) if isinstance(kind, Name) else None
    if size is None or not isinstance(key, str) or not isinstance(location, str) or not _is_count(items):
        raise Refused("its pickle refers to a storage in a way that torch.save does not")
    if records.get(key) != items * size:
        has = f"{records[key]:,}" if key in records else "none"
        raise Refused(f"its storage {key[:80]!r} claims {items * size:,} bytes, of which the file has {has}")
    return Storage(items, size)


def _tensor(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    if len(arguments) != 6 or not isinstance(arguments[0], Storage) or arguments[5] != {}:
        return None
    memory, offset, shape, strides = arguments[:4]
    assert isinstance(memory, Storage)
    if not (_is_count(offset) and _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)):
        return None
    return TensorFacts(memory.items, memory.item_bytes, offset, shape, strides)


def _tensor_with_dtype(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)`."""
    memory, dtype = arguments[0], arguments[-1]
    if len(arguments) != 7 or not isinstance(memory, Storage) or not isinstance(dtype, Leaf):
        return None
    size = ITEM_BYTES.get(dtype.text)
    if size is None:
        return None
    return _tensor((Storage(memory.items * memory.item_bytes // size, size), *arguments[1:6]))


def _parameter(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_parameter(data, requires_grad, hooks)`."""
    tensor = arguments[0] if len(arguments) == 3 and arguments[2] == {} else None
    return tensor if isinstance(tensor, TensorFacts) else None


def _small(*kinds: type) -> Callable[[tuple[object, ...]], Leaf | None]:
    """A value of one to all of these plain arguments."""

    def build(arguments: tuple[object, ...]) -> Leaf | None:
        right = 0 < len(arguments) <= len(kinds)
        right = right and all(isinstance(value, kind) for value, kind in zip(arguments, kinds, strict=False))
        return Leaf(repr(arguments)[:80]) if right else None

    return build


def _size(arguments: tuple[object, ...]) -> object:
    return arguments[0] if len(arguments) == 1 and _are_counts(arguments[0]) else None


def _bytes(arguments: tuple[object, ...]) -> Leaf | None:
    """Protocol 2 writes bytes as Latin text. Other codecs could multiply what they are given."""
    right = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
    return Leaf("bytes") if right else None


_CALLS: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): lambda arguments: {} if arguments == () else None,
    ("torch", "Size"): _size,
    ("torch", "device"): _small(str, int),
    ("__builtin__", "complex"): _small(float, float),
    ("_codecs", "encode"): _bytes,
}


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= _MOST_DIMENSIONS and all(map(_is_count, value))
