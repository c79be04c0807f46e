"""Small image folders, a decoded cache of the test's own, and a check that processes end."""

import multiprocessing.util
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    # Chosen once for the life of this process, and sockets are made there, whose paths the kernel limits to 107 bytes.
    multiprocessing.util.get_temp_dir()
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make(name, train=per class, test=per class, classes=..., size=(h, w)) -> the data folder, of random images."""

    def make(
        name: str = "images",
        *,
        train: int = 6,
        test: int = 3,
        classes: tuple[str, ...] = ("cat", "dog"),
        size: tuple[int, int] = (16, 16),
        held_out: str = "test",
    ) -> Path:
        random = np.random.default_rng(0)
        for part, count in (("train", train), (held_out, test)):
            for label in classes:
                folder = tmp_path / name / part / label
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i:04d}.png")
        return tmp_path / name

    return make


@pytest.fixture
def assert_they_end() -> Callable[[Iterable[psutil.Process], float], None]:
    """check(processes, seconds): fails when one still runs after that time; it is killed, so that nothing stays."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def check(processes: Iterable[psutil.Process], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (alive := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in alive:
            process.kill()
        assert alive == []

    return check
