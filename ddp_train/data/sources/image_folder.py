"""Image folders decoded once into the cache, every file checked against the manifest of the last time.

scan -> compare -> key -> the cached copy; where there is none: size -> decode -> statistics -> cache. Sets whose
decoded images would fill the memory stay files, which the loader pipeline decodes as it goes.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_core.host_memory import available_memory
from ddp_train.data.sources import cache
from ddp_train.data.sources.decode import decode_files, probe_size
from ddp_train.data.sources.listing import FolderSplit, Listed, scan
from ddp_train.data.sources.manifest import Manifest, Seen
from ddp_train.data.sources.samples import BadSample, Dataset, Policy, Split, channel_statistics, largest_number, refuse

MIXED_SIZE = 224  # pixels; what most image classifiers were made for
_MEMORY_FRACTION = 0.5
_SAMPLE = 4096  # images of which the statistics are taken where not all are decoded
CHANGED_MEANWHILE = "has changed while it was read"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel."""


def load_image_folder(
    name: str,
    data_dir: Path,
    *,
    image_size: int | None = None,
    verify: bool = False,
    limit: int | None = None,
    on_bad: Policy = "stop",
    accept_changes: bool = False,
    left_out: Iterable[BadSample] = (),
    listed: Listed | None = None,
) -> Dataset:
    """The dataset in an image folder, from the cached copy where there is one.

    image_size: side in pixels to scale and crop to (None: the images' own size where all are alike, else 224).
    verify: compare the cached copy's checksum. limit: bytes of decoded images above which they stay files
    (None: half of the memory that is available). left_out: what other nodes found bad. listed: what listing.scan()
    has found there already. Errors: UserError, see listing.scan(), and for more bad files than `on_bad` tolerates, the
    first of which is named.
    """
    checked = _Checked.of(data_dir, listed or scan(data_dir), on_bad, accept_changes, left_out)
    limit = limit if limit is not None else int(available_memory() * _MEMORY_FRACTION)
    key = checked.key(image_size)
    entry = cache.find(key, verify=verify)
    if entry is not None and verify and not entry.arrays and entry.facts["bytes"] <= limit:
        cache.discard(key)  # made when there was less memory
        entry = None
    if entry is None:
        entry = checked.build(image_size, limit)
        key = checked.key(image_size)
    if checked.is_new:
        checked.manifest.write(checked.seen)
    facts, splits = entry.facts, []
    for part, kept in zip(("train", "test"), checked.kept(), strict=True):
        decoded = entry.arrays.get(part)
        files = (kept.files, kept.stamps) if decoded is None else (None, None)
        splits.append(Split(kept.labels, decoded, *files))
    height, width = facts["size"]
    return Dataset(
        name,
        checked.splits[0].classes,
        splits[0],
        splits[1],
        tuple(facts["mean"]),
        tuple(facts["std"]),
        (3, int(height), int(width)),
        content=key,
        left_out=tuple(sorted(checked.bad)),
        notes=tuple(checked.notes),
        on_bad_sample=on_bad,
    )


@dataclass(eq=False)
class _Checked:
    """The files of a data folder, what is known of their content, and which of them are bad."""

    manifest: Manifest
    policy: Policy
    splits: Listed
    digests: dict[str, np.ndarray]
    """SHA-256 of the listed files by part, uint8 [N, 32]; zeros where it is not known."""
    bad: list[BadSample]
    seen: dict[str, Seen]
    notes: list[str]
    is_new: bool

    @classmethod
    def of(cls, data_dir: Path, splits: Listed, policy: Policy, accept: bool, others: Iterable[BadSample]) -> _Checked:
        """Compare the files with the manifest. others: what other nodes found bad. Errors: UserError."""
        manifest = Manifest.of(data_dir)
        checked = cls(manifest, policy, splits, {}, list(others), {}, [], False)
        for listed in splits:
            found = manifest.compare(listed, accept=accept)
            checked.digests[listed.part] = found.digests.copy()
            checked.bad += [sample for sample in found.bad if sample not in checked.bad]
            checked.seen[listed.part] = found.seen or manifest.splits[listed.part]
            checked.is_new |= found.seen is not None
            if found.replaced:
                what = f"{found.replaced:,} files are gone or have changed since they were last read"
                checked.notes.append(f"{listed.root}: {what}")
        checked.judge()
        return checked

    def judge(self) -> None:
        """Errors: UserError where too many are bad."""
        refuse(self.bad, self.policy, {listed.part: len(listed.names) for listed in self.splits})

    def kept(self) -> Listed:
        """The splits without what is bad."""
        train, test = (listed.without(self._bad_names(listed)) for listed in self.splits)
        return train, test

    def _bad_names(self, listed: FolderSplit) -> Collection[str]:
        start = len(f"{listed.root}/")
        return {sample.file[start:] for sample in self.bad if sample.part == listed.part}

    def key(self, image_size: int | None) -> str:
        """The cache key: by the content of each file, or by its stamp where it was never read."""
        parts: list[object] = [image_size]
        for listed in self.splits:
            left_out = self._bad_names(listed)
            kept = np.array([name not in left_out for name in listed.names], dtype=bool)
            digests, stamps = self.digests[listed.part][kept], listed.stamps[kept]
            names = "\0".join(name for name in listed.names if name not in left_out)
            unread = stamps[~digests.any(axis=1)]
            parts += [listed.part, listed.classes, names, digests.tobytes(), unread.tobytes()]
        return cache.key("image-folder", parts)

    def build(self, image_size: int | None, limit: int) -> cache.Entry:
        """A new entry: the decoded images or, above `limit` bytes, only facts about them. Errors: UserError."""
        while True:
            train, test = self.kept()
            size = (image_size or MIXED_SIZE,) * 2
            if image_size is None:
                size = probe_size((*train.files, *test.files)) or size
            total = (len(train.names) + len(test.names)) * size[0] * size[1] * 3
            facts = {"size": size, "bytes": total}
            before = len(self.bad)
            with cache.begin("image-folder", total if total <= limit else 0) as draft:
                # Without a cache each rank would keep a copy of its own.
                if total > limit or (draft.folder is None and total > limit // 8):
                    mean, std = self._sampled(train, size, total)
                else:
                    mean, std = self._decoded(draft, (train, test), size, total)
                if len(self.bad) == before:
                    return draft.commit({**facts, "mean": mean, "std": std}, self.key(image_size))

    def _decoded(self, draft: cache.Draft, splits: Listed, size: tuple[int, int], total: int) -> Statistics:
        where = draft.folder.parent if draft.folder else "memory"
        _say(f"decoding {sum(len(s.names) for s in splits):,} images, this once, into {where} ({total / 1e6:.0f} MB)")
        train, test = (
            draft.create(part, (len(listed.names), *size, 3), np.uint8)
            for part, listed in zip(("train", "test"), splits, strict=True)
        )
        for listed, out in zip(splits, (train, test), strict=True):
            self._read(listed, out, f"{listed.part}/")
        return channel_statistics(train)

    def _sampled(self, train: FolderSplit, size: tuple[int, int], total: int) -> Statistics:
        """Mean and standard deviation per channel of some of the images, evenly spread."""
        _say(f"{train.root.parent}: {total / 1e9:.1f} GB when decoded, too large to keep; images are read from files")
        rows = range(0, len(train.names), -(-len(train.names) // _SAMPLE))
        sample = train.without(set(train.names) - {train.names[row] for row in rows})
        with cache.Draft("sample", None) as scratch:
            images = scratch.create("sample", (len(sample.names), *size, 3), np.uint8)
            self._read(sample, images, "sample")
            return channel_statistics(images)

    def _read(self, listed: FolderSplit, out: np.ndarray, name: str) -> None:
        """Decode files; what they hold and which are bad goes into this object. Errors: UserError."""

        def progress(done: int) -> None:
            if sys.stderr.isatty():
                end = "\n" if done >= len(listed.names) else ""
                print(f"\r  {name} {100 * done // len(listed.names)}%", end=end, file=sys.stderr, flush=True)

        digests = np.frombuffer(mmap.mmap(-1, 32 * len(listed.names)), np.uint8).reshape(-1, 32)
        tolerated = largest_number(self.policy, len(listed.names))
        refused = decode_files(listed.files, out, digests=digests, tolerated=tolerated, progress=progress)
        whole = next(split for split in self.splits if split.part == listed.part)
        index = {name: row for row, name in enumerate(whole.names)}
        known = self.digests[listed.part]
        reasons = {listed.names[row]: why for row, why in refused.items()}
        found: dict[str, bytes] = {}
        for row in np.flatnonzero(digests.any(axis=1)):
            name, before = listed.names[row], known[index[listed.names[row]]]
            if before.any() and not np.array_equal(before, digests[row]):
                reasons[name] = CHANGED_MEANWHILE
            before[:] = digests[row]
            found[name] = digests[row].tobytes()
        self.bad += [BadSample(listed.part, index[name], f"{listed.root}/{name}", why) for name, why in reasons.items()]
        self.judge()
        undecodable = {listed.names[row]: why for row, why in refused.items()}
        self.seen[listed.part] = self.seen[listed.part].after_reading(found, undecodable)
        self.is_new = True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
