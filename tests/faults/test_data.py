"""Image files that are damaged, vanish or go bad under a run of real ranks, and a /dev/shm that is too small.

python -m pytest tests/faults/test_data.py --whole          # the variants and the run on one and two ranks, too
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.data.sources.image_folder import load_image_folder
from tests.faults.accident import VARIABLE
from tests.faults.runs import ROOT, Runs, history

OPTIONS = (
    "--dataset folder --data-dir {data} --image-size 32 --batch-size {batch} --epochs 2 --augment balanced --lr 0.01 "
    "--model tests.ddp_train.techniques.tiny:plain --no-tensorboard --no-examine --device cpu --amp off"
)


@pytest.fixture
def only_whole(times: Callable[[int, int], int]) -> None:
    """Skips in a usual test run: what it tests has a cheaper test."""
    if times(0, 1) == 0:
        pytest.skip("with --whole")


def images(folder: Path, train: int) -> Path:
    """An image folder of two classes with `train` training and 4 test images each."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", 4)):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i:04d}.png", compress_level=0)
    return folder


def run(
    runs: Runs, name: str, data: Path, more: str = "", *, ranks: int = 2, batch: int = 16, **env: str
) -> tuple[int, str]:
    """A run from files: its exit status, and what its ranks said on standard error."""
    words = shlex.split(f"--cpu --nproc {ranks} {ROOT / 'tests/faults/from_files.py'}")
    words += shlex.split(OPTIONS.format(data=data, batch=batch) + f" {more} --out-dir {name}")
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DDP_TRAIN_CACHE": str(runs.folder / "cache")} | env
    process = runs.launcher.start(*words, **env)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def one_error(err: str) -> str:
    """The one line that says what was wrong; fails where there is a traceback or none."""
    assert "Traceback" not in err, err
    line = {line for line in err.splitlines() if "error: " in line}
    assert len(line) == 1, err
    return line.pop()


@pytest.mark.timeout(150)
def test_an_image_that_vanishes_after_the_start_ends_all_ranks(runs: Runs, tmp_path: Path) -> None:
    goes_bad(runs, tmp_path, "vanish", 1, "No such file")


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("only_whole")
def test_an_image_that_is_cut_after_the_start_ends_all_ranks(runs: Runs, tmp_path: Path) -> None:
    goes_bad(runs, tmp_path, "truncate", 0, "has changed")


def goes_bad(runs: Runs, tmp_path: Path, what: str, workers: int, why: str) -> None:
    data = images(tmp_path / "data", 20)
    file = data / "train" / "dog" / "0007.png"
    status, err = run(runs, "run", data, f"--num-workers {workers}", BREAK=f"{what}:{file}")
    assert status == 2, err
    line = one_error(err)
    assert f"{file} (image 27 of train) " in line and why in line


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("only_whole")
def test_bad_images_are_left_out_in_the_same_way_on_any_number_of_ranks(runs: Runs, tmp_path: Path) -> None:
    pristine = images(tmp_path / "pristine", 1000)
    ends = []
    for ranks in (1, 2):
        data = tmp_path / f"data{ranks}"
        shutil.copytree(pristine, data)
        broken = f"overwrite:{data / 'train/cat/0005.png'}:{data / 'train/dog/0900.png'}"
        name = f"run{ranks}"
        status, err = run(
            runs, name, data, "--on-bad-sample skip --num-workers 0", ranks=ranks, batch=250, BREAK=broken
        )
        assert status == 0, err
        assert err.count("left out: ") == 2 and "cat/0005.png (image 5 of train) has changed" in err
        assert [epoch["extra"]["bad_images"] for epoch in history(runs.folder / name)] == [2, 2]
        ends.append(checkpoint_format.newest(runs.folder / name).state["model"])
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=1e-5, atol=1e-6)
    status, err = run(
        runs, "run3", data, "--on-bad-sample skip --changed-data accept", BREAK=f"vanish:{data / 'train/cat/0001.png'}"
    )
    assert status == 2 and "more than 0.1%" in one_error(err), err


@pytest.mark.timeout(120)
def test_damage_before_the_start_is_one_line_before_the_first_step(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(tmp_path / "data", 20)
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(runs.folder / "cache"))
    load_image_folder("folder", data, image_size=32, verify=True)
    (data / "train" / "cat" / "0003.png").unlink()
    status, err = run(runs, "second", data)
    assert status == 2 and "train/cat/0003.png (image 3 of train) has vanished" in one_error(err), err
    assert not (runs.folder / "second" / "training_history.json").exists()


@pytest.fixture
def small_shared_memory() -> Callable[[str], list[str]]:
    """small("1m"): words before a command that runs it with so much /dev/shm; skips where that is not allowed."""
    words = ["unshare", "-rm", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*words, "mount -t tmpfs tmpfs /dev/shm"], check=False).returncode
    ):
        pytest.skip("no mount namespaces here")
    return lambda size: [*words, f'mount -t tmpfs -o {size} tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("size", "goes_on"), [("size=1m", "--num-workers 3 --prefetch-factor 1"), ("ro", "--num-workers 0")]
)
def test_a_small_dev_shm_is_looked_at_first(
    tmp_path: Path,
    small_shared_memory: Callable[[str], list[str]],
    times: Callable[[int, int], int],
    size: str,
    goes_on: str,
) -> None:
    if size != "ro" and times(0, 1) == 0:
        pytest.skip("with --whole")
    options = "--dataset synthetic --synthetic-samples 96 --batch-size 32 --epochs 1 --pipeline loader --num-workers 3"
    further = (
        " --prefetch-factor 8 --model tests.ddp_train.techniques.tiny:plain --no-tensorboard --no-examine --out-dir run"
    )
    command = [sys.executable, str(ROOT / "ddp_train/main.py"), *shlex.split(options + further)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        small_shared_memory(size) + command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "note: /dev/shm has " in done.stderr and goes_on in done.stderr, done.stderr


FULL = (
    "--dataset synthetic --synthetic-samples 960 --batch-size 32 --epochs 50 --pipeline loader --num-workers 1 "
    "--model tests.ddp_train.techniques.tiny:plain --technique tests.faults.accident:plan --no-tensorboard "
    "--no-examine --out-dir run --save-every 5"
)


@pytest.mark.timeout(180)
def test_a_dev_shm_that_fills_up_in_the_midst_of_a_run_is_one_line(
    runs: Runs, small_shared_memory: Callable[[str], list[str]], times: Callable[[int, int], int]
) -> None:
    plan = runs.folder / "plan.json"
    plan.write_text(json.dumps([{"rank": 0, "step": 12, "what": "fill"}]))
    ranks = 1 if times(0, 1) == 0 else 2
    command = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", str(ranks), *shlex.split(FULL)]
    environment = runs.launcher.env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", VARIABLE: str(plan)}
    done = subprocess.run(
        small_shared_memory("size=16m") + command,
        cwd=runs.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 2, done.stderr
    line = one_error(done.stderr)
    assert "/dev/shm is full" in line and "--num-workers 0" in line and "--shm-size" in line
    step = checkpoint_format.newest(runs.folder / "run").state["progress"]["step"]  # type: ignore[index]
    assert step >= 10, "what was saved stands"
