"""Image files to arrays."""

import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from ddp_core.errors import UserError
from ddp_train.data.sources import decode
from ddp_train.data.sources.decode import decode_files, end_with_parent, fit, probe_size, read_image
from gpu_topology.host.host import read_host

ROOT = Path(__file__).parents[4]
Check = Callable[[list[psutil.Process], float], None]


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> tuple[list[str], np.ndarray]:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    paths = [str(folder / f"{i:05d}.png") for i in range(count)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels


@pytest.mark.parametrize("processes", [1, 3])
def test_decodes_everything_in_order(tmp_path: Path, processes: int) -> None:
    paths, pixels = write_images(tmp_path, 301)
    out = np.memmap(tmp_path / "out", dtype=np.uint8, mode="w+", shape=pixels.shape)
    seen: list[int] = []
    decode_files(paths, out, processes=processes, progress=seen.append)
    assert np.array_equal(out, pixels)
    assert seen == sorted(seen) and seen[-1] == 301 and len(seen) > 1


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(tmp_path: Path, processes: int, content: bytes | None) -> None:
    paths, pixels = write_images(tmp_path, 300)
    whole = Path(paths[200]).read_bytes()
    Path(paths[200]).write_bytes(whole[:100] if content is None else content)
    out = np.memmap(tmp_path / "out", dtype=np.uint8, mode="w+", shape=pixels.shape)
    before = psutil.Process().children()
    digests = np.memmap(tmp_path / "digests", dtype=np.uint8, mode="w+", shape=(300, 32))
    refused = decode_files(paths, out, processes=processes, digests=digests, tolerated=1)
    assert list(refused) == [200] and "\n" not in refused[200]
    kept = np.arange(300) != 200
    assert np.array_equal(out[kept], pixels[kept])
    assert digests[200].any() and digests[7].tobytes() == hashlib.sha256(Path(paths[7]).read_bytes()).digest()
    for path in paths[:3]:
        Path(path).write_bytes(b"")
    assert 1 <= len(decode_files(paths, out, processes=processes)) < 4  # it ends at the first
    assert not [child for child in psutil.Process().children() if child not in before]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_file_of_any_kind_is_a_users_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, kind)
        for _ in range(40):
            content = bytearray(buffer.getvalue())
            for position in random.integers(0, min(len(content), 200), 4):
                content[position] = random.integers(0, 256)
            path = tmp_path / "image"
            path.write_bytes(content[: random.integers(len(content) // 2, len(content))])
            try:
                assert read_image(path, (16, 16)).shape == (16, 16, 3)
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100


def test_a_container_gets_a_process_for_each_cpu_of_its_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, pixels = write_images(tmp_path, 301)
    out = np.memmap(tmp_path / "out", dtype=np.uint8, mode="w+", shape=pixels.shape)
    counts: list[int] = []
    decode_in_processes = decode._decode_in_processes

    def count(work: Any, processes: int, *more: Any) -> dict[int, str]:
        counts.append(processes)
        return decode_in_processes(work, processes, *more)

    monkeypatch.setattr(decode, "_decode_in_processes", count)
    monkeypatch.setattr(decode, "read_host", lambda: replace(read_host(), usable_cpus=3))
    assert decode_files(paths, out) == {} and counts == [3]


@pytest.mark.timeout(60)
def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    paths, _ = write_images(tmp_path, 1)
    out = np.memmap(tmp_path / "out", dtype=np.uint8, mode="w+", shape=(3_000_000, 8, 8, 3))
    before = set(psutil.Process().children())

    def kill_one() -> None:
        while not (workers := set(psutil.Process().children()) - before):
            time.sleep(0.001)
        workers.pop().kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match="killed"):
        decode_files(paths * 3_000_000, out, processes=2)
    killer.join()
    assert set(psutil.Process().children()) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png", (8, 8))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (10, 10), (7, 30), (20, 20)])
def test_fit_covers_and_cuts_the_centre(width: int, height: int) -> None:
    across = np.linspace(0, 255, width).astype(np.uint8)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height).astype(np.uint8)[:, None].repeat(width, 1)
    pixels = np.stack([across, down, np.full_like(down, 9)], axis=2)
    result = fit(Image.fromarray(pixels), (20, 20)).astype(int)
    assert result.shape == (20, 20, 3)
    shorter = min(width, height)
    for axis, side in ((0, height), (1, width)):  # what remains is the middle of the longer side
        channel = 1 - axis
        low, high = (result[..., channel].take(i, axis).mean() for i in (0, -1))
        margin = 255 * (1 - shorter / side) / 2
        assert low == pytest.approx(margin, abs=20) and high == pytest.approx(255 - margin, abs=20)
    assert (result[..., 2] == 9).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    result = read_image(path, (16, 16))
    assert result.shape == (16, 16, 3) and result.dtype == np.uint8
    if mode in ("L", "RGBA", "I;16"):
        assert np.array_equal(result[..., 0], grey)


def test_probe_size(tmp_path: Path) -> None:
    paths, _ = write_images(tmp_path / "a", 3, (8, 12))
    assert probe_size(paths) == (8, 12)
    others, _ = write_images(tmp_path / "b", 1, (8, 13))
    assert probe_size(paths + others) is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_decoding_processes_end_with_their_parent(tmp_path: Path, assert_they_end: Check, sign: signal.Signals) -> None:
    paths, _ = write_images(tmp_path, 2)
    program = (
        "import sys, numpy as np\n"
        "from ddp_train.data.sources.decode import decode_files\n"
        "out = np.memmap(sys.argv[2], dtype=np.uint8, mode='w+', shape=(3_000_000, 8, 8, 3))\n"
        "print('ready', flush=True)\n"
        "decode_files([sys.argv[1]] * 3_000_000, out, processes=2)\n"
    )
    arguments = [sys.executable, "-c", program, paths[0], str(tmp_path / "out")]
    parent = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        while len(workers := psutil.Process(parent.pid).children()) < 2:
            time.sleep(0.001)
    finally:
        if sign == signal.SIGINT:
            os.killpg(parent.pid, sign)  # as a terminal does
        else:
            os.kill(parent.pid, sign)
        parent.wait()
    assert_they_end(workers, 20)
    _, errors = parent.communicate()
    assert errors.count("Traceback") <= 1  # the parent's own KeyboardInterrupt


def _echo(pipe: Connection, parent: int) -> None:
    end_with_parent(parent)
    while True:
        pipe.send(pipe.recv())


def test_only_the_parents_sigterm_ends_a_worker() -> None:
    """A launcher and Slurm signal every process of a rank, and the rank needs its workers until it has saved."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=_echo, args=(there, os.getpid()), daemon=True)
    worker.start()
    for word in ("ready", "alive"):
        here.send(word)
        assert here.poll(20)
        assert here.recv() == word
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
