"""The loader's worker processes: several epochs, errors in one line, no orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch

from ddp_core.errors import SharedError, UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.sources.samples import Split
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[3]
Check = Callable[[list[psutil.Process], float], None]


def build(folder: Path, **options: object) -> data.Pipeline:
    chosen = DataOptions(data_dir=str(folder), **options)  # type: ignore[arg-type]
    dataset = data.load("folder", chosen)
    arguments = {"world_size": 1, "rank": 0, "device": torch.device("cpu"), "accumulate": 2, "seed": 1}
    return data.build_pipeline(dataset, chosen, AugmentOptions(augment="heavy"), global_batch=8, **arguments)  # type: ignore[arg-type]


@pytest.mark.timeout(120)
def test_persistent_workers_follow_the_epochs(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(train=15)
    workers = build(folder, pipeline="loader", num_workers=2, prefetch_factor=2)
    resident = build(folder, pipeline="resident")
    next(iter(workers.train(7)))  # abandoned with batches under way
    for epoch, start in ((0, 0), (1, 0), (2, 3)):
        loaded, kept = (
            [batch for window in pipe.train(epoch, start) for batch in window.batches] for pipe in (workers, resident)
        )
        assert len(loaded) == len(kept) == 2 * (4 - start)
        for one, other in zip(loaded, kept, strict=True):
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert sum(len(batch.labels) for batch in workers.evaluate()) == 6


def alone(dataset: data.Dataset, options: DataOptions, global_batch: int) -> data.Pipeline:
    """The pipeline of one rank on the CPU, without augmentation."""
    shape = {"world_size": 1, "rank": 0, "device": torch.device("cpu"), "accumulate": 1, "seed": 0}
    plain = AugmentOptions(augment="none")
    return data.build_pipeline(dataset, options, plain, global_batch=global_batch, **shape)  # type: ignore[arg-type]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_file_is_one_line_also_from_a_worker(make_folder: Callable[..., Path], workers: int) -> None:
    folder = make_folder(train=4)
    options = DataOptions(data_dir=str(folder), num_workers=workers)
    decoded = data.load("folder", options)
    files = tuple(sorted(map(str, (folder / "train").rglob("*.png"))))
    dataset = replace(decoded, train=Split(decoded.train.labels, None, files))
    Path(files[5]).write_bytes(b"not an image")
    pipe = alone(dataset, options, 8)
    with pytest.raises(UserError) as caught:
        [list(window.batches) for window in pipe.train(0)]
    assert files[5] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("when", ["ready", "starting"])
def test_workers_end_with_a_killed_parent(make_folder: Callable[..., Path], assert_they_end: Check, when: str) -> None:
    folder = make_folder(train=20)
    program = (
        "import sys, time, torch\n"
        "from ddp_train import data\n"
        "from ddp_train.config.options import AugmentOptions, DataOptions\n"
        "options = DataOptions(data_dir=sys.argv[1], pipeline='loader', num_workers=2)\n"
        "pipe = data.build_pipeline(data.load('folder', options), options, AugmentOptions(), world_size=1, rank=0,\n"
        "    device=torch.device('cpu'), global_batch=4, accumulate=1, seed=0)\n"
        "windows = pipe.train(0)\n"
        "list(next(windows).batches)\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        if when == "ready":
            assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        while len(workers := psutil.Process(parent.pid).children(recursive=True)) < 2:
            time.sleep(0.001)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert_they_end(workers, 3)  # the DataLoader's own watch takes five seconds


TWO_NODES = """
import os, sys

import torch

os.environ["DDP_TRAIN_CACHE"] += os.environ["RANK"]
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.sources import image_folder
from ddp_train.data.sources.dataset import load_on_ranks
from ddp_train.distributed import process_group

ranks, device = process_group.Ranks.from_environment(), torch.device("cpu")
process_group.start(ranks, device, timeout_s=20)
if ranks.rank == 1:
    image_folder.available_memory = lambda: 0
options = DataOptions(data_dir=sys.argv[1], num_workers=0)
dataset = load_on_ranks("folder", options, ranks)
assert (dataset.train.files is None) == ranks.is_first
pipe = data.build_pipeline(dataset, options, AugmentOptions(), world_size=2, rank=ranks.rank, device=device,
    global_batch=5, accumulate=1, seed=0)
parts = list(pipe.train(0)), list(pipe.evaluate())
counts = process_group.gather((sum(window.samples for window in parts[0]), sum(len(b.labels) for b in parts[1])), ranks)
assert [sum(count) for count in zip(*counts)] == [12, 6], counts
process_group.leave(0)
"""


@pytest.mark.timeout(120)
def test_one_node_decodes_the_images_and_another_has_no_memory_for_them(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (program := tmp_path / "two_nodes.py").write_text(TWO_NODES)
    run_ranks(2, program, str(make_folder()), folder=tmp_path, timeout_s=100)


def test_a_folder_for_temporary_files_with_a_long_name_is_refused(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it torch waits for ever: its thread that hands the images over has ended."""
    folder = make_folder()
    monkeypatch.setattr("ddp_train.data.pipeline.loader.get_temp_dir", lambda: "/tmp/" + "x" * 75 + "/pymp-abcdefgh")
    with pytest.raises(
        UserError, match=r"--num-workers 2: the folder for temporary files, /tmp/x+, has too long a name"
    ):
        build(folder, pipeline="loader", num_workers=2)
    build(folder, pipeline="loader", num_workers=0)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_bad_test_images_are_judged_by_the_policy_where_there_is_nothing_to_train_on(
    make_folder: Callable[..., Path], policy: Literal["stop", "skip"]
) -> None:
    """As in evaluate of images that stay in their files."""
    folder = make_folder(train=1, test=1)
    options = DataOptions(data_dir=str(folder), num_workers=0)
    decoded = data.load("folder", options)
    good, bad = folder / "test" / "cat" / "0000.png", folder / "bad.png"
    bad.write_bytes(b"not an image")
    nothing = Split(np.zeros(0, np.int64), np.zeros((0, 16, 16, 3), np.uint8))
    test = Split(np.zeros(1000, np.int64), None, (str(bad), *[str(good)] * 999))
    dataset = replace(decoded, train=nothing, test=test, on_bad_sample=policy)
    pipe = alone(dataset, options, 500)
    if policy == "skip":
        assert sum(len(batch.labels) for batch in pipe.evaluate("test")) == 999
    else:
        with pytest.raises(SharedError, match=r"bad\.png \(image 0 of test\).*--on-bad-sample skip"):
            list(pipe.evaluate("test"))


ENDING_EARLY = """
import os, sys

import torch

from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.sources import image_folder
from ddp_train.data.sources.dataset import load_on_ranks
from ddp_train.distributed import process_group

ranks, device = process_group.Ranks.from_environment(), torch.device("cpu")
process_group.start(ranks, device, timeout_s=20)
image_folder.available_memory = lambda: 0
options = DataOptions(data_dir=sys.argv[1], num_workers=0)
dataset = load_on_ranks("folder", options, ranks)
assert dataset.reads_files
shape = {"world_size": 2, "rank": ranks.rank, "device": device, "global_batch": 4, "accumulate": 1, "seed": 0}
pipe = data.build_pipeline(dataset, options, AugmentOptions(), **shape)
seen = len(list(pipe.evaluate(interrupted=lambda: not ranks.is_first)))
assert process_group.gather(seen, ranks) == [1, 0]
measured = data.build_pipeline(dataset, options, AugmentOptions(), **shape, agree=False)
for _ in zip(range(1 + ranks.rank), measured.train(0)):
    pass
assert process_group.gather(ranks.rank, ranks) == [0, 1]
process_group.leave(0)
"""


@pytest.mark.timeout(120)
def test_a_rank_that_ends_early_leaves_no_other_waiting(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A signal in an evaluation reaches one rank sooner; --tune measures on each rank for some seconds."""
    (program := tmp_path / "ending_early.py").write_text(ENDING_EARLY)
    run_ranks(2, program, str(make_folder()), folder=tmp_path, timeout_s=100)
