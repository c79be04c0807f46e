"""The contents of an image folder when it was last read: size, mtime, inode and SHA-256 of each file.

A file with the same size, mtime and inode as in the manifest is unchanged; only others are hashed again. So a start
takes one stat per file, and a file that vanished or changed is named before the first step.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddp_train.data.sources import cache
from ddp_train.data.sources.listing import FolderSplit
from ddp_train.data.sources.samples import BadSample

SCHEMA = "ddp-train-manifest/1"
_UNKNOWN = bytes(32)
_HINT = "(if this is expected: --changed-data accept)"


@dataclass(frozen=True, eq=False)
class Seen:
    """A split as it was read. digests: uint8 [N, 32], zeros where a file was not read; undecodable: why, by name."""

    names: tuple[str, ...]
    stamps: np.ndarray
    digests: np.ndarray
    undecodable: Mapping[str, str] = field(default_factory=dict)

    def after_reading(self, digests: Mapping[str, bytes], undecodable: Mapping[str, str]) -> Seen:
        """The same, with the results of reading these files."""
        found = self.digests.copy()
        for row, name in enumerate(self.names):
            if name in digests:
                found[row] = np.frombuffer(digests[name], np.uint8)
        return Seen(self.names, self.stamps, found, {**self.undecodable, **undecodable})


@dataclass(frozen=True, eq=False)
class Compared:
    """A listed split, compared with what was seen before. digests: as in Seen, for the listed files."""

    digests: np.ndarray
    bad: tuple[BadSample, ...] = ()
    replaced: int = 0
    """Number of files that vanished or changed, where that is accepted."""
    seen: Seen | None = None
    """The new manifest; None where nothing is new."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of one data folder."""

    folder: Path
    rules: str
    """Version of the decoder: a list of undecodable files by another version is ignored."""
    splits: Mapping[str, Seen]
    when: float = 0.0
    """Seconds since 1970."""

    @classmethod
    def of(cls, folder: Path, rules: str) -> Manifest:
        """The manifest of a data folder; empty where there is none, or it cannot be read."""
        for root in cache.trusted_roots():
            try:
                with np.load(root / _file_name(folder), allow_pickle=False) as stored:
                    record = json.loads(bytes(stored["record"]))
                    if record["schema"] != SCHEMA or record["folder"] != str(folder.resolve()):
                        continue
                    same = record.get("rules") == rules
                    parts = {p: _read(stored, p, why if same else {}) for p, why in record["parts"].items()}
                    return cls(folder, rules, parts, record["when"])
            except Exception:  # noqa: S112  # damaged in whatever way: the files are read again
                continue
        return cls(folder, rules, {})

    def write(self, splits: Mapping[str, Seen]) -> None:
        """Replace the file atomically; does nothing where no folder is writable."""
        parts = {part: dict(seen.undecodable) for part, seen in splits.items()}
        record = {
            "schema": SCHEMA,
            "folder": str(self.folder.resolve()),
            "rules": self.rules,
            "when": time.time(),  # noqa: TID251
            "parts": parts,
        }
        arrays: dict[str, Any] = {"record": np.frombuffer(json.dumps(record).encode(), np.uint8)}
        for part, seen in splits.items():
            arrays[f"{part}-names"] = np.frombuffer("\0".join(seen.names).encode(errors="surrogateescape"), np.uint8)
            arrays |= {f"{part}-stamps": seen.stamps, f"{part}-digests": seen.digests}
        cache.write(_file_name(self.folder), lambda file: np.savez(file, **arrays))

    def compare(self, listed: FolderSplit, *, accept: bool) -> Compared:
        """Compare the listed files with those seen before. accept: vanished and changed files are accepted.

        They are also accepted where most files are gone or changed: then these are other data.
        """
        nothing = Seen((), np.zeros((0, 3), np.int64), np.zeros((0, 32), np.uint8))
        seen = self.splits.get(listed.part, nothing)
        if listed.names == seen.names and np.array_equal(listed.stamps, seen.stamps):
            return Compared(seen.digests, tuple(_unusable(listed, seen.undecodable)))
        rows = {name: row for row, name in enumerate(seen.names)}
        digests = np.zeros((len(listed.names), 32), np.uint8)
        changed: dict[str, str] = {}
        for index, (name, stamp) in enumerate(zip(listed.names, listed.stamps, strict=True)):
            if (row := rows.get(name)) is None or name in listed.unreadable:
                continue
            why = _difference(stamp, seen.stamps[row], seen.digests[row], f"{listed.root}/{name}")
            if why is None:
                digests[index] = seen.digests[row]
            else:
                changed[name] = why
        present = set(listed.names)
        vanished = [name for name in seen.names if name not in present]
        differing = len(changed) + len(vanished)
        if accept or 2 * differing > len(seen.names):
            now = Seen(listed.names, listed.stamps, digests)
            return Compared(digests, tuple(_unusable(listed, {})), differing, now)
        same = {name: why for name, why in seen.undecodable.items() if name in present and name not in changed}
        bad = _unusable(listed, same | changed)
        if vanished:
            order = sorted({*listed.names, *vanished}, key=_order)
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.when))
            why = f"has vanished: it was there on {when} {_HINT}"
            bad += [BadSample(listed.part, order.index(name), f"{listed.root}/{name}", why) for name in vanished]
        now = Seen(listed.names, listed.stamps, digests, same)
        return Compared(digests, tuple(bad), 0, _merged(now, seen, {*changed, *vanished}) if differing else now)


def _merged(now: Seen, before: Seen, kept: set[str]) -> Seen:
    """`now`, with the files in `kept` as they were before, so that an error found now is found again next time."""
    merged = {name: (now.stamps[i], now.digests[i]) for i, name in enumerate(now.names)}
    merged |= {name: (before.stamps[i], before.digests[i]) for i, name in enumerate(before.names) if name in kept}
    names = tuple(sorted(merged, key=_order))
    stamps, digests = (np.stack([merged[name][column] for name in names]) for column in (0, 1))
    return Seen(names, stamps, digests, now.undecodable)


def _difference(stamp: np.ndarray, before: np.ndarray, digest: np.ndarray, path: str) -> str | None:
    """How a file differs from the last reading, as text; None where its content is the same.

    Files that were never read (those of the loader pipeline) are compared by size only.
    """
    if np.array_equal(stamp, before):
        return None
    if stamp[0] != before[0]:
        return f"has changed: {before[0]:,} bytes when it was last read, {stamp[0]:,} now {_HINT}"
    expected = digest.tobytes()
    if expected == _UNKNOWN:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path for each of many files is slow)
            found = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found == expected:
        return None
    return f"has changed: SHA-256 {expected.hex()[:16]}... when it was last read, {found.hex()[:16]}... now {_HINT}"


def _unusable(listed: FolderSplit, reasons: Mapping[str, str]) -> list[BadSample]:
    """The listed files that cannot be decoded."""
    empty = {listed.names[index]: "is empty" for index in np.flatnonzero(listed.stamps[:, 0] == 0)}
    found = empty | dict(listed.unreadable) | dict(reasons)
    named = [(index, name) for index, name in enumerate(listed.names) if name in found] if found else []
    return [BadSample(listed.part, index, f"{listed.root}/{name}", found[name]) for index, name in named]


def _order(name: str) -> tuple[str, str]:
    """Listings are sorted by class, then by name."""
    return name.partition("/")[0], name


def _read(stored: Mapping[str, np.ndarray], part: str, undecodable: Mapping[str, str]) -> Seen:
    """One split of a stored manifest. Errors: ValueError where its parts do not match."""
    text = bytes(stored[f"{part}-names"]).decode(errors="surrogateescape")
    names = tuple(text.split("\0")) if text else ()
    stamps, digests = stored[f"{part}-stamps"], stored[f"{part}-digests"]
    if stamps.shape != (len(names), 3) or digests.shape != (len(names), 32):
        raise ValueError("names, stamps and digests do not fit together")
    return Seen(names, stamps, digests, undecodable)


def _file_name(folder: Path) -> str:
    """The manifest's name for a folder of images."""
    where = str(folder.resolve()).encode(errors="surrogateescape")
    return f"manifest-{hashlib.sha256(where).hexdigest()[:32]}.npz"
