"""The components of a run, each created from the options that it depends on; `build` assembles them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_core.errors import UserError
from ddp_train import data, models
from ddp_train.config.batch_split import scale_learning_rate, split
from ddp_train.config.declaration import flag
from ddp_train.config.options import Config
from ddp_train.config.parse import with_values
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.data.sources.samples import Dataset
from ddp_train.diagnostics.heartbeat_phases import Watched
from ddp_train.distributed.process_group import Ranks, gather, together
from ddp_train.distributed.speed_cache import work_of
from ddp_train.models import trial
from ddp_train.models.sync_batch_norm import BATCH_NORMS
from ddp_train.optim import create_optimizer
from ddp_train.optim.losses import Loss, cross_entropy_sum
from ddp_train.optim.lr_schedule import Schedule, create_schedule
from ddp_train.optim.precision import LossScale, Precision
from ddp_train.technique import Context, Technique
from ddp_train.torch_internals import without_compiler
from ddp_train.tune.balance import Balance


def create_precision(resolved: Config, device: torch.device) -> Precision:
    """The run's mixed precision and loss scaling."""
    options = resolved.model
    scale = LossScale(options.init_scale, options.growth_factor, options.backoff_factor, options.growth_interval)
    return Precision(options.amp, device, scale)


def create_pipeline(resolved: Config, dataset: Dataset, ranks: Ranks, device: torch.device) -> Pipeline:
    """This rank's input pipeline. Errors: UserError where an epoch has no step, or a rank would have no shard."""
    shards = resolved.shards
    if shards is not None and shards < ranks.world_size:
        raise UserError(
            f"--reproducible: {ranks.world_size} ranks for {shards} logical shards, but each rank needs at least one; "
            "set --reproducible-shards to at least the number of ranks, for the whole run"
        )
    pipeline = data.build_pipeline(
        dataset,
        resolved.data,
        resolved.augment,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
        global_batch=resolved.data.batch_size or 1,
        accumulate=resolved.data.accumulate or 1,
        seed=resolved.run.seed,
        shards=shards,
        local_world_size=ranks.local_world_size,
        equal_passes=resolved.model.sync_batch_norm,
        channels_last=resolved.model.channels_last,
    )
    if pipeline.steps_per_epoch == 0:
        images, batch = len(dataset.train.labels), resolved.data.batch_size
        raise UserError(f"--drop-last leaves no step: {images} training images, global batch {batch}")
    return Watched(pipeline)


def create_balance(resolved: Config, pipeline: Pipeline, ranks: Ranks) -> Balance | None:
    """The object that divides the global batch by measured speed; None without --shares measured, or for one rank."""
    if resolved.data.shares != "measured" or ranks.world_size == 1:
        return None
    return Balance(pipeline.sampler, resolved.data.accumulate or 1, work_of(resolved))


def context_of(
    resolved: Config, dataset: Dataset, network: nn.Module, pipeline: Pipeline, precision: Precision, ranks: Ranks
) -> Context:
    """The context with all that techniques may read and change."""
    rate, rule = resolved.optim.lr, resolved.optim.lr_scaling
    epochs, batch = resolved.run.epochs, resolved.data.batch_size
    # `resolve` has filled them in.
    assert rate is not None and rule is not None and epochs is not None and batch is not None
    return Context(
        config=resolved,
        network=network,
        device=precision.device,
        precision=precision,
        ranks=ranks,
        epochs=epochs,
        steps_per_epoch=pipeline.steps_per_epoch,
        global_batch=batch,
        classes=len(dataset.classes),
        image_shape=dataset.image_shape,
        peak_rate=scale_learning_rate(rate, batch, rule),
        class_weights=dataset.class_weights,
    )


def optimization_of(context: Context, techniques: Sequence[Technique]) -> tuple[torch.optim.Optimizer, Schedule, Loss]:
    """The optimizer of the network, the learning rate by step, and the loss, as the techniques have changed them."""
    options, epochs, steps = context.config, context.epochs, context.steps_per_epoch
    # bf16 is accurate enough for Muon's iterations; its authors use it.
    dtype = torch.bfloat16 if context.precision.mode == "bf16" else torch.float32
    optimizer = create_optimizer(context.network, options.optim, context.peak_rate, context.device, matrix_dtype=dtype)
    schedule = create_schedule(options.schedule, epochs=epochs, steps_per_epoch=steps, peak_rate=context.peak_rate)
    weights = None if context.class_weights is None else torch.tensor(context.class_weights, device=context.device)
    loss = cross_entropy_sum(options.regularize.label_smoothing, weights)
    for technique in techniques:
        schedule = technique.schedule(schedule) if technique.schedule is not None else schedule
        loss = technique.loss(loss) if technique.loss is not None else loss
    return optimizer, schedule, loss


def wrap(context: Context) -> tuple[nn.Module, DistributedDataParallel | None, tuple[str, ...]]:
    """(the network to call, compiled and wrapped in DistributedDataParallel where needed; the wrapper or None; a line
    that names the parameters without a gradient, which keep their values on any number of ranks).

    Buffers are not broadcast at every step: `average_buffers` averages them once an epoch. Errors: UserError.
    """
    network, resolved, ranks, device = context.network, context.config, context.ranks, context.device
    name, shape = resolved.model.model or "small", context.image_shape
    joins = ranks.world_size > 1 and resolved.shards is None
    # On all ranks: synchronised batch norm waits for the others, and DistributedDataParallel needs the same answer.
    passes, last = trial.PASSES if joins else 1, resolved.model.channels_last
    mine = together(
        lambda: models.without_gradient(name, context.network, shape, device, passes=passes, channels_last=last), ranks
    )
    untrained = sorted({parameter for found in gather(mine, ranks) for parameter in found})
    lines = (f"no gradient reaches {', '.join(untrained)}",) if untrained else ()
    if resolved.model.compile:
        # Compile before wrapping: torch 2.15 does not compile the wrapper itself. In DistributedDataParallel's forward
        # pass the graph is split at its buckets, so that their all-reduces still overlap with the backward pass.
        network = torch.compile(network, mode=resolved.model.compile_mode)  # type: ignore[assignment]
    if not joins:
        return network, None, lines
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.15 renamed the option and warns about the old name.
    keep_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {keep_buffers: False, "gradient_as_bucket_view": True}
    options["find_unused_parameters"] = bool(untrained)
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    ddp = without_compiler(lambda: DistributedDataParallel(network, **options))
    return ddp, ddp, lines


def deliver_as_cast(context: Context, techniques: Sequence[Technique], pipeline: Pipeline) -> None:
    """Have the pipeline deliver the images as autocast would cast them in the first layer: the same bits, fewer bytes.

    Images stay float32 where a technique changes or chooses images, or where a user's own technique may read them.
    """
    dtype, looked_at = context.precision.dtype, any(t.batch is not None or t.choose is not None for t in techniques)
    if dtype is None or looked_at or context.config.regularize.technique is not None:
        return
    last = context.config.model.channels_last
    if trial.only_convolves(context.network, context.image_shape, context.device, channels_last=last):
        pipeline.image_dtype = dtype


def without_lone_sample(
    resolved: Config, network: nn.Module, dataset: Dataset, ranks: Ranks
) -> tuple[Config, tuple[str, ...]]:
    """Leave the last global batch out where a rank would get a single sample, for which batch norm has no variance.

    Returns the options, and a line for the user where something is left out.
    """
    samples, batch = len(dataset.train.labels), resolved.data.batch_size or 1
    shares = split(samples % batch, [1.0] * (resolved.shards or ranks.world_size))
    lone = any(1 in split(share, [1.0] * (resolved.data.accumulate or 1)) for share in shares)
    normalised = any(isinstance(m, BATCH_NORMS) for m in network.modules())
    synchronised = resolved.model.sync_batch_norm  # the ranks' samples are counted together
    if resolved.data.drop_last or synchronised or not (lone and normalised and samples >= batch):
        return resolved, ()
    part = "rank" if resolved.shards is None else "shard"
    note = f"the last {samples % batch} images of each epoch are left out: batch norm needs two per {part}"
    return with_values(resolved, {"drop_last": True}), (note,)


def without_effect(resolved: Config, dataset: Dataset, pipeline: Pipeline, device: torch.device) -> tuple[str, ...]:
    """A line for each option that has no effect without a GPU or a loader, or means little for this dataset."""
    options = {
        "--expandable-segments": resolved.model.expandable_segments,
        f"--compile-mode {resolved.model.compile_mode}": resolved.model.compile_mode not in (None, "default"),
        f"--matmul-precision {resolved.model.matmul_precision}": "matmul_precision" in resolved.wanted,
    }
    unused = [name for name, on in options.items() if on and device.type == "cpu"]
    lines = [f"{name}: no GPU is used, so it has no effect" for name in unused]
    if pipeline.resident:
        of_loader = {"num_workers": resolved.data.num_workers, "prefetch_factor": resolved.data.prefetch_factor}
        why = "the images are all in memory, where no worker is needed (--pipeline loader)"
        lines += [f"{flag(name)} {n}: {why}" for name, n in of_loader.items() if n and name in resolved.wanted]
    if (target := resolved.run.target) is not None and dataset.name != "cifar10":
        size = f"{dataset.name} gets a network and a run of that size"
        lines.append(f"--target {target:g}: an accuracy on CIFAR-10; {size}")
    return tuple(lines)
