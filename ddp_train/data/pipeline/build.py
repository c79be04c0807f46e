"""Which pipeline a run gets: resident where the decoded images fit into memory, else a loader."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch

from ddp_core.errors import UserError
from ddp_core.host_memory import available_memory
from ddp_train.config.batch_split import ceil_div
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.augment.operations import ColourJitter, Grayscale, Operation, ResizedCrop, Rotation
from ddp_train.data.augment.policies import Policy, policy_table
from ddp_train.data.pipeline.bad_sample_vote import Agreement
from ddp_train.data.pipeline.loader import LoaderPipeline
from ddp_train.data.pipeline.resident import ResidentPipeline
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.data.pipeline.shm_budget import Handover, fit, free_bytes
from ddp_train.data.pipeline.window import Cut, Pipeline
from ddp_train.data.sources.samples import Dataset

_RESIDENT_FRACTION = 0.4  # of the free memory: the model, its activations and the caches need the rest
_DEFAULT_WORKERS = 2


def build_pipeline(
    dataset: Dataset,
    options: DataOptions,
    augment: AugmentOptions,
    *,
    world_size: int,
    rank: int,
    device: torch.device,
    global_batch: int,
    accumulate: int,
    seed: int,
    shares: Sequence[float] | None = None,
    shards: int | None = None,
    local_world_size: int | None = None,
    equal_passes: bool = False,
    channels_last: bool = True,
    agree: bool = True,
) -> Pipeline:
    """The pipeline of one rank. Both kinds of pipeline give the same batches, bit for bit.

    shares: weights of the ranks' parts of a global batch, and of the held-out splits (None: equal). shards: logical
    shards into which both are cut instead, before the ranks take theirs; micro-batches are then parts of a shard.
    local_world_size: ranks that share this host's memory (None: all). equal_passes: every rank gets the same number of
    micro-batches, some empty if need be (for layers that communicate in each forward pass); not with shards.
    channels_last: the memory order of the images. agree: the ranks agree on bad images, so that all must read the same
    number of global batches.

    Errors: UserError for --pipeline resident where the images cannot be kept in memory.
    """
    sampler = GlobalBatchSampler(
        dataset.train.labels,
        global_batch=global_batch,
        world_size=world_size,
        rank=rank,
        seed=seed,
        drop_last=options.drop_last,
        shares=shares,
        shards=shards,
        balanced=dataset.train.labels if options.balanced_sampling else None,
    )
    augmentation = create_augmentation(dataset, augment, seed, device, channels_last=channels_last)
    micro_batch = ceil_div(ceil_div(global_batch, shards or world_size), accumulate)
    # No gradients are kept in evaluation, so twice the training's micro-batch fits.
    test_batch, ranks_here = max(32, 2 * micro_batch), local_world_size or world_size
    cut = Cut(accumulate, equal_passes, test_batch)
    if _is_resident(dataset, options, augmentation, ranks_here):
        return ResidentPipeline(dataset, augmentation, sampler, cut)
    workers = options.num_workers if options.num_workers is not None else _DEFAULT_WORKERS
    image_bytes = math.prod(dataset.image_shape)
    wanted = Handover(workers, options.prefetch_factor, image_bytes * micro_batch, image_bytes * test_batch)
    handover, note = fit(wanted, free_bytes(), ranks_here)
    if note is not None and rank % ranks_here == 0:  # one rank of each host prints it
        print(f"note: {note}", file=sys.stderr, flush=True)
    return LoaderPipeline(
        dataset,
        augmentation,
        sampler,
        cut,
        num_workers=handover.workers,
        prefetch_factor=handover.prefetch,
        agreement=Agreement(dataset, rank, world_size if agree else 1) if dataset.reads_files else None,
    )


def create_augmentation(
    dataset: Dataset, options: AugmentOptions, seed: int, device: torch.device | str, *, channels_last: bool = True
) -> Augmentation:
    """The augmentation of a dataset that the options ask for. A random resized crop replaces the level's crop."""
    return Augmentation(
        options.augment or "balanced",
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        flip_ok=dataset.flip_ok,
        padding=dataset.padding,
        largest_shift=_largest_shift(dataset, options),
        flip=options.flip,
        erasing=options.erasing,
        cutout=_cutout(dataset, options),
        further=create_operations(options, dataset.image_shape[1:], device),
        channels_last=channels_last,
        seed=seed,
        device=device,
    )


def create_operations(
    options: AugmentOptions, size: tuple[int, int], device: torch.device | str = "cpu"
) -> tuple[Operation, ...]:
    """The operations that the options ask for, beyond the levels', for images of (height, width), in their order."""
    device = torch.device(device)
    found: list[Operation] = []
    if options.random_resized_crop:
        found.append(ResizedCrop(options.random_resized_crop, size, device))
    if options.rotation:
        found.append(Rotation(options.rotation, device))
    if options.augment_policy:
        operations = 2 if options.randaugment_ops is None else options.randaugment_ops
        magnitude = 9 if options.randaugment_magnitude is None else options.randaugment_magnitude
        table = policy_table(options.augment_policy, *size, operations=operations, magnitude=magnitude)
        found.append(Policy(table, size, device))
    if options.color_jitter:
        found.append(ColourJitter(options.color_jitter, device))
    if options.grayscale:
        found.append(Grayscale(options.grayscale))
    return tuple(found)


def _largest_shift(dataset: Dataset, options: AugmentOptions) -> int | None:
    """Pixels by which the crop moves an image; None: the level's own. Errors: UserError where the image is smaller."""
    if options.random_resized_crop:
        return 0
    shorter = min(dataset.image_shape[1:])
    if (options.crop_padding or 0) >= shorter:
        raise UserError(f"--crop-padding {options.crop_padding}: the images of {dataset.name} have {shorter} pixels")
    return options.crop_padding or dataset.largest_shift


def _cutout(dataset: Dataset, options: AugmentOptions) -> int:
    """Side of the square that is erased; 0: none. Errors: UserError where the image is smaller."""
    side, shorter = options.cutout or 0, min(dataset.image_shape[1:])
    if side > shorter:
        raise UserError(f"--cutout {side}: the images of {dataset.name} have {shorter} pixels")
    return side


def _is_resident(dataset: Dataset, options: DataOptions, augmentation: Augmentation, ranks_here: int) -> bool:
    """Whether the images are kept in the device's memory. On CPUs `ranks_here` ranks share the host's memory."""
    if options.pipeline == "resident" and dataset.reads_files:
        raise UserError("--pipeline resident: the decoded images do not fit into this machine; take auto or loader")
    if options.pipeline in ("loader", "resident") or dataset.reads_files:
        return options.pipeline == "resident"
    channels, height, width = dataset.image_shape
    pad = 2 * augmentation.pad_pixels
    padded, plain = (height + pad) * (width + pad), height * width
    needed = channels * (len(dataset.train) * padded + sum(map(len, dataset.held_out.values())) * plain)
    if augmentation.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(augmentation.device)
        return needed <= free * _RESIDENT_FRACTION
    return needed * ranks_here <= available_memory() * _RESIDENT_FRACTION
