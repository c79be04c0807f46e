"""The test split of a folder, as a saved model sees it: its classes, its size, its normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.window import Batch
from ddp_train.data.sources import cifar10, listing
from ddp_train.data.sources.dataset import load_on_ranks
from ddp_train.data.sources.samples import Dataset
from ddp_train.distributed.process_group import Ranks, together
from ddp_train.evaluation.saved_model import SavedModel

BUNDLED = ("digits", "synthetic")


def load_split(saved: SavedModel, data_dir: str | None, ranks: Ranks) -> Dataset:
    """The data in `data_dir` (None: where the run had them), normalised as the training images were.

    A collective. Errors: UserError, on all ranks alike, for a folder that is not there or holds other classes.
    """
    name = saved.facts.name
    options = saved.config.data if data_dir is None else replace(saved.config.data, data_dir=data_dir)
    together(lambda: _check_folder(name, options), ranks)
    dataset = load_on_ranks(name, options, ranks, saved.facts)
    return together(lambda: _as_trained(dataset, saved, options.data_dir), ranks)


def _check_folder(name: str, options: DataOptions) -> None:
    """Nothing is downloaded here: a wrong folder is a mistake."""
    folder = Path(options.data_dir)
    if name in BUNDLED:
        return
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder}: {'is not a folder' if folder.exists() else 'does not exist'}")
    around = folder.parent if folder.name == cifar10.TORCHVISION_FOLDER else folder
    found = listing.find_splits(folder) or listing.class_folders(folder)
    if not (found or (name == "cifar10" and cifar10.has_torchvision_folder(around))):
        wanted = "cifar-10-batches-py, or train/CLASS/* and test/CLASS/* images"
        raise UserError(f"--data-dir {folder}: holds no data (expected there: {wanted})")


def _as_trained(dataset: Dataset, saved: SavedModel, folder: str) -> Dataset:
    facts = saved.facts
    if dataset.classes != facts.classes:
        first = next((b for a, b in zip(facts.classes, dataset.classes, strict=False) if a != b), None)
        differ = f"{first!r} is not in its place" if first else f"{len(dataset.classes)}, not {len(facts.classes)}"
        raise UserError(f"--data-dir {folder}: its classes are not those that the model was trained on ({differ})")
    if dataset.image_shape != facts.image_shape:
        raise UserError(
            f"--data-dir {folder}: its images are {dataset.image_shape} (channels, height, width), "
            f"the model was trained on {facts.image_shape}"
        )
    return replace(dataset, mean=facts.mean, std=facts.std)


def batches(dataset: Dataset, saved: SavedModel, ranks: Ranks, batch_size: int) -> Iterator[Batch]:
    """This rank's share of the test split, `batch_size` images at a time."""
    options = replace(saved.config.data, dataset=None, batch_size=None, batch_size_per_rank=None, drop_last=False)
    pipeline = data.build_pipeline(
        dataset,
        options,
        AugmentOptions(augment="none"),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=saved.device,
        # The pipeline evaluates twice a rank's part of a global batch at a time.
        global_batch=max(1, batch_size // 2) * ranks.world_size,
        accumulate=1,
        seed=0,
        local_world_size=ranks.local_world_size,
    )
    return pipeline.evaluate(dataset.final)
