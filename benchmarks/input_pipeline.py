"""Training images per second that the input delivers by itself, beside a DataLoader with torchvision's transforms.

    python -m benchmarks.input_pipeline [--data-dir DIR] [--rounds 7] [--out NAME]

The work is the same for all: decoded images in memory, crop with a border of 4, flip, normalisation, and random erasing
(half of the images) or not, in batches of 512. DataLoaders get each image as PIL image or uint8 tensor; their worker
processes are started before the clock is. Ours is the resident pipeline with its keyed draws per sample, the draws of
the epoch included. Rounds that other processes disturbed are left out; the ratio is to the best DataLoader of the round
medians. With --device cuda the images stay on the GPU and the clock stops when it has finished."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.harness import DATA_DIR, DEVICE, Figures, Measurement, rounds
from benchmarks.turns import Turns, take_turns
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.sources.samples import Dataset
from ddp_train.distributed.process_group import Ranks, choose_device

BATCH = 512
WARM_UP = 2
"""Batches of a DataLoader before the clock starts: its workers must have filled their queues."""
THEIRS_IMAGES, OURS_EPOCHS = 6 * BATCH, 2
WORKERS = (0, 2)
OURS, AGAIN = "resident", "resident again"


class Images(TorchDataset[tuple[Tensor, int]]):
    """Decoded images, each through torchvision's transforms when it is asked for, as a PIL image or a uint8 tensor."""

    def __init__(self, dataset: Dataset, *, erase: bool, pil: bool, count: int) -> None:
        from torchvision.transforms import v2

        assert dataset.train.images is not None
        self._pil, self._count = pil, count
        self._images = dataset.train.images
        self._labels = dataset.train.labels
        steps: list[torch.nn.Module] = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        steps += [v2.PILToTensor()] if pil else []
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
        steps += [v2.RandomErasing(0.5)] if erase else []
        self._transform = v2.Compose(steps)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        pixels = self._images[index % len(self._images)]
        image = Image.fromarray(pixels) if self._pil else torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return self._transform(image), int(self._labels[index % len(self._labels)])


def measure(dataset: Dataset, device: torch.device, count: int) -> tuple[Turns, Figures]:
    """Images per second by case, and the two ratios to the best DataLoader."""
    cases: dict[str, Callable[[], float]] = {}
    for erase in (True, False):
        suffix = ", erasing" if erase else ""
        for workers in WORKERS:
            for pil in (True, False):
                name = f"DataLoader, {'PIL' if pil else 'tensors'}, {workers} workers{suffix}"
                cases[name] = _theirs(dataset, device, erase=erase, pil=pil, workers=workers)
        cases[OURS + suffix] = _ours(dataset, device, erase=erase)
    cases[AGAIN] = _ours(dataset, device, erase=False)
    turns = take_turns(cases, count, unit="images/s")
    return turns, _summary(turns, list(cases)) if turns.enough else {}


def _summary(turns: Turns, names: list[str]) -> Figures:
    found: Figures = {"noise": turns.ratio(AGAIN, OURS).rounded(3)}
    for label, suffix in (("with_erasing", ", erasing"), ("without_erasing", "")):
        theirs = [n for n in names if n.startswith("DataLoader") and n.endswith(", erasing") == bool(suffix)]
        best = turns.best(theirs)
        found[label] = {"best_loader": best, "times_the_best_loader": turns.ratio(OURS + suffix, best).rounded(2)}
    found["table"] = {
        "columns": ["input", "images/s, median (quartiles)"],
        "rows": [[name, f"{turns.values(name):,.0f}"] for name in names],
    }
    return found


def _ours(dataset: Dataset, device: torch.device, *, erase: bool) -> Callable[[], float]:
    pipeline = build_pipeline(
        dataset,
        DataOptions(pipeline="resident", drop_last=True),
        AugmentOptions(augment="balanced", erasing=0.5 if erase else 0.0),
        rank=0,
        world_size=1,
        device=device,
        global_batch=BATCH,
        accumulate=1,
        seed=0,
    )

    def work() -> float:
        count, started = 0, time.perf_counter()
        for epoch in range(OURS_EPOCHS):
            for window in pipeline.train(epoch):
                count += sum(len(batch.images) for batch in window.batches)
        _wait(device)
        return count / (time.perf_counter() - started)

    return work


def _theirs(dataset: Dataset, device: torch.device, *, erase: bool, pil: bool, workers: int) -> Callable[[], float]:
    images = Images(dataset, erase=erase, pil=pil, count=THEIRS_IMAGES + WARM_UP * BATCH)

    def work() -> float:
        torch.manual_seed(0)
        pinned = device.type == "cuda"
        loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pinned)
        return _rate(loader, device)

    return work


def _rate(loader: Iterable[list[Tensor]], device: torch.device) -> float:
    """Images per second after the warm-up; the loader is used up, so that its workers have ended."""
    count, started = 0, 0.0
    for number, (images, labels) in enumerate(loader):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if number >= WARM_UP:
            count += len(images)
        if number == WARM_UP - 1:
            _wait(device)
            started = time.perf_counter()
    _wait(device)
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def deliver(arguments: argparse.Namespace) -> Figures:
    """Figures of the data set and device that were asked for."""
    device = choose_device(arguments.device, Ranks())
    options = DataOptions(
        dataset="cifar10" if arguments.data_dir else "synthetic",
        data_dir=arguments.data_dir or "data",
        synthetic_samples=20_000,
    )
    name, _ = data.resolve(options)
    data.prepare(name, options)
    dataset = data.load(name, options)
    turns, found = measure(dataset, device, arguments.rounds)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dataset": f"{name}, {len(dataset.train.labels)} training images",
        **turns.account(),
        **found,
        "rounds": turns.rounded(),
    }


main = Measurement("input_pipeline", __doc__, deliver, (DATA_DIR, DEVICE, rounds(7)))

if __name__ == "__main__":
    sys.exit(main())
