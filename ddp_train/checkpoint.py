"""Checkpoints that are whole or absent, and that notice a single flipped bit.

The format is torch.save's own zip file, so that `torch.load(path, weights_only=True)` reads it
anywhere. What is added is the zip comment at its very end, the seal:

    ddp-train sha256=<64 hexadecimal digits>

the SHA-256 of every byte before the seal. torch.load and the zip format alone do not notice a
changed weight. A checkpoint's object is {"schema": "ddp-train-checkpoint/1", "step": N, "state": {...}};
`best_model.pth` is a plain state_dict under the same seal.

A folder keeps two good generations, `checkpoint-latest.pt` and `checkpoint-previous.pt`. Which is the
newer goes by the step inside, never by the time of a file, which a clock or a copy can change.

Reading goes: seal, then hash, then torch's restricted unpickler (tensors and plain values alone,
never code). The hash is against damage, the unpickler against malice: anybody can compute a hash.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import torch

from ddp_train.atomic import replacing
from ddp_train.options import UserError

__all__ = [
    "LATEST",
    "PREVIOUS",
    "SCHEMA",
    "Newest",
    "load",
    "load_state_dict",
    "newest",
    "require_loadable",
    "save",
    "save_state_dict",
    "step_of",
]

SCHEMA = "ddp-train-checkpoint/1"
LATEST = "checkpoint-latest.pt"
PREVIOUS = "checkpoint-previous.pt"

_SEAL = b"ddp-train sha256=%s"
_SEAL_BYTES = len(_SEAL % (b"0" * 64))
_SEAL_PATTERN = re.compile(rb"ddp-train sha256=([0-9a-f]{64})")
_PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}


class Newest(NamedTuple):
    """The newest good checkpoint of a folder. `notes`: a line for each that was passed over, with its reason."""

    path: Path
    state: dict[str, object]
    notes: tuple[str, ...]


def save(
    path: str | os.PathLike[str],
    state: Mapping[str, object],
    *,
    step: int = 0,
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write `state` (nested dicts, lists and tuples of tensors and plain values) in the place of `path`.

    `step`: finished optimizer steps, by which `newest` chooses. `keep`: the name beside it under which
    the old file stays. The old file stays as it is until the new one is complete and on the disk. Raises
    UserError when it cannot be written (with the bytes needed and free when the disk is full), and
    TypeError, with nothing written, for a value that `load` would refuse.
    """
    require_loadable(state, "state")
    _write(path, {"schema": SCHEMA, "step": step, "state": dict(state)}, keep)


def load(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, object]:
    """The state that `save` was given, tensors on `map_location`.

    Raises UserError, one line naming the file, when it is missing, truncated, damaged, holds
    pickled objects, or is not a checkpoint of this trainer.
    """
    return _load(path, map_location)[0]


def newest(folder: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Newest:
    """The good checkpoint of `folder` with the highest step.

    Raises UserError where there is none, naming what is wrong with each that is there.
    """
    found: list[tuple[int, Path, dict[str, object]]] = []
    refused: list[str] = []
    for path in (Path(folder) / LATEST, Path(folder) / PREVIOUS):
        if not path.exists():
            continue
        try:
            state, step = _load(path, map_location)
        except UserError as error:
            refused.append(str(error))
        else:
            found.append((step, path, state))
    if not found:
        reason = "; ".join(refused) or f"neither {LATEST} nor {PREVIOUS} is there"
        raise UserError(f"{folder} has no checkpoint to continue from: {reason}")
    step, path, state = max(found, key=lambda candidate: candidate[0])  # the latest of two with the same step
    return Newest(path, state, tuple(f"{text}; {path.name} of step {step} is used" for text in refused))


def step_of(path: str | os.PathLike[str]) -> int | None:
    """The step of a good checkpoint; None where it is missing or would be refused."""
    try:
        return _load(path, "cpu")[1]
    except UserError:
        return None


def _load(path: str | os.PathLike[str], map_location: str | torch.device) -> tuple[dict[str, object], int]:
    content = _read(path, map_location, sealed=True)
    state, step = content.get("state"), content.get("step")
    if content.get("schema") != SCHEMA or not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of this trainer: its schema is not {SCHEMA}")
    if step is None:  # of a version that wrote it nowhere else
        progress = state.get("progress")
        step = progress.get("step") if isinstance(progress, dict) else 0
    return state, step if isinstance(step, int) else 0


def save_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, object]) -> None:
    """Write a plain state_dict in the place of `path`, as whole and sealed as `save` does."""
    require_loadable(state_dict, "state_dict")
    _write(path, state_dict)


def load_state_dict(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, object]:
    """A state_dict of `save_state_dict`, or of anybody's torch.save (which has no seal to verify).

    Raises UserError as `load` does.
    """
    return _read(path, map_location, sealed=False)


def _write(path: str | os.PathLike[str], content: object, keep: str | os.PathLike[str] | None = None) -> None:
    with replacing(path, size=lambda: _serialized_bytes(content), keep=keep) as file:
        sink = _Sink(file.write)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]  # it asks for write and flush alone
        except RuntimeError:
            # torch's writer can hide the disk's own error behind one about positions in the zip file.
            if sink.error is not None:
                raise sink.error from None
            raise
        file.flush()
        _append_seal(file)


def _append_seal(file: BinaryIO) -> None:
    file.seek(-2, os.SEEK_END)  # the last field of a zip file without a comment: the comment's length
    if file.read(2) != b"\0\0":
        raise AssertionError("torch.save wrote a zip file that ends in a comment of its own")
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _SEAL_BYTES))
    digest = _sha256(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(_SEAL % digest.encode())


class _Sink:
    """The write-only file that torch.save asks for; counts the bytes and remembers the first error."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""


def _serialized_bytes(content: object) -> int:
    sink = _Sink(len)
    torch.save(content, sink)  # type: ignore[arg-type]
    return sink.count + _SEAL_BYTES


def require_loadable(value: object, where: str) -> None:
    """Refuse at saving what torch's restricted unpickler would refuse at loading, when it is too late."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        assert isinstance(value, dict)
        for key, item in value.items():
            require_loadable(key, f"a key of {where}")
            require_loadable(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        for index, item in enumerate(value):
            require_loadable(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}: not a tensor or plain value"
        )


def _read(path: str | os.PathLike[str], map_location: str | torch.device, *, sealed: bool) -> dict[str, object]:
    try:
        # One open file from hash to tensors: what is loaded is what was verified.
        with Path(path).open("rb") as file:
            _verify(path, file, sealed=sealed)
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds pickled Python objects, which can run code: refused") from error
    except (RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _verify(path: str | os.PathLike[str], file: IO[bytes], *, sealed: bool) -> None:
    """Raise UserError unless the file is a zip file whose seal (required when `sealed`) is right."""
    start = file.read(4)
    length = file.seek(0, os.SEEK_END)
    if not start:
        raise UserError(f"{path} is empty")
    if start != b"PK\x03\x04":
        raise UserError(f"{path} is not a checkpoint: it is not a file of torch.save")
    file.seek(max(0, length - _SEAL_BYTES))
    seal = _SEAL_PATTERN.fullmatch(file.read())
    if seal is None:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path} is truncated or damaged: its end is missing after {length:,} bytes")
        if sealed:
            raise UserError(f"{path} is not a checkpoint of this trainer, or its seal is damaged")
        return
    expected, actual = seal[1].decode(), _sha256(file, length - _SEAL_BYTES)
    if actual != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is {actual}, and {expected} was written")


def _sha256(file: IO[bytes], length: int) -> str:
    """SHA-256 of the first `length` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
