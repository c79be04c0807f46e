"""The decoded cache: durable, whole or absent, made again when torn, elsewhere when it cannot be written."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from ddp_core.errors import UserError
from ddp_train.data.sources import cache

ARRAY = np.arange(4096, dtype=np.uint8).reshape(64, 64)
KEY = cache.key("test", [1])


def write(key: str = KEY, array: np.ndarray = ARRAY) -> cache.Entry:
    with cache.begin(key, array.nbytes) as draft:
        draft.put("pixels", array)
        return draft.commit({"answer": 42})


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != KEY)


def test_what_is_committed_is_found(cache_folder: Path) -> None:
    assert cache.find(KEY) is None
    write()
    entry = cache.find(KEY, verify=True)
    assert entry is not None
    assert entry.facts == {"answer": 42}
    assert np.array_equal(entry.arrays["pixels"], ARRAY)
    assert isinstance(entry.arrays["pixels"], np.memmap)
    assert left_over(cache_folder) == []


def test_keys_follow_every_part() -> None:
    parts = [("a", [1]), ("b", [1]), ("a", [2]), ("a", ["1"]), ("a", [1, 1]), ("a", [(1, 1)])]
    assert len({cache.key(kind, values) for kind, values in parts}) == len(parts)


def test_writing_to_a_found_array_does_not_change_the_file() -> None:
    write()
    entry = cache.find(KEY)
    assert entry is not None
    entry.arrays["pixels"][:] = 0
    again = cache.find(KEY, verify=True)
    assert again is not None and np.array_equal(again.arrays["pixels"], ARRAY)


def truncate(folder: Path) -> None:
    os.truncate(folder / "pixels.npy", 1000)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "pixels.npy").read_bytes())
    content[-5] ^= 1
    (folder / "pixels.npy").write_bytes(content)


def drop_the_record(folder: Path) -> None:
    (folder / "entry.json").unlink()


def empty_the_record(folder: Path) -> None:
    (folder / "entry.json").write_text("")


def change_the_record(**changes: object) -> None:
    path = cache.roots()[0] / KEY / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def foreign_schema(folder: Path) -> None:
    change_the_record(schema="another/1")


def foreign_key(folder: Path) -> None:
    change_the_record(key="another")


def record_without_arrays(folder: Path) -> None:
    change_the_record(arrays=None)


def wrong_array(folder: Path) -> None:
    np.save(folder / "pixels.npy", ARRAY[:10])


def pickled_array(folder: Path) -> None:
    np.save(folder / "pixels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def array_of_another_folder(folder: Path) -> None:
    record = json.loads((folder / "entry.json").read_text())
    (folder / "pixels.npy").rename(folder.parent.parent / "outside.npy")
    change_the_record(arrays={"../../outside": record["arrays"]["pixels"]})


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, drop_the_record, empty_the_record, foreign_schema, foreign_key, record_without_arrays,
     wrong_array, pickled_array, array_of_another_folder],
)  # fmt: skip
def test_a_damaged_entry_is_noticed_and_made_again(
    damage: object, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write()
    damage(cache_folder / KEY)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert cache.find(KEY, verify=True) is None
    assert len(caplog.records) == 1 and str(cache_folder / KEY) in caplog.text
    write()
    entry = cache.find(KEY, verify=True)
    assert entry is not None and np.array_equal(entry.arrays["pixels"], ARRAY)


def test_without_commit_nothing_remains(cache_folder: Path) -> None:
    with pytest.raises(RuntimeError), cache.begin(KEY, 100) as draft:
        draft.put("pixels", ARRAY)
        raise RuntimeError
    assert list(cache_folder.iterdir()) == []


def test_two_writers_of_one_entry(cache_folder: Path) -> None:
    with cache.begin(KEY, 100) as first, cache.begin(KEY, 100) as second:
        first.put("pixels", ARRAY)
        second.put("pixels", ARRAY)
        for draft in (first, second):
            assert np.array_equal(draft.commit({}).arrays["pixels"], ARRAY)
    assert left_over(cache_folder) == [] and cache.find(KEY, verify=True) is not None


def _write_and_wait() -> None:
    with cache.begin(KEY, 100) as draft:
        draft.put("pixels", ARRAY)
        time.sleep(100)


@pytest.mark.timeout(60)
def test_the_draft_of_a_killed_process_is_swept_and_a_living_one_is_not(cache_folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_write_and_wait)
    process.start()
    try:
        while not list(cache_folder.glob(".draft-*/pixels.npy")):
            time.sleep(0.01)
        write()
        assert len(left_over(cache_folder)) == 1
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    write(cache.key("other", []))
    assert [name for name in left_over(cache_folder) if name.startswith(".draft")] == []


def test_a_folder_without_locks_is_used(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: IO[str], operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write()
    assert (cache_folder / KEY).is_dir()
    assert left_over(cache_folder) == []


@pytest.mark.usefixtures("locks_as_over_nfs")
def test_a_dead_draft_is_swept_where_a_lock_needs_a_writable_descriptor(cache_folder: Path) -> None:
    (dead := cache_folder / f".draft-dead@{socket.gethostname()}").mkdir(parents=True)
    (dead / "lock").touch()
    write()
    assert left_over(cache_folder) == []


def test_a_draft_of_another_host_is_left_alone_where_its_lock_is_not_seen(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dead := cache_folder / ".draft-dead@gone").mkdir(parents=True)
    (dead / "lock").touch()
    os.utime(dead / "lock", (0, 0))
    with cache.begin(KEY, 100) as draft:
        monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        write(other := cache.key("other", []))
        draft.put("pixels", ARRAY)
        draft.commit({})
    assert cache.find(KEY, verify=True) is not None and left_over(cache_folder) == [other]


def test_an_unwritable_folder_is_replaced_by_a_temporary_one(
    cache_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.write_text("a file where the folder should be")  # refuses root, too
    with caplog.at_level(logging.WARNING):
        write()
    assert len(caplog.records) == 1
    assert str(cache_folder) in caplog.text and "DDP_TRAIN_CACHE" in caplog.text
    entry = cache.find(KEY, verify=True)
    assert entry is not None and np.array_equal(entry.arrays["pixels"], ARRAY)
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_with_no_folder_at_all_the_arrays_stay_in_memory(
    cache_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.write_text("")
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").write_text("")
    with caplog.at_level(logging.WARNING):
        entry = write()
    assert np.array_equal(entry.arrays["pixels"], ARRAY) and entry.facts == {"answer": 42}
    assert len(caplog.records) == 2
    assert cache.find(KEY) is None


def test_a_folder_that_others_can_write_is_not_trusted(cache_folder: Path, tmp_path: Path) -> None:
    cache_folder.write_text("")
    write()
    (folder,) = (tmp_path / "tmp").iterdir()
    assert cache.find(KEY) is not None
    folder.chmod(0o777)
    assert cache.find(KEY) is None


def test_a_disk_that_is_too_small_is_found_before_writing(cache_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), cache.begin(KEY, 10**18) as draft:
        assert draft.folder is None
    assert "GB free" in caplog.text


def _write_with_a_quota(sizes: Any) -> None:
    """Write an entry where a file may have 64 KiB: if the size is known before, and if it turns out to be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    large = np.zeros(1 << 17, np.uint8)
    with cache.begin(KEY, large.nbytes) as draft:
        draft.put("pixels", large)
        sizes.put((draft.folder, len(draft.commit({}).arrays["pixels"])))
    try:
        with cache.begin(KEY, 100) as draft:
            draft.put("pixels", large)
    except UserError as error:
        sizes.put(str(error))


@pytest.mark.timeout(60)
def test_a_quota_is_found_before_decoding_or_said_in_one_line(cache_folder: Path) -> None:
    """posix_fallocate(3) fails by a quota as by RLIMIT_FSIZE, and disk_usage knows neither."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=_write_with_a_quota, args=(found,))
    process.start()
    assert found.get(timeout=30) == (None, 1 << 17)  # in memory
    refusal = found.get(timeout=30)
    assert refusal.startswith(f"{cache_folder}: no room for the decoded images (File too large); set DDP_TRAIN_CACHE")
    process.join()
    assert list(cache_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DDP_TRAIN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ddp_train"),
        ({}, str(Path("~/.cache/ddp_train").expanduser())),
    ],
)
def test_where_entries_live(environ: dict[str, str], expected: str) -> None:
    assert str(cache.roots(environ)[0]) == expected
