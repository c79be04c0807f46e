"""Checkpoints that are whole or absent, that notice a single flipped bit, and that are safe to load.

The format is torch.save's own zip file, so that `torch.load(path, weights_only=True)` reads it
anywhere. The trainer adds a zip comment at its very end, the seal:

    ddp-train sha256=<64 hexadecimal digits>

the SHA-256 of every byte before the seal. torch.load and the zip format alone do not notice a
changed weight. A checkpoint's object is {"schema": "ddp-train-checkpoint/1", "step": N, "state": {...}};
`best_model.pth` is a plain state_dict under the same seal.

A file is read in these steps: seal, hash, inspection (inspection.py: only tensors and plain values, none larger
than the file), torch's restricted unpickler, and a check that the numbers are finite. The hash protects against
damage, the inspection against malice: anyone can compute a hash.

A folder keeps two good generations, `checkpoint-latest.pt` and `checkpoint-previous.pt`. The newer one is the
one with the higher step inside; file times do not count, since a clock or a copy can change them.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import torch

from ddp_core.errors import UserError
from ddp_core.files import replacing
from ddp_train.checkpoint import integrity
from ddp_train.checkpoint.inspection import ForeignObject, Refused, inspect
from ddp_train.checkpoint.values import checked_copy, dense, not_finite
from ddp_train.config.validation import LATEST, PREVIOUS

SCHEMA = "ddp-train-checkpoint/1"

WEIGHTS = ("model", "optimizer", "techniques")
"""The parts of a state in which every tensor must be finite; otherwise the run is lost."""


class NotFinite(UserError):
    """A weight is NaN or infinite: all results from then on would be meaningless."""


class Newest(NamedTuple):
    """The newest good checkpoint of a folder. `notes`: a line for each file passed over, with the reason."""

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
    """Replace the file `path` by `state` (nested dicts, lists and tuples of tensors and plain values), atomically.

    `step`: finished optimizer steps, by which `newest` chooses. `keep`: a name in the same folder for the old
    file. The old file stays as it is until the new one is complete and on the disk. Raises, with nothing
    written, UserError when `path` cannot be written (with the bytes needed and free when the disk is full),
    NotFinite, and TypeError for a value that `load` would refuse.
    """
    content = checked_copy(state, "state", dense)
    _require_finite(path, {name: content.get(name) for name in WEIGHTS}, "is not written")
    _write(path, {"schema": SCHEMA, "step": step, "state": content}, keep)


def load(path: str | os.PathLike[str]) -> dict[str, object]:
    """The state that `save` was given, tensors in host memory.

    Raises UserError, one line naming the file, when it is missing, truncated, damaged, holds anything but
    tensors and plain values, or is not a checkpoint of this trainer; NotFinite for NaN or infinite weights.
    """
    with _verified(path, sealed=True) as (file, facts):
        _checkpoint_step(path, facts)
        state = _tensors(path, file)["state"]
    assert isinstance(state, dict)
    _require_finite(path, {name: state.get(name) for name in WEIGHTS}, "is refused")
    return state


def newest(folder: str | os.PathLike[str]) -> Newest:
    """The good checkpoint of `folder` with the highest step.

    Raises UserError where there is none, with the reason for each file that is there.
    """
    found: list[tuple[int, Path]] = []
    refused: list[str] = []
    for path in (Path(folder) / LATEST, Path(folder) / PREVIOUS):
        if path.exists():
            try:
                found.append((_step(path), path))
            except UserError as error:
                refused.append(str(error))
    # Of two with the same step, checkpoint-latest.pt comes first: the sort is stable.
    for step, path in sorted(found, key=lambda candidate: candidate[0], reverse=True):
        try:
            state = load(path)
        except UserError as error:
            refused.append(str(error))
        else:
            return Newest(path, state, tuple(f"{text}; {path.name} of step {step} is used" for text in refused))
    reason = "; ".join(refused) or f"neither {LATEST} nor {PREVIOUS} is there"
    raise UserError(f"{folder} has no checkpoint to continue from: {reason}")


def step_of(path: str | os.PathLike[str]) -> int | None:
    """The step of a whole checkpoint; None where it is missing or would be refused."""
    try:
        return _step(path)
    except UserError:
        return None


def save_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, object]) -> None:
    """Write a plain state_dict to `path`, atomically and with a seal, as `save` does."""
    content = checked_copy(state_dict, "state_dict", dense)
    _require_finite(path, content, "is not written")
    _write(path, content)


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, object]:
    """A state_dict written by `save_state_dict`, or by plain torch.save (which has no seal to verify).

    Raises UserError as `load` does.
    """
    with _verified(path, sealed=False) as (file, facts):
        content = _tensors(path, file)
    if not (isinstance(facts, dict) and facts.get("schema") == SCHEMA):  # `load` checks a whole checkpoint
        _require_finite(path, content, "is refused")
    return content


def _write(path: str | os.PathLike[str], content: object, keep: str | os.PathLike[str] | None = None) -> None:
    """Write a file atomically, with its digest at the end. Errors: UserError."""
    with replacing(path, size=lambda: _serialized_bytes(content), keep=keep) as file:
        sink = _Sink(file.write)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]  # torch.save calls only write and flush
        except RuntimeError:
            # torch's writer can hide the disk's own error behind one about positions in the zip file.
            if sink.error is not None:
                raise sink.error from None
            raise
        file.flush()
        integrity.append(file)


class _Sink:
    """The write-only file that torch.save asks for; counts the bytes and remembers the first error."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Pass the bytes on and count them; keep the first error."""
        try:
            self._write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: no bytes are buffered here."""


def _serialized_bytes(content: object) -> int:
    """The size of the file that would be written."""
    sink = _Sink(len)
    torch.save(content, sink)  # type: ignore[arg-type]
    return sink.count + integrity.BYTES


def _require_finite(path: str | os.PathLike[str], state: object, verdict: str) -> None:
    """Errors: NotFinite for a value that is not finite."""
    if (bad := not_finite(state)) is not None:
        raise NotFinite(f"{path} {verdict}: {bad}")


@contextmanager
def _verified(path: str | os.PathLike[str], *, sealed: bool) -> Iterator[tuple[IO[bytes], object]]:
    """The open file and the facts of its content, once its seal (required when `sealed`) and content are checked.

    The file stays open from hash to tensors, so that what is loaded is what was verified. Raises UserError.
    """
    try:
        with Path(path).open("rb") as file:
            before = os.fstat(file.fileno())
            digest = integrity.verify(path, file, required=sealed)
            try:
                facts = inspect(file, comment=0 if digest is None else integrity.BYTES)
            except Refused as error:
                made = (
                    "" if digest is None else f"; its SHA-256 is {digest} as expected: it was written with this content"
                )
                foreign = "holds pickled Python objects, which can run code: refused" * isinstance(error, ForeignObject)
                raise UserError(f"{path} {foreign or 'is refused'}: {error}{made}") from None
            yield file, facts
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise UserError(f"{path} was changed while it was read")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _tensors(path: str | os.PathLike[str], file: IO[bytes]) -> dict[str, object]:
    """The content of an inspected file. Errors: UserError."""
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251  # after inspect
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds pickled Python objects, which can run code: refused") from error
    except (RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read: {line}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _step(path: str | os.PathLike[str]) -> int:
    """The step of a whole checkpoint, without its tensors. Raises UserError as `load` does."""
    with _verified(path, sealed=True) as (_, facts):
        return _checkpoint_step(path, facts)


def _checkpoint_step(path: str | os.PathLike[str], facts: object) -> int:
    """The step in a checkpoint's facts. Raises UserError where the content is not that of a checkpoint."""
    state = facts.get("state") if isinstance(facts, dict) and facts.get("schema") == SCHEMA else None
    if not isinstance(facts, dict) or not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of this trainer: its schema is not {SCHEMA}")
    progress = state.get("progress")  # an earlier version of the trainer wrote the step only here
    earlier = progress.get("step") if isinstance(progress, dict) else 0
    step = facts.get("step", earlier)
    return step if isinstance(step, int) else 0
