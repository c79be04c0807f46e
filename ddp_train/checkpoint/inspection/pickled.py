"""The pickle of a file of torch.save, unpickled into facts about its objects: nothing that it names is called.

Python's unpickler asks `find_class` for everything that is called, and `persistent_load` for every storage; both
return what is defined here. The opcodes are checked before, so that none of them can take memory or set attributes.

Source: pickletools, which documents every opcode; torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`,
`_rebuild_parameter`); and what pickle writes under protocol 2 for Size, device, complex and bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ddp_train.checkpoint.inspection.zip_directory import Refused

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
# fmt: off
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS",
}
# fmt: on
"""Those that torch.save writes."""
_MOST, _MOST_OF_STORAGE = 500_000, 60
"""Opcodes of a pickle: one byte can build 64 bytes. A tensor takes about 40, and has a record of its own."""
_DEEPEST = 64
_MOST_DIMENSIONS = 64  # torch's own limit
_KEYS = (str, int, float, type(None))
_NOT_IN_ORDER = (pickle.UnpicklingError, AttributeError, ValueError, TypeError, LookupError, EOFError, OverflowError)


class ForeignObject(Refused):
    """The pickle names a class or function of another kind, which unpickling would call."""


class _Fact:
    """What the unpickler makes in the place of an object. Its attributes stay as they are."""

    def __setstate__(self, attributes: object) -> None:
        raise Refused("its pickle sets attributes of an object")


@dataclass(frozen=True)
class _Leaf(_Fact):
    """A dtype, or a value of one of the small plain types."""

    text: str


@dataclass(frozen=True)
class _StorageKind(_Fact):
    item_bytes: int


@dataclass(frozen=True)
class _Storage(_Fact):
    """The memory of tensors, which a record of the file fills."""

    items: int
    item_bytes: int


@dataclass(frozen=True)
class TensorFacts(_Fact):
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


@dataclass(frozen=True)
class _Call(_Fact):
    """A function that the pickle may call."""

    name: str
    build: Callable[[tuple[object, ...]], object]

    def __call__(self, *arguments: object) -> object:
        made = self.build(arguments)
        if made is None:
            raise Refused(f"its pickle calls {self.name} in a way that torch.save does not")
        return made


class _OrderedDict(dict[object, object]):
    """A state_dict. Its only attribute may be `_metadata`: the versions of its modules."""

    def __setstate__(self, attributes: object) -> None:
        if type(attributes) is not dict or attributes.keys() - {"_metadata"}:
            raise Refused("its pickle sets attributes of an object")
        if any(type(value) not in (str, int, float, bool, type(None)) for _, value in _walk(attributes, _MOST)):
            raise Refused("its pickle hides an object in the versions of modules")


def facts(program: bytes, storages: Mapping[str, int]) -> object:
    """The value that the pickle describes, with TensorFacts for its tensors.

    `storages`: bytes by key. Raises Refused.
    """
    most = _MOST + _MOST_OF_STORAGE * len(storages)
    try:
        _check_opcodes(program, most)
        content = _Unpickler(program, storages).load()
    except Refused:
        raise
    except _NOT_IN_ORDER as error:
        raise Refused(f"its pickle is not in order ({str(error)[:100]})") from None
    for place, value in _walk(content, most):
        if isinstance(value, TensorFacts):
            if (problem := value.problem()) is not None:
                raise Refused(f"its tensor {_keys_of(place)} {problem}")
        elif isinstance(value, (_StorageKind, _Storage, _Call)):
            raise Refused(f"its {_keys_of(place)} is neither a tensor nor a plain value")
    return content


def _check_opcodes(program: bytes, most: int) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(program))):
        if count > most:
            raise Refused(f"its pickle has more than {most:,} opcodes")
        if opcode.name not in _OPCODES:
            raise Refused(f"its pickle has the opcode {opcode.name}, which torch.save does not write")
        if opcode.name == "PROTO" and argument != 2:
            raise Refused(f"its pickle has protocol {argument}; torch.save writes 2")
        # Python's unpickler keeps a table as long as the largest number.
        if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > most:
            raise Refused(f"its pickle remembers a value under the number {argument:,}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, program: bytes, storages: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(program))
        self._storages = storages

    def find_class(self, module: str, name: str) -> object:
        """What the pickle may name. Raises ForeignObject for the rest."""
        if module == "torch" and name in ITEM_BYTES:
            return _Leaf(name)
        if module == "torch" and name.removesuffix("Storage") in _STORAGE_BYTES and name.endswith("Storage"):
            return _StorageKind(_STORAGE_BYTES[name.removesuffix("Storage")])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _StorageKind(1)
        build = _CALLS.get((module, name))
        if build is None:
            raise ForeignObject(f"{module}.{name}"[:120])
        return _Call(f"{module}.{name}", build)

    def persistent_load(self, identity: object) -> _Storage:
        """The storage of a persistent id. Raises Refused."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise Refused("its pickle refers to something that is no storage")
        _, kind, key, location, items = identity
        known = isinstance(kind, _StorageKind) and isinstance(key, str) and isinstance(location, str)
        if not known or not _are_counts((items,)):
            raise Refused("its pickle refers to a storage in a way that torch.save does not")
        has = self._storages.get(key)
        if has != items * kind.item_bytes:
            held = "none" if has is None else f"{has:,}"
            raise Refused(
                f"its storage {key[:80]!r} claims {items * kind.item_bytes:,} bytes, of which the file has {held}"
            )
        return _Storage(items, kind.item_bytes)


def _tensor(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    if len(arguments) != 6 or not isinstance(memory := arguments[0], _Storage) or arguments[5] != {}:
        return None
    offset, shape, strides = arguments[1:4]
    if not (_are_counts((offset,)) and _are_counts(shape) and _are_counts(strides)):
        return None
    assert isinstance(offset, int) and isinstance(shape, tuple) and isinstance(strides, tuple)
    return TensorFacts(memory.items, memory.item_bytes, offset, shape, strides) if len(shape) == len(strides) else None


def _tensor_with_dtype(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)`."""
    if len(arguments) != 7 or not isinstance(memory := arguments[0], _Storage):
        return None
    size = ITEM_BYTES.get(dtype.text) if isinstance(dtype := arguments[6], _Leaf) else None
    if size is None:
        return None
    return _tensor((_Storage(memory.items * memory.item_bytes // size, size), *arguments[1:6]))


def _parameter(arguments: tuple[object, ...]) -> TensorFacts | None:
    """`_rebuild_parameter(data, requires_grad, hooks)`."""
    tensor = arguments[0] if len(arguments) == 3 and arguments[2] == {} else None
    return tensor if isinstance(tensor, TensorFacts) else None


def _small(*kinds: type) -> Callable[[tuple[object, ...]], _Leaf | None]:
    """A value made of one to all of these plain arguments."""

    def build(arguments: tuple[object, ...]) -> _Leaf | None:
        right = 0 < len(arguments) <= len(kinds)
        right = right and all(isinstance(value, kind) for value, kind in zip(arguments, kinds, strict=False))
        return _Leaf(repr(arguments)[:80]) if right else None

    return build


def _size(arguments: tuple[object, ...]) -> object:
    return arguments[0] if len(arguments) == 1 and _are_counts(arguments[0]) else None


def _bytes(arguments: tuple[object, ...]) -> _Leaf | None:
    """Protocol 2 writes bytes as Latin text. Other codecs could multiply what they are given."""
    right = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
    return _Leaf("bytes") if right else None


_CALLS: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): lambda arguments: _OrderedDict() if arguments == () else None,
    ("torch", "Size"): _size,
    ("torch", "device"): _small(str, int),
    ("__builtin__", "complex"): _small(float, float),
    ("_codecs", "encode"): _bytes,
}


def _are_counts(value: object) -> bool:
    right = isinstance(value, tuple) and len(value) <= _MOST_DIMENSIONS
    return right and all(type(item) is int and 0 <= item < 2**62 for item in value)  # type: ignore[attr-defined]


def _walk(content: object, most: int) -> Iterator[tuple[object, object]]:
    """Every value that is no container, with its place: (key, place of the container), None for the content.

    Raises Refused where containers are nested too deep or in a circle, or refer to one another so often that the
    values are more than the opcodes.
    """
    waiting: list[tuple[object, object, int]] = [(None, content, 0)]
    for _ in range(most):
        if not waiting:
            return
        place, value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Refused(f"its pickle is nested deeper than {_DEEPEST}")
        if isinstance(value, dict):
            if strange := [key for key in value if not isinstance(key, _KEYS)]:
                raise Refused(f"its pickle has a {type(strange[0]).__name__} as the key of a dict")
            waiting += [((key, place), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [((index, place), item, depth + 1) for index, item in enumerate(value)]
        else:
            yield place, value
    raise Refused(f"its pickle has more than {most:,} values")


def _keys_of(place: object) -> str:
    keys = []
    while isinstance(place, tuple):
        key, place = place
        keys.append(f"[{str(key)[:60]!r}]" if isinstance(key, str) else f"[{key!r}]"[:60])
    return "".join(reversed(keys)) or "content"
