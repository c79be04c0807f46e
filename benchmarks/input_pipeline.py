"""Training images per second that the input delivers, compared with a DataLoader with torchvision's transforms.

The work is the same for all: decoded images in memory, crop with a border of 4, flip, normalisation, and random erasing
or not, in batches of 512. DataLoaders get each image as PIL image or uint8 tensor; their worker processes start before
the clock. Ours is the resident pipeline with its keyed draws per sample, the draws of the epoch included. The ratio is
to the DataLoader with the best median. With --device cuda the images stay on the GPU and the clock stops when the GPU
has finished.

Images per second without any training. `resident` is the pipeline here; `again` shows the noise. `erasing`: with random
erasing of half of the images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.harness import DATA_DIR, DEVICE, Arguments, Figures, measurement, rounds
from benchmarks.machine import device_name
from benchmarks.turns import Turns, take_turns
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.sources.samples import Dataset
from ddp_train.distributed.process_group import Ranks, choose_device

BATCH = 512
WARM_UP = 2
"""Batches of a DataLoader before the clock starts: its workers must have filled their queues."""
THEIRS_IMAGES, OURS_EPOCHS = (6 + WARM_UP) * BATCH, 2
WORKERS = (0, 2)
OURS, AGAIN = "resident", "resident again"


class Images(TorchDataset[tuple[Tensor, int]]):
    """Decoded images, each through torchvision's transforms when it is asked for, as a PIL image or a uint8 tensor."""

    def __init__(self, dataset: Dataset, *, erase: bool, pil: bool) -> None:
        from torchvision.transforms import v2

        assert dataset.train.images is not None
        self._pil, self._images, self._labels = pil, dataset.train.images, dataset.train.labels
        steps: list[torch.nn.Module] = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        steps += [v2.PILToTensor()] if pil else []
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
        steps += [v2.RandomErasing(0.5)] if erase else []
        self._transform = v2.Compose(steps)

    def __len__(self) -> int:
        return THEIRS_IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        pixels = self._images[index % len(self._images)]
        image = Image.fromarray(pixels) if self._pil else torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return self._transform(image), int(self._labels[index % len(self._labels)])


def _ours(dataset: Dataset, device: torch.device, *, erase: bool) -> Callable[[], float]:
    """Images per second of the resident pipeline."""
    options = DataOptions(pipeline="resident", drop_last=True)
    augment = AugmentOptions(augment="balanced", erasing=0.5 if erase else 0.0)
    pipeline = build_pipeline(
        dataset, options, augment, rank=0, world_size=1, device=device, global_batch=BATCH, accumulate=1, seed=0
    )

    def work() -> float:
        """Read OURS_EPOCHS epochs; returns images per second."""
        count, started = 0, time.perf_counter()
        for epoch in range(OURS_EPOCHS):
            for window in pipeline.train(epoch):
                count += sum(len(batch.images) for batch in window.batches)
        torch.get_device_module(device).synchronize(device)
        return count / (time.perf_counter() - started)

    return work


def _theirs(images: Images, device: torch.device, workers: int) -> float:
    """Images per second after the warm-up; the loader is read to its end, so that its workers have ended."""
    torch.manual_seed(0)
    pinned = device.type == "cuda"
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pinned)
    count, started = 0, 0.0
    for number, (pixels, labels) in enumerate(loader):
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if number >= WARM_UP:
            count += len(pixels)
        if number == WARM_UP - 1:
            torch.get_device_module(device).synchronize(device)
            started = time.perf_counter()
    torch.get_device_module(device).synchronize(device)
    return count / (time.perf_counter() - started)


def _summary(turns: Turns) -> Figures:
    """The two ratios to the best DataLoader."""
    found: Figures = {"noise": turns.ratio(AGAIN, OURS).rounded(3)}
    for label, suffix in (("with_erasing", ", erasing"), ("without_erasing", "")):
        loaders = [name for name in turns.cases if name.startswith("DataLoader")]
        best = turns.best([name for name in loaders if name.endswith(", erasing") == bool(suffix)])
        found[label] = {"best_loader": best, "times_the_best_loader": turns.ratio(OURS + suffix, best).rounded(2)}
    rows = [[name, f"{turns.values(name):,.0f}"] for name in turns.cases]
    return {**found, "table": {"columns": ["input", "images/s, median (quartiles)"], "rows": rows}}


@measurement(DATA_DIR, DEVICE, rounds(7))
def main(arguments: Arguments) -> Figures:
    """Our pipeline and DataLoaders over the same images, in turns."""
    device = choose_device(arguments.device, Ranks())
    options = DataOptions(dataset="synthetic", synthetic_samples=20_000)
    if arguments.data_dir:
        options = DataOptions(dataset="cifar10", data_dir=arguments.data_dir)
    name, _ = data.resolve(options)
    data.prepare(name, options)
    dataset = data.load(name, options)
    cases: dict[str, Callable[[], float]] = {}
    for erase, suffix in ((True, ", erasing"), (False, "")):
        for workers in WORKERS:
            for form, pil in (("PIL", True), ("tensors", False)):
                images = Images(dataset, erase=erase, pil=pil)
                cases[f"DataLoader, {form}, {workers} workers{suffix}"] = partial(_theirs, images, device, workers)
        cases[OURS + suffix] = _ours(dataset, device, erase=erase)
    cases[AGAIN] = _ours(dataset, device, erase=False)
    turns = take_turns(cases, arguments.rounds, unit="images/s")
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dataset": f"{name}, {len(dataset.train.labels)} training images",
        **turns.account(),
        **(_summary(turns) if turns.enough else {}),
        "rounds": turns.rounded(),
    }
