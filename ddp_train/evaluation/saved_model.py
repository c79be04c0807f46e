"""A trained network from a run folder's best_model.pth or checkpoint-latest.pt, and the test split as it sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_core.files import is_file, is_folder, why_no_folder
from ddp_train import data, models
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.options import AugmentOptions, Config, DataOptions
from ddp_train.config.parse import parse
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.pipeline.window import Batch
from ddp_train.data.sources import cifar10, listing, torchvision_files
from ddp_train.data.sources.dataset import image_folder_of, load_on_ranks
from ddp_train.data.sources.samples import Dataset, DatasetFacts, Policy
from ddp_train.data.sources.validation import split_off
from ddp_train.distributed.process_group import Ranks, together

ChangedData = Literal["stop", "accept"]


@dataclass(frozen=True)
class SavedModel:
    """A network in evaluation mode on its device, with the configuration and the data facts of its run."""

    file: Path
    network: nn.Module
    config: Config
    facts: DatasetFacts
    device: torch.device

    def normaliser(self) -> Augmentation:
        """An Augmentation; its `normalise` turns uint8 images [n, H, W, C] into inputs like those in training."""
        facts = self.facts
        return Augmentation(
            "none",
            image_shape=facts.image_shape,
            mean=facts.mean,
            std=facts.std,
            flip_ok=False,
            channels_last=self.config.model.channels_last,
            device=self.device,
        )


def open_saved_model(path: str, device: torch.device) -> SavedModel:
    """Open `path`; for a run folder its best_model.pth.

    Errors: UserError, one line, for a file that is missing, damaged or of another model, and where config.yaml and
    dataset.json are not beside it.
    """
    file = Path(path)
    file = file / "best_model.pth" if is_folder(file) else file
    weights: Any = checkpoint_format.load_state_dict(file)
    if weights.get("schema") == checkpoint_format.SCHEMA:
        weights = checkpoint_format.load(file).get("model")
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{file}: there are no weights in it")
    for name in ("config.yaml", "dataset.json"):
        if not is_file(file.parent / name):
            raise UserError(f"{file}: there is no {name} beside it; a run folder has one")
    facts = DatasetFacts.read(file.parent / "dataset.json")
    found = parse(["--config", str(file.parent / "config.yaml")], complete=False)
    network = models.create_from_options(found.model, len(facts.classes), facts.image_shape, device)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: does not fit the model in config.yaml beside it ({reason})") from None
    return SavedModel(file, network.eval(), found, facts, device)


def load_split(
    saved: SavedModel,
    data_dir: str | None,
    ranks: Ranks,
    *,
    changed_data: ChangedData = "stop",
    on_bad_sample: Policy | None = None,
) -> Dataset:
    """The data in `data_dir` (None: where the run had them), normalised as the training images were.

    on_bad_sample: None for the run's own. A collective. Errors: UserError, on all ranks alike, for a folder that is not
    there or holds other classes, and where the run's validation images cannot be told from its training images.
    """
    name, options = saved.facts.name, saved.config.data
    policy = on_bad_sample or options.on_bad_sample
    options = replace(options, data_dir=data_dir or options.data_dir, changed_data=changed_data, on_bad_sample=policy)
    together(lambda: _check_folder(name, options), ranks)
    dataset = load_on_ranks(name, options, ranks, saved.facts)
    return together(lambda: _as_trained(_validation_part(dataset, saved, options), saved, options.data_dir), ranks)


def _validation_part(dataset: Dataset, saved: SavedModel, options: DataOptions) -> Dataset:
    """The dataset; where its images are those that --val-split divided in the run, only its validation split.

    Errors: UserError for a folder of training images that the run did not divide as they are now.
    """
    share, folder = options.val_split, image_folder_of(saved.facts.name, options)
    if share is None or folder is None or dataset.test is None:
        return dataset
    parts = listing.find_splits(folder)
    if not parts.keys() <= {"train"}:
        return dataset
    found, divided = len(dataset.test), saved.facts.train_samples + saved.facts.val_samples
    if found == divided:
        parted = split_off(replace(dataset, train=dataset.test, test=None), share, saved.config.run.seed)
        return replace(parted, train=dataset.train)  # the training split has no images here
    if parts or folder.resolve() == Path(saved.config.data.data_dir).resolve():
        raise UserError(
            f"--data-dir {folder}: has {found:,} images, the run divided {divided:,}: its validation images cannot be "
            "told from training images"
        )
    return dataset


def _check_folder(name: str, options: DataOptions) -> None:
    """Errors: UserError for a folder without the data: nothing is downloaded here."""
    folder = Path(options.data_dir)
    if name in ("digits", "synthetic"):
        return
    if not is_folder(folder):
        raise UserError(f"--data-dir {folder}: {why_no_folder(folder)}")
    if name in torchvision_files.SOURCES:
        if (missing := torchvision_files.missing_file(name, folder)) is not None:
            raise UserError(f"--data-dir {folder}: {missing} is missing")
        return
    around = folder.parent if folder.name == cifar10.TORCHVISION_FOLDER else folder
    found = listing.find_splits(folder) or listing.class_folders(folder)
    if not (found or (name == "cifar10" and cifar10.has_torchvision_folder(around))):
        wanted = "cifar-10-batches-py, or train/CLASS/* and test/CLASS/* images"
        raise UserError(f"--data-dir {folder}: holds no data (expected there: {wanted})")


def _as_trained(dataset: Dataset, saved: SavedModel, folder: str) -> Dataset:
    """The data set with the model's normalisation. Errors: UserError where it does not fit the model."""
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


def test_batches(dataset: Dataset, saved: SavedModel, ranks: Ranks, batch_size: int) -> Iterator[Batch]:
    """This rank's share of the test split, `batch_size` images at a time."""
    options = replace(saved.config.data, dataset=None, batch_size=None, batch_size_per_rank=None, drop_last=False)
    options = replace(options, pipeline="auto")  # images that the run kept in memory may not fit into this machine's
    pipeline = data.build_pipeline(
        dataset,
        options,
        AugmentOptions(augment="none"),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=saved.device,
        # In evaluation the pipeline takes twice as many images at a time as a rank's part of a global batch.
        global_batch=max(1, batch_size // 2) * ranks.world_size,
        accumulate=1,
        seed=0,
        local_world_size=ranks.local_world_size,
        channels_last=saved.config.model.channels_last,
    )
    pipeline.test_batch = batch_size
    return pipeline.evaluate(dataset.final)
