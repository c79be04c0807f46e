"""Image folders: decoded once into the cache, every file compared with the manifest of the last reading.

scan -> compare -> key -> the cached copy; where there is none: size -> decode -> statistics -> cache. Datasets whose
decoded images would fill the memory stay files, which the loader pipeline decodes during training.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ddp_core.host_memory import available_memory
from ddp_train.data.sources import cache
from ddp_train.data.sources.decode import AS_STORED, decode_files, probe_size
from ddp_train.data.sources.listing import FolderSplit, Listed, lacks, scan
from ddp_train.data.sources.manifest import Manifest, Seen
from ddp_train.data.sources.pixels import RULES, Extent, Levels, Reading, levels_of
from ddp_train.data.sources.samples import (
    BadSample,
    Dataset,
    DatasetFacts,
    Policy,
    Split,
    channel_statistics,
    content_of,
    largest_number,
    refuse,
)

MIXED_SIZE = 224  # pixels; usual for image classifiers
_MEMORY_FRACTION = 0.5
_SAMPLE, _SAMPLE_BYTES = 4096, 1 << 30  # most images, and their bytes, for the statistics where not all are decoded
CHANGED_MEANWHILE = "has changed while it was read"


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
    reading: Reading = AS_STORED,
    trained: DatasetFacts | None = None,
    divided: bool = False,
) -> Dataset:
    """The dataset in an image folder, from the cached copy where there is one.

    image_size: side in pixels to scale and crop to (None: the images' own size where all are alike, else 224).
    verify: compare the cached copy's checksum. limit: bytes of decoded images above which they stay files
    (None: half of the available memory). left_out: samples that other nodes found bad. listed: the result of
    listing.scan(), if it is known already. reading: how files are read; its levels are determined here. trained: facts
    on the data of a model that is to be evaluated: the test images get its size, levels and labels, and there are no
    training images. divided: see listing.scan().

    Errors: UserError, see listing.scan(), and for more bad files than `on_bad` tolerates, the first of which is named.
    """
    listed = listed or scan(data_dir, to_evaluate=trained is not None, divided=divided)
    size = (image_size, image_size) if image_size is not None else None
    if trained is not None:
        size = trained.image_shape[1:]
        reading = replace(reading, levels=trained.levels, resize=trained.resize)
    checked = _Checked.of(data_dir, listed, on_bad, accept_changes, tuple(left_out), reading)
    limit = limit if limit is not None else int(available_memory() * _MEMORY_FRACTION)
    entry = _decoded(checked, size, limit, verify=verify)
    facts, kept = entry.facts, checked.kept()
    reading = replace(reading, levels={kind: (black, white) for kind, (black, white) in facts["levels"].items()})
    splits = {name: _split(split, entry.arrays.get(name), reading) for name, split in kept.items()}
    classes, (height, width) = next(iter(kept.values())).classes, facts["size"]
    if trained is not None and set(classes) <= set(trained.classes):
        places = np.array([trained.classes.index(name) for name in classes])
        splits["test"] = replace(splits["test"], labels=places[splits["test"].labels])
        if lacking := [name for name in trained.classes if name not in classes]:
            checked.notes.append(lacks(kept["test"].root, lacking))
        classes = trained.classes
    nothing = Split(np.zeros(0, np.int64), np.zeros((0, height, width, 3), np.uint8))
    return Dataset(
        name,
        classes,
        splits.get("train", nothing),
        splits.get("test"),
        tuple(facts["mean"]),
        tuple(facts["std"]),
        (3, int(height), int(width)),
        content=checked.content(),
        left_out=tuple(sorted(checked.bad)),
        notes=tuple(checked.notes),
        on_bad_sample=on_bad,
        val=splits.get("val"),
        levels=reading.levels,
        resize=reading.resize,
    )


def _decoded(checked: _Checked, size: tuple[int, int] | None, limit: int, *, verify: bool) -> cache.Entry:
    """The cached copy; decoded now where there is none, or where images left as files now fit in memory."""
    key = checked.key(size)
    entry = cache.find(key, verify=verify)
    if entry is not None and verify and not entry.arrays and entry.facts["bytes"] <= limit:
        cache.discard(key)  # made when there was less memory
        entry = None
    if entry is None:
        entry = checked.build(size, limit)
    if checked.is_new:
        checked.manifest.write(checked.seen)
    return entry


def _split(listed: FolderSplit, images: np.ndarray | None, reading: Reading) -> Split:
    """The split with its images, or with its files where these are read later."""
    if images is not None:
        return Split(listed.labels, images)
    return Split(listed.labels, None, listed.files, listed.stamps, reading)


@dataclass(eq=False)
class _Checked:
    """The files of a data folder, the known digests of their contents, and the bad files among them."""

    manifest: Manifest
    policy: Policy
    reading: Reading
    splits: dict[str, FolderSplit]
    digests: dict[str, np.ndarray]
    """SHA-256 of the listed files by part, uint8 [N, 32]; zeros where it is unknown."""
    bad: list[BadSample]
    seen: dict[str, Seen]
    notes: list[str]
    is_new: bool

    @classmethod
    def of(
        cls,
        data_dir: Path,
        found: Listed,
        policy: Policy,
        accept: bool,
        left_out: tuple[BadSample, ...],
        reading: Reading,
    ) -> _Checked:
        """Compare the files with the manifest. Errors: UserError."""
        manifest = Manifest.of(data_dir, f"{RULES} {PIL.__version__} {reading.max_pixels}")
        notes = list(found.notes)
        checked = cls(manifest, policy, reading, found.splits, {}, list(left_out), dict(manifest.splits), notes, False)
        for listed in found.splits.values():
            compared = manifest.compare(listed, accept=accept)
            checked.digests[listed.part] = compared.digests.copy()
            checked.bad += [sample for sample in compared.bad if sample not in checked.bad]
            checked.seen[listed.part] = compared.seen or manifest.splits[listed.part]
            checked.is_new |= compared.seen is not None
            if compared.replaced:
                checked.notes.append(
                    f"{listed.root}: {compared.replaced:,} files are gone or have changed since they were last read"
                )
        checked.judge()
        return checked

    def judge(self) -> None:
        """Check the number of bad files. Errors: UserError where there are too many."""
        refuse(self.bad, self.policy, {listed.part: len(listed.names) for listed in self.splits.values()})

    def kept(self) -> dict[str, FolderSplit]:
        """The splits without their bad files."""
        return {name: listed.without(self._bad_names(listed)) for name, listed in self.splits.items()}

    def _bad_names(self, listed: FolderSplit) -> Collection[str]:
        """The names of a split's unreadable files."""
        start = len(f"{listed.root}/")
        return {sample.file[start:] for sample in self.bad if sample.part == listed.part}

    def content(self) -> str:
        """Identity of the files that are used; the same for copies of them, however far they have been read so far."""
        named: list[object] = []
        digests = []
        for name, listed in self.kept().items():
            named += [name, listed.classes, listed.names, listed.stamps[:, 0].tobytes()]
            left_out = self._bad_names(self.splits[name])
            kept = np.array([file not in left_out for file in self.splits[name].names], dtype=bool)
            digests.append(self.digests[listed.part][kept])
        return content_of(named, np.concatenate(digests))

    def key(self, size: tuple[int, int] | None) -> str:
        """The cache key: by the content of each file, or by its stamp where it was never read, and how it is read."""
        levels = sorted(self.reading.levels.items())
        how = self.reading
        parts: list[object] = [RULES, size, how.background, how.max_pixels, levels, how.resize]
        for name, listed in self.splits.items():
            left_out = self._bad_names(listed)
            kept = np.array([name not in left_out for name in listed.names], dtype=bool)
            digests, stamps = self.digests[listed.part][kept], listed.stamps[kept]
            names = "\0".join(name for name in listed.names if name not in left_out)
            unread = stamps[~digests.any(axis=1)]
            parts += [name, listed.part, listed.classes, names, digests.tobytes(), unread.tobytes()]
        return cache.key("image-folder", parts)

    def build(self, size: tuple[int, int] | None, limit: int) -> cache.Entry:
        """A new entry: the decoded images or, above `limit` bytes, only facts about them. Errors: UserError."""
        while True:
            kept = self.kept()
            files = [file for split in kept.values() for file in split.files]
            height, width = size or probe_size(files, self.reading) or (MIXED_SIZE, MIXED_SIZE)
            total = len(files) * height * width * 3
            facts = {"size": (height, width), "bytes": total}
            before = len(self.bad)
            with cache.begin("image-folder", total if total <= limit else 0) as draft:
                # Without a cache each rank would hold its own copy.
                if total > limit or (draft.folder is None and total > limit // 8):
                    facts |= self._sampled(next(iter(kept.values())), (height, width), total)
                else:
                    facts |= self._decoded(draft, kept, (height, width), total)
                if len(self.bad) == before:
                    return draft.commit(facts, self.key(size))

    def _decoded(
        self, draft: cache.Draft, splits: dict[str, FolderSplit], size: tuple[int, int], total: int
    ) -> dict[str, Any]:
        """Decode all images into the draft; returns the facts about them."""
        where = draft.folder.parent if draft.folder else "memory"
        count = sum(len(split.names) for split in splits.values())
        _say(f"decoding {count:,} images, once, into {where} ({total / 1e6:.0f} MB)")
        images = {name: draft.create(name, (len(split.names), *size, 3), np.uint8) for name, split in splits.items()}
        levels = self._read([(split, images[name]) for name, split in splits.items()])
        mean, std = channel_statistics(next(iter(images.values())))
        return {"mean": mean, "std": std, "levels": levels}

    def _sampled(self, train: FolderSplit, size: tuple[int, int], total: int) -> dict[str, Any]:
        """Decode some of the images, evenly spread; returns the facts about them."""
        _say(f"{train.root.parent}: {total / 1e9:.1f} GB when decoded, too large to keep; images are read from files")
        count = min(_SAMPLE, max(1, _SAMPLE_BYTES // (size[0] * size[1] * 3)))
        rows = range(0, len(train.names), -(-len(train.names) // count))
        sample = train.without(set(train.names) - {train.names[row] for row in rows})
        with cache.Draft("sample", None) as scratch:
            images = scratch.create("sample", (len(sample.names), *size, 3), np.uint8)
            levels = self._read([(sample, images)])
            mean, std = channel_statistics(images)
        return {"mean": mean, "std": std, "levels": levels}

    def _read(self, splits: list[tuple[FolderSplit, np.ndarray]]) -> dict[str, Levels]:
        """Decode files, all with the same levels, and return these; record digests and bad files in this object.
        Errors: UserError."""
        found = [self._read_split(listed, out) for listed, out in splits]
        levels = levels_of(extent for extents in found for extent in extents.values()) | dict(self.reading.levels)
        for (listed, out), extents in zip(splits, found, strict=True):
            # So far, files of a kind without levels were decoded with their own: decode those again that differ.
            rows = [
                row
                for row, extent in extents.items()
                if (self.reading.levels.get(extent.kind) or levels_of([extent])[extent.kind]) != levels[extent.kind]
            ]
            decode_files(listed.files, out, reading=replace(self.reading, levels=levels), rows=rows)
        return levels

    def _read_split(self, listed: FolderSplit, out: np.ndarray) -> dict[int, Extent]:
        """Decode a split, with progress on a terminal; returns the extents of its images of more than 8 bits."""

        def progress(done: int) -> None:
            """Show the share of decoded files, on a terminal only."""
            if sys.stderr.isatty():
                end = "\n" if done >= len(listed.names) else ""
                share = 100 * done // len(listed.names)
                print(f"\r  {listed.part}/ {share}%", end=end, file=sys.stderr, flush=True)

        digests = np.frombuffer(mmap.mmap(-1, 32 * len(listed.names)), np.uint8).reshape(-1, 32)
        extents: dict[int, Extent] = {}
        refused = decode_files(
            listed.files,
            out,
            reading=self.reading,
            digests=digests,
            extents=extents,
            tolerated=largest_number(self.policy, len(listed.names)),
            progress=progress,
        )
        whole = next(split for split in self.splits.values() if split.part == listed.part)
        index = {name: row for row, name in enumerate(whole.names)}
        known = self.digests[listed.part]
        reasons = {listed.names[row]: why for row, why in refused.items()}
        read: dict[str, bytes] = {}
        for row in np.flatnonzero(digests.any(axis=1)):
            name, before = listed.names[row], known[index[listed.names[row]]]
            if before.any() and not np.array_equal(before, digests[row]):
                reasons[name] = CHANGED_MEANWHILE
            before[:] = digests[row]
            read[name] = digests[row].tobytes()
        self.bad += [BadSample(listed.part, index[name], f"{listed.root}/{name}", why) for name, why in reasons.items()]
        self.judge()
        undecodable = {listed.names[row]: why for row, why in refused.items()}
        self.seen[listed.part] = self.seen[listed.part].after_reading(read, undecodable)
        self.is_new = True
        return extents


def _say(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)
