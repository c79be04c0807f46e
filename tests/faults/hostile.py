"""Files that pretend to be checkpoints: sealed rightly, as anybody could, with something else inside."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ddp_train.checkpoint import integrity

PADDING = bytes(8_000_000)
"""A tensor's worth of memory, beside which what an attack takes can be seen."""

Payload = Callable[[Path, Path], None]
"""Writes its first argument; where its code is run, the second comes to exist."""


def _archive(path: Path, records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    with path.open("r+b") as file:
        integrity.append(file)


def _records(program: bytes, storage: bytes = PADDING) -> dict[str, bytes]:
    return {"a/data.pkl": program, "a/byteorder": b"little", "a/data/0": storage, "a/version": b"3\n"}


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    data = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _called(function: str, *arguments: bytes) -> bytes:
    module, _, name = function.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _checkpoint(value: bytes, before: bytes = b"") -> bytes:
    """A pickle of {"schema": ..., "step": 10**6, "state": {"model": {"weight": value}}}."""
    inner = b"}" + _text("model") + b"}" + _text("weight") + value + b"ss"
    head = b"}" + _text("schema") + _text("ddp-train-checkpoint/1") + b"s" + _text("step") + b"J@B\x0f\0s"
    return b"\x80\x02" + before + head + _text("state") + inner + b"s."


def _storage(items: int, key: str = "0") -> bytes:
    kind = b"ctorch\nFloatStorage\n"
    return b"(" + _text("storage") + kind + _text(key) + _text("cpu") + _number(items) + b"tQ"


def _tensor(items: int, size: int, stride: int, offset: int = 0) -> bytes:
    shape, strides = b"(" + _number(size) + b"t", b"(" + _number(stride) + b"t"
    hooks = _called("collections.OrderedDict")
    return _called("torch._utils._rebuild_tensor_v2", _storage(items), _number(offset), shape, strides, b"\x89", hooks)


_ITEMS = len(PADDING) // 4
WHOLE = _tensor(_ITEMS, _ITEMS, 1)


def _program(make: Callable[[str], bytes]) -> Payload:
    return lambda path, mark: _archive(path, _records(make(str(mark))))


def _value(value: bytes) -> Payload:
    return _program(lambda _: _checkpoint(value))


def _bomb(mark: str) -> bytes:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.mkdir, (mark,)

    return pickle.dumps({"schema": "ddp-train-checkpoint/1", "step": 10**6, "state": {"model": Bomb()}}, protocol=2)


def _compressed(path: Path, _: Path) -> None:
    """300 MB of zeros in 300 kB."""
    _archive(path, _records(_checkpoint(_tensor(75_000_000, 75_000_000, 1)), bytes(300_000_000)), zipfile.ZIP_DEFLATED)


def _traversing(path: Path, mark: Path) -> None:
    _archive(path, {**_records(_checkpoint(WHOLE)), f"a/../../../../../..{mark}": b"planted"})


def _overlapping(path: Path, _: Path) -> None:
    """Ten storages of 8 MB in a file of 8 MB: the directory names the same bytes ten times."""
    keys = range(10)
    program = _checkpoint(b"]" + b"(" + b"".join(WHOLE.replace(_text("0"), _text(str(key)), 1) for key in keys) + b"e")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in _records(program).items():
            archive.writestr(name, data)
        for key in keys[1:]:
            again = zipfile.ZipInfo(f"a/data/{key}")
            first = archive.getinfo("a/data/0")
            again.header_offset, again.file_size, again.compress_size = first.header_offset, len(PADDING), len(PADDING)
            again.CRC = first.CRC
            archive.filelist.append(again)
    with path.open("r+b") as file:
        integrity.append(file)


def _two_directories(path: Path, mark: Path) -> None:
    """A whole zip file within another's front: readers that count from the start see the one, others the other."""
    inner = path.with_suffix(".inner")
    _archive(inner, _records(_bomb(str(mark))))
    _archive(path, _records(_checkpoint(WHOLE)))
    shifted = inner.read_bytes()[: -integrity.BYTES] + path.read_bytes()[: -integrity.BYTES]
    inner.unlink()
    path.write_bytes(shifted[:-2] + b"\0\0")
    with path.open("r+b") as file:
        integrity.append(file)


def _bare_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(_bomb(str(mark)))


def _tar(path: Path, mark: Path) -> None:
    """torch.save's format of before 2018."""
    import io
    import tarfile

    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = _bomb(str(mark))
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


def _repeated_text() -> bytes:
    """A kilobyte that is doubled twenty times."""
    call = b"c_codecs\nencode\n("
    return call * 21 + _text("ab" * 500) + _text("latin1") + b"tR" + (_text("hex") + b"tR") * 20


def _shared_tuples() -> bytes:
    """t = (t, t), fifty times: tiny in memory, without end for who walks through it."""
    return b"(t" + b"".join(b"q\x01h\x01\x86" for _ in range(50))


def _key_of_tuples() -> bytes:
    """The same tuple as the key of a dict: its hash would take 2 ** 50 steps."""
    return b"}" + _shared_tuples() + b"Ns"


def _keys_of_one_hash() -> bytes:
    """Numbers that all have the hash of 0: each new key is compared with all before it."""
    numbers = (i * (2**61 - 1) for i in range(70_000))
    return b"}(" + b"".join(b"\x8a\x0a" + number.to_bytes(10, "little") + b"N" for number in numbers) + b"u"


def _shared_versions() -> bytes:
    """Twenty thousand state_dicts, with the same hundred thousand versions of modules each."""
    versions = b"}q\x01(" + b"".join(b"J" + struct.pack("<I", i) + b"N" for i in range(100_000)) + b"u"
    first = b"ccollections\nOrderedDict\nq\x02)R}" + _text("_metadata") + b"q\x03" + versions + b"sb"
    return b"](" + first + b"h\x02)R}h\x03h\x01sb" * 20_000 + b"e"


def _attributes() -> bytes:
    hidden = b"}" + _text("items") + _text("not a method") + b"s"
    return _called("collections.OrderedDict") + hidden + b"b"


PAYLOADS: dict[str, Payload] = {
    "a function of the system": _program(_bomb),
    "a built-in function": _program(
        lambda mark: _checkpoint(_called("__builtin__.eval", _text(f"open({mark!r}, 'w')")))
    ),
    "a pickle within torch's own": _program(
        lambda mark: _checkpoint(_called("torch.storage._load_from_bytes", _text(mark)))
    ),
    "a script for the jit": lambda path, mark: _archive(
        path, {**_records(_checkpoint(WHOLE)), "a/constants.pkl": _bomb(str(mark)), "a/code/x.py": b"1 / 0"}
    ),
    "a bytearray of a terabyte": _value(_called("__builtin__.bytearray", _number(10**12))),
    "a text that codecs double": _value(_repeated_text()),
    "a tensor that repeats its memory": _value(_tensor(_ITEMS, 10**12, 0)),
    "a tensor beyond its memory": _value(_tensor(_ITEMS, 1000, 1, _ITEMS - 10)),
    "a storage larger than its record": _value(_tensor(10**11, 10**11, 1)),
    "a tensor without memory": _value(
        _called(
            "torch._utils._rebuild_meta_tensor_no_storage",
            b"ctorch\nfloat32\n",
            b"(" + _number(9) + b"t",
            b")",
            b"\x89",
        )
    ),
    "a tensor of a foreign class": _value(_called("torch._utils._rebuild_wrapper_subclass", b"ctorch\nTensor\n")),
    "a compressed record": _compressed,
    "records that overlap": _overlapping,
    "a record outside the archive": _traversing,
    "two archives in one": _two_directories,
    "a bare pickle": _bare_pickle,
    "the old tar format": _tar,
    "millions of empty lists": _value(b"](" + b"]" * 8_000_000 + b"e"),
    "a memo of gigabytes": _value(
        b"]r\xff\xff\xff\x7f" + b"](" + b"".join(b"]r" + struct.pack("<I", 2**31 + i) for i in range(1_000_000)) + b"e"
    ),
    "lists in lists in lists": _value(b"](" * 100_000 + b"e" * 100_000),
    "tuples that contain each other": _value(_shared_tuples()),
    "a key of tuples that contain each other": _value(_key_of_tuples()),
    "keys of one hash": _value(_keys_of_one_hash()),
    "versions that many share": _value(_shared_versions()),
    "a list that contains itself many times": _value(b"]q\x01(" + b"h\x01" * 200_000 + b"e"),
    "an object's attributes": _value(_attributes()),
    "a tensor's attributes": _value(WHOLE + b"}" + _text("shape") + b"(" + _number(9) + b"tsb"),
    "a list that contains itself": _value(b"]q\x01h\x01a"),
    "a long text": _value(_text("a" * 15_000_000 + "\N{PILE OF POO}")),
}
