"""Inspects a file of torch.save before torch reads it: it may hold tensors and plain values, and nothing else.

torch's restricted unpickler runs no code, but it builds what a file asks for: a tensor that repeats four bytes into
terabytes, a storage longer than its record, values without end. So the zip file's directory and the pickle are read
here first, and nothing that the pickle names is called. The inspection accepts what checkpoint/format.py writes, and a
plain state_dict.

Sources: PKWARE's APPNOTE.TXT 4.3 and 4.4 (zip), pickletools (every opcode), torch/_utils.py (`_rebuild_tensor_v2`,
`_rebuild_tensor_v3`, `_rebuild_parameter`).
"""

from __future__ import annotations

import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
}
"""Dtypes that the tensors of a file may have."""
_DTYPE_BYTES = {str(dtype): dtype.itemsize for dtype in DTYPES}
_STORAGE_BYTES = {
    "torch.storage.UntypedStorage": 1,
    **dict.fromkeys(("torch.ByteStorage", "torch.CharStorage", "torch.BoolStorage"), 1),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage", "torch.ComplexFloatStorage"), 8),
    "torch.ComplexDoubleStorage": 16,
}
_RECORD = re.compile(r"([^/\\:\0]+)/((?:\.?\w+/)?\.?\w[\w.]*)", re.ASCII)
"""The name of a record of torch.save: its folder, and its name in that folder."""
_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_DIRECTORY_COST, _DIRECTORY_MEMORY = 12, 32 << 20
"""Bytes of memory that zipfile takes per byte of directory, and the limit on that memory above the file's length."""
_PICKLE_BYTES, _PICKLE_BYTES_OF_RECORD = 1 << 20, 500
"""Largest pickle, and how much larger it may be for each record. A tensor takes about 150 bytes with its name."""
_MOST, _MOST_OF_RECORD, _DEEPEST = 400_000, 60, 64
"""Most opcodes, and values, since one byte of pickle can build 64 bytes; how many more for each record; deepest
nesting. A tensor takes about 40 opcodes and one record."""
_MOST_NUMBERS = 1 + 2 * 64  # of a tensor: its offset, and a length and stride for each of torch's 64 dimensions
_TENSOR = object()


class Refused(ValueError):
    """The file holds something that no checkpoint holds; the message is one line that names it."""


class ForeignObject(Refused):
    """The pickle calls or holds a class or function that torch.save does not write."""


@dataclass(frozen=True)
class _Name:
    """A class, function or dtype that the pickle names."""

    path: str


@dataclass(frozen=True)
class _Storage:
    """The memory of tensors, filled from one record of the file."""

    items: int
    item_bytes: int


class _OrderedDict(dict[object, object]):
    metadata: object = None
    """The versions of a state_dict's modules."""


def inspect(file: IO[bytes], *, comment: int = 0) -> object:
    """The content of the file of torch.save that ends in a zip comment of `comment` bytes. Raises Refused, one line.

    Dicts, lists and plain values are themselves; tensors and the like are placeholders.
    """
    length = file.seek(0, os.SEEK_END)
    try:
        _check_directory(file, length, comment)
        with zipfile.ZipFile(file) as archive:
            records = _records(archive, length)
            if "data.pkl" not in records or "constants.pkl" in records:
                raise Refused("not a file of torch.save, or one of TorchScript, which holds code")
            if (size := records["data.pkl"].file_size) > _PICKLE_BYTES + _PICKLE_BYTES_OF_RECORD * len(records):
                raise Refused(f"its pickle takes {size:,} bytes for {len(records):,} records")
            program = archive.read(records["data.pkl"])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, UnicodeError, EOFError) as error:
        raise Refused(f"not a zip file of torch.save ({error})") from None
    storages = {name.removeprefix("data/"): info.file_size for name, info in records.items() if name[:5] == "data/"}
    try:
        return _content(program, storages, _MOST + _MOST_OF_RECORD * len(records))
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Refused(f"its pickle is not in order ({str(error)[:100]})") from None


def _check_directory(file: IO[bytes], length: int, comment: int) -> None:
    """Refuse a directory that is not right before the end of the file, or too long to be read.

    Readers of zip files search for the directory in different ways; at the end of the file, all find the same one.
    """
    end = length - comment - _END.size
    file.seek(max(0, end))
    signature, _, _, _, _, size, start, written = _END.unpack(file.read(_END.size))
    found = signature == b"PK\5\6" and written == comment
    if end >= (before := _END_64.size + _LOCATOR_64.size):
        file.seek(end - before)
        record, locator = file.read(_END_64.size), _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if locator[0] == b"PK\6\7":
            end -= before
            signature, *_, size, start = _END_64.unpack(record)
            found = found and signature == b"PK\6\6" and locator[2] == end
    if not found or start + size != end:
        raise Refused("its zip directory is not at its end")
    if size * _DIRECTORY_COST > _DIRECTORY_MEMORY + length:
        raise Refused(f"its zip directory alone takes {size:,} of its {length:,} bytes")


def _records(archive: zipfile.ZipFile, length: int) -> Mapping[str, zipfile.ZipInfo]:
    """The records by their names within the one folder; together they are no longer than the file."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        name = _RECORD.fullmatch(info.orig_filename)
        if name is None:
            raise Refused(f"its records are not under one folder: {info.orig_filename[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"its record {name[0][:80]!r} is compressed; torch.save only stores")
        folders.add(name[1])
        found[name[2]] = info
    if len(folders) != 1 or len(found) != len(archive.infolist()):
        raise Refused("its records are not under one folder, or two have one name")
    if (total := sum(info.file_size for info in found.values())) > length:
        raise Refused(f"its records expand to {total:,} bytes; the file has {length:,}")
    return found


def _content(program: bytes, storages: Mapping[str, int], most: int) -> object:
    """The content that the pickle describes with the opcodes of torch.save. `storages`: size in bytes by key."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[object, object] = {}

    def since_mark() -> list[Any]:
        """Pop the items above the last mark, and the mark."""
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count > most:
            raise Refused(f"its pickle has more than {most:,} opcodes")
        match opcode.name:
            case "PROTO" if argument == 2:
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Name(str(argument).replace(" ", ".", 1)))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                _set_metadata(stack.pop(), stack)
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], items[::2], items[1::2])
            case _:
                raise Refused(f"its pickle has the opcode {opcode.name}, which torch.save does not write like this")
    (content,) = stack
    _check_values(content, most)
    return content


def _set_metadata(attributes: object, stack: Sequence[Any]) -> None:
    """Give the OrderedDict on the stack the versions of its modules, as torch.save does. Errors: Refused."""
    if type(stack[-1]) is not _OrderedDict or type(attributes) is not dict or [*attributes] != ["_metadata"]:
        raise Refused("its pickle sets attributes of an object")
    stack[-1].metadata = attributes["_metadata"]


def _set_items(target: Any, keys: Sequence[object], values: Sequence[object]) -> None:
    """Fill a dict. Errors: Refused for a key that is no plain value."""
    if strange := [key for key in keys if not is_key(key)]:
        kind = type(strange[0]).__name__
        raise Refused(f"its pickle has a key of a dict that is no plain value below 2 ** 61: {kind}")
    target.update(zip(keys, values, strict=True))


def is_key(value: object) -> bool:
    """Whether `value` may be a dict's key: it is cheap to hash, and integers are small enough not to collide."""
    return value is None or type(value) in (str, bool, float) or (type(value) is int and abs(value) < 2**61 - 1)


def _storage(identity: object, storages: Mapping[str, int]) -> _Storage:
    """The storage that a pickle refers to. Errors: Refused where its size is not that of the file's record."""
    match identity:
        case ("storage", _Name(kind), str(key), str(), int(items)) if kind in _STORAGE_BYTES:
            claimed, has = items * _STORAGE_BYTES[kind], storages.get(key)
            if claimed != has:
                raise Refused(f"its storage {key[:80]!r} claims {claimed:,} bytes, of which the file has {has or 0:,}")
            return _Storage(items, _STORAGE_BYTES[kind])
    raise Refused("its pickle refers to a storage in a way that torch.save does not")


def _call(function: object, arguments: object) -> object:
    """A placeholder for what torch would build by a call. Raises ForeignObject for any other call."""
    match function, arguments:
        case _Name("torch._utils._rebuild_tensor_v2"), (_Storage() as storage, *place, _, hooks) if hooks == {}:
            return _tensor(storage, *place)
        case _Name("torch._utils._rebuild_tensor_v3"), (_Storage(bytes_, 1), *place, _, hooks, _Name(dtype)) if (
            hooks == {} and dtype in _DTYPE_BYTES
        ):
            size = _DTYPE_BYTES[dtype]
            return _tensor(_Storage(bytes_ // size, size), *place)
        case _Name("torch._utils._rebuild_parameter"), (tensor, _, hooks) if tensor is _TENSOR and hooks == {}:
            return tensor
        case _Name("collections.OrderedDict"), ():
            return _OrderedDict()
        case _Name("torch.Size"), (tuple(shape),):
            return shape
        case _Name("torch.device"), (str(),) | (str(), int()):
            return None
        case _Name("__builtin__.complex"), (float(), float()):
            return 0j
        # Protocol 2 writes bytes as Latin-1 text. Other codecs could expand their input.
        case _Name("_codecs.encode"), (str(), "latin1"):
            return b""
    raise ForeignObject(function.path[:120] if isinstance(function, _Name) else "a call of an object")


def _tensor(storage: _Storage, offset: Any, shape: Any, strides: Any) -> object:
    """Refuse a tensor that as a dense copy would be larger than its storage, or that reaches beyond it."""
    numbers = (offset, *shape, *strides)
    if len(numbers) > _MOST_NUMBERS or any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise Refused("its pickle has a tensor of a shape that torch.save does not write")
    items = math.prod(shape)
    if items > storage.items:
        size = storage.item_bytes
        raise Refused(f"a tensor expands to {items * size:,} bytes, of which the file holds {storage.items * size:,}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if items and last >= storage.items:
        raise Refused(f"a tensor reaches beyond its {storage.items:,} items")
    return _TENSOR


def _check_values(content: object, most: int) -> None:
    """Refuse content that is nested too deep or in a cycle, or has more than `most` values with references expanded."""
    waiting: list[tuple[object, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        inside: list[object] = []
        if isinstance(value, dict):
            inside = [*value.values(), *([value.metadata] if isinstance(value, _OrderedDict) else [])]
        elif isinstance(value, (list, tuple)):
            inside = [*value]
        elif isinstance(value, _Name) and value.path not in _DTYPE_BYTES:
            raise ForeignObject(value.path[:120])
        elif isinstance(value, _Storage):
            raise Refused("its pickle has a storage where tensors and plain values belong")
        most -= len(inside)
        if most < 0 or (inside and depth == _DEEPEST):
            raise Refused(f"its pickle has too many values, or is nested deeper than {_DEEPEST}")
        waiting += [(item, depth + 1) for item in inside]
