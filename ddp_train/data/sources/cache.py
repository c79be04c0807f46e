"""Decoded images on disk, so that only the first start decodes: memory-mapped .npy files, keyed by content.

An entry is a folder `<key>/` of arrays and `entry.json`. It is written under another name beside its final
place, synced, and renamed, so it is complete or absent. A damaged or foreign entry is deleted and rebuilt.
Every process of a node maps the same pages.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddp_core.cache_folder import cache_folder
from ddp_core.errors import UserError
from ddp_core.files import flush, replacing

SCHEMA = "ddp-train-cache/1"
_CHECKED_BYTES = 2 << 30  # larger arrays are checked by size alone: reading them would take longer than a start should
_DAY = 86_400  # seconds
_TORN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Entry:
    """Arrays by name, and facts about them (what JSON can hold)."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def key(kind: str, parts: Iterable[object]) -> str:
    """The name of the entry for these parts: a change in any of them gives another key."""
    text = "\0".join(repr(part) for part in (SCHEMA, kind, *parts))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def roots(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The folders that are searched for entries and written to, best first; the last is for temporary files."""
    shared = Path(tempfile.gettempdir()) / f"ddp_train-{os.getuid()}"
    chosen = environ.get("DDP_TRAIN_CACHE")
    first = Path(chosen).expanduser() if chosen else cache_folder("ddp_train", environ)
    return (shared,) if first is None else (first, shared)


def trusted_roots() -> tuple[Path, ...]:
    """The folders of roots() that only this user can have written to."""
    return tuple(root for root in roots() if _is_ours(root))


def write(name: str, fill: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside the entries atomically, in the first folder that accepts it."""
    for root in trusted_roots():
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(root / name) as file:
                fill(file)
            return
        except (OSError, UserError):
            continue


def find(key: str, *, verify: bool = False) -> Entry | None:
    """The entry, memory-mapped copy-on-write, or None. verify: also compare checksums. A torn entry is removed."""
    for root in trusted_roots():
        folder = root / key
        try:
            return _open(folder, key, verify)
        except FileNotFoundError:
            if not folder.exists():
                continue
            reason = "incomplete"
        except _TORN as error:
            reason = str(error)
        _log.warning("the decoded copy in %s is unusable (%s) and is made again", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _open(folder: Path, key: str, verify: bool) -> Entry:
    """Open an entry. Errors: one of _TORN where the folder is no complete entry of this key."""
    record = json.loads((folder / "entry.json").read_text())
    if record["schema"] != SCHEMA or record["key"] != key:
        raise ValueError("another key or schema")
    arrays = {}
    for name, wanted in record["arrays"].items():
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{name!r} is no name of an array")
        array = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        if list(array.shape) != wanted["shape"] or str(array.dtype) != wanted["dtype"]:
            raise ValueError(f"{name} has another shape or type")
        if verify and array.nbytes <= _CHECKED_BYTES and zlib.crc32(array.data) != wanted["crc32"]:
            raise ValueError(f"{name} has another checksum")
        arrays[name] = array
    return Entry(arrays, record["facts"])


def discard(key: str) -> None:
    """Remove an entry."""
    for root in trusted_roots():
        shutil.rmtree(root / key, ignore_errors=True)


def begin(key: str, size: int) -> Draft:
    """Start an entry of about `size` bytes, in the first folder with room for it, else in memory."""
    refusals = []
    for root in roots():
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(root):
                raise PermissionError(0, "belongs to another user")
            free = shutil.disk_usage(root).free
            if free < size * 1.05:
                raise OSError(0, f"{size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
            _sweep(root)
            _reserve(root, size)
            return Draft(key, Path(tempfile.mkdtemp(_of_this_host(), f".draft-{key}-", root)))
        except OSError as error:
            refusals.append(f"{root} ({error.strerror or error})")
            if root != roots()[-1]:
                _log.warning("cannot cache decoded images in %s; set DDP_TRAIN_CACHE to a writable folder", refusals[0])
    _log.warning("cannot cache decoded images in %s either; they are kept in memory for this run", refusals[-1])
    return Draft(key, None)


def _is_ours(root: Path) -> bool:
    """Whether to trust a folder: one in the shared folder for temporary files must be this user's own."""
    try:
        facts = root.lstat()
    except OSError:
        return True  # nothing there to distrust
    if root != roots()[-1]:
        return True
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def _reserve(root: Path, size: int) -> None:
    """Allocate `size` bytes for a moment. Errors: OSError also where a quota or a limit leaves no room for them."""
    if size:
        with tempfile.TemporaryFile(dir=root) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _of_this_host() -> str:
    """The end of the names of this host's drafts."""
    return f"@{socket.gethostname()}"


def _sweep(root: Path) -> None:
    """Remove the drafts of processes that died: their locks are free. On some network disks (BeeGFS by default) a host
    does not see the locks of others, so drafts of other hosts must also be a day old."""
    for lock in root.glob(".draft-*/lock"):
        with contextlib.suppress(OSError), lock.open("r+") as handle:  # over NFS a lock needs it writable: flock(2)
            age = time.time() - lock.stat().st_mtime  # noqa: TID251
            if age > _DAY or lock.parent.name.endswith(_of_this_host()):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


class Draft:
    """An entry in the making. Use as a context manager: without commit() nothing remains."""

    def __init__(self, key: str, folder: Path | None) -> None:
        self.key = key
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        if folder is not None:
            self._lock = (folder / "lock").open("w")
            with contextlib.suppress(OSError):  # without locks (Lustre, NFS) no draft is swept either
                fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.folder is not None:
            self._lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array to fill, in memory that forked processes share. Errors: UserError where the disk is full."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self.folder is None:
            array: np.ndarray = np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, int(np.prod(shape))).reshape(shape)
        else:
            path = self.folder / f"{name}.npy"
            try:
                array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                with path.open("r+b") as handle:  # a full disk is an error here; at a write to the map it is a SIGBUS
                    os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
            except OSError as error:
                remedy = "set DDP_TRAIN_CACHE to a folder with more room"
                where = f"{self.folder.parent}: no room for the decoded images"
                raise UserError(f"{where} ({error.strerror or error}); {remedy}") from error
        self._arrays[name] = array
        return array

    def put(self, name: str, array: np.ndarray) -> None:
        """Add a finished array."""
        self.create(name, array.shape, array.dtype)[...] = array

    def commit(self, facts: Mapping[str, Any], key: str | None = None) -> Entry:
        """Make the entry durable and visible, and open it. Another process's finished entry of the key is kept.

        key: the entry's key, if it became known only now.
        """
        self.key = key or self.key
        if self.folder is None:
            return Entry(dict(self._arrays), facts)
        described = {}
        for name, array in self._arrays.items():
            assert isinstance(array, np.memmap)
            array.flush()
            flush(self.folder / f"{name}.npy")
            described[name] = {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": zlib.crc32(array.data)}
        record = {"schema": SCHEMA, "key": self.key, "arrays": described, "facts": dict(facts)}
        (self.folder / "entry.json").write_text(json.dumps(record))
        flush(self.folder / "entry.json")
        (self.folder / "lock").unlink()
        flush(self.folder)
        final = self.folder.parent / self.key
        with contextlib.suppress(OSError):  # not empty: another process finished the same entry first
            self.folder.rename(final)
            flush(final.parent)
        try:
            return _open(final, self.key, verify=False)
        except _TORN as error:  # the other process's entry; our arrays stay mapped without their files' names
            _log.warning("%s is unusable (%s); delete it", final, error)
            return Entry({name: np.asarray(array) for name, array in self._arrays.items()}, facts)
