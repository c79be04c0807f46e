"""The composition root: from a configuration to a trainer that is ready to run.

The order is that of `build`: data, recommendations, run folder, model, optimizer, resume, observers.
What can be refused is refused here, before the first step, and on all ranks together.
"""

from __future__ import annotations

import inspect
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train import config, data, done, generators, models
from ddp_train.batching import scale_learning_rate, split
from ddp_train.compose import compose
from ddp_train.control import Control
from ddp_train.data.dataset import Dataset
from ddp_train.data.facts import DatasetFacts
from ddp_train.data.on_ranks import describe_left_out, load_on_ranks
from ddp_train.data.pipeline import Pipeline
from ddp_train.diagnostics.beats import Watched
from ddp_train.distributed import Ranks, gpu_uuids, on_first_rank, take_first_ranks, together
from ddp_train.eager import leave_compiler_out, without_compiler
from ddp_train.event_files import TensorBoardObserver
from ddp_train.from_data import init_from_data
from ddp_train.guard import Guard
from ddp_train.heartbeat import own
from ddp_train.losses import Loss, cross_entropy_sum
from ddp_train.models.synchronised import SynchronisedBatchNorm
from ddp_train.optim import create_optimizer
from ddp_train.options import Config, UserError
from ddp_train.owed import Owed
from ddp_train.precision import LossScale, Precision
from ddp_train.progress import create_progress
from ddp_train.records import Observer, RunFacts
from ddp_train.redaction import redacted
from ddp_train.reproducible import Sharded
from ddp_train.reproducible_cost import measure
from ddp_train.resolve import resolve, threads_of
from ddp_train.run_folder import HistoryObserver, RunFolder
from ddp_train.run_lock import RunLock
from ddp_train.saving import Saver, create_saver
from ddp_train.schedule import Schedule, create_schedule
from ddp_train.speed_cache import work_of
from ddp_train.state import Progress
from ddp_train.stopping import StopSignals
from ddp_train.technique import Context, Technique
from ddp_train.trainer import Parts, Trainer
from ddp_train.tune.balance import Balance
from ddp_train.wandb_records import WandbObserver

__all__ = ["Run", "build", "create_network"]


@dataclass(frozen=True)
class Run:
    """A trainer with the configuration, folder and facts of its run. Observers are told on rank 0 alone."""

    trainer: Trainer
    config: Config
    folder: RunFolder
    facts: RunFacts
    observers: Sequence[Observer]
    dataset: Dataset
    lock: RunLock


def build(wanted: Config, ranks: Ranks, device: torch.device, stop: StopSignals | None = None) -> Run:
    """Put a run together. The process group must have been started. Errors: UserError, on all ranks alike."""
    dataset, notes = _load_data(wanted, ranks)
    resolved, found = resolve(wanted, dataset, ranks, device)
    lock = RunLock()
    path, moved = on_first_rank(lambda: config.claim(resolved, lock, restarted=config.is_restart()), ranks)
    folder, notes = RunFolder(path), (*notes, moved) if moved else notes
    resolved = config.with_values(resolved, {"out_dir": str(path)})
    if not resolved.model.compile:
        leave_compiler_out()
    generators.seed(resolved.run.seed)
    network = together(lambda: create_network(resolved, dataset, device), ranks)
    together(lambda: init_from_data(network, dataset, device), ranks)
    take_first_ranks(network, ranks)  # before a technique makes copies of them
    resolved, notes = _without_lone_sample(resolved, network, dataset, ranks, notes)
    notes = (*notes, *_without_effect(resolved, device))
    pipeline = together(lambda: _pipeline(resolved, dataset, ranks, device), ranks)
    precision = _precision(resolved, device)
    context = _context(resolved, dataset, network, pipeline, precision, ranks)
    context, techniques = together(lambda: compose(context), ranks)
    balance = _balance(resolved, pipeline, ranks)
    techniques = (*techniques, *([balance.technique()] if balance is not None else []))
    network = context.network
    optimizer = together(lambda: _optimizer(resolved, context, precision), ranks)
    control = Control(ranks)
    saver = create_saver(
        context, techniques, optimizer, control, pipeline, len(dataset.train.labels), folder.latest, folder.best_model
    )
    model = _compiled(network, resolved)
    joining = _sharded(resolved, network, ranks, device)
    notes = (*notes, *_cost_of_bits(context))
    ddp = _wrap(model, ranks, device) if joining is None else None
    synchronised = any(isinstance(module, SynchronisedBatchNorm) for module in network.modules())
    # Behind the wrapping, which gives all ranks the buffers of rank 0.
    source = on_first_rank(lambda: config.resume_file(resolved), ranks)
    progress, resumed = _resume(source, saver, dataset, resolved, ranks)
    notes = (*notes, *resumed)
    parts = Parts(
        ranks=ranks,
        device=device,
        network=network,
        model=ddp or model,
        ddp=ddp,
        pipeline=pipeline,
        loss=_loss(resolved, techniques),
        optimizer=optimizer,
        schedule=_schedule(context, techniques),
        precision=precision,
        epochs=context.epochs,
        global_batch=context.global_batch,
        stop_after=math.inf if resolved.run.stop_after is None else resolved.run.stop_after,
        seed=resolved.run.seed,
        techniques=techniques,
        log_every=resolved.run.log_every,
        joining=joining,
        saver=saver,
        guard=Guard(network, optimizer, precision, pipeline, ranks, control, folder.path),
        owed=Owed(ddp) if ddp is not None and not synchronised else None,
        control=control,
        stop=stop or StopSignals(),
        progress=progress,
    )
    if balance is not None:
        notes = (*notes, together(lambda: balance.start(parts), ranks))
    facts = _facts(resolved, dataset, parts, folder, notes)
    observers: tuple[Observer, ...] = ()
    if ranks.is_first:
        done.unmark(folder.path)
        folder.write_config(resolved)
        folder.write_dataset(DatasetFacts.of(dataset))
        folder.write_plan(_environment(parts, facts), found)
        observers = _observers(resolved, folder, parts, facts, source)
        parts = replace(parts, observers=observers)
    return Run(Trainer(parts), resolved, folder, facts, observers, dataset, lock)


def _context(
    resolved: Config, dataset: Dataset, network: nn.Module, pipeline: Pipeline, precision: Precision, ranks: Ranks
) -> Context:
    return Context(
        config=resolved,
        network=network,
        device=precision.device,
        precision=precision,
        ranks=ranks,
        epochs=_known(resolved.run.epochs),
        steps_per_epoch=pipeline.steps_per_epoch,
        global_batch=_known(resolved.data.batch_size),
        classes=len(dataset.classes),
        image_shape=dataset.image_shape,
        peak_rate=_peak_rate(resolved),
    )


def _load_data(wanted: Config, ranks: Ranks) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset, and the line that says why where it is not the one that a user might expect.

    Rank 0 downloads, one rank per node decodes, all map the result.
    """
    with own.during("data preparation"):
        name, note = on_first_rank(lambda: data.resolve(wanted.data), ranks)
        dataset = load_on_ranks(name, wanted.data, ranks)
    return dataset, (*((note,) if note else ()), *dataset.notes, *describe_left_out(dataset))


def _resume(
    source: Path | None, saver: Saver, dataset: Dataset, resolved: Config, ranks: Ranks
) -> tuple[Progress, tuple[str, ...]]:
    """How far the run of the checkpoint `source` had come, which everything then has the state of; lines for the user.

    A new run for None. Errors: UserError, on all ranks alike.
    """
    if source is None:
        return Progress(), ()
    together(lambda: _refuse_other_data(source, dataset, resolved), ranks)
    taken = together(lambda: saver.restore(source), ranks)
    return taken.progress, (*taken.notes, f"continues {taken.path} {taken.progress.place}")


def _refuse_other_data(source: Path, dataset: Dataset, resolved: Config) -> None:
    """Errors: UserError where the run of the checkpoint `source` had other data."""
    beside = source.parent / "dataset.json"
    if beside.is_file() and resolved.data.changed_data == "stop":
        DatasetFacts.read(beside).refuse_other_data(dataset)


def create_network(resolved: Config, dataset: Dataset | DatasetFacts, device: torch.device) -> nn.Module:
    """The untrained network of a run, on its device."""
    return models.create_as_told(resolved.model, len(dataset.classes), dataset.image_shape, device)


def _precision(resolved: Config, device: torch.device) -> Precision:
    options = resolved.model
    scale = LossScale(options.init_scale, options.growth_factor, options.backoff_factor, options.growth_interval)
    return Precision(options.amp, device, scale)


def _pipeline(resolved: Config, dataset: Dataset, ranks: Ranks, device: torch.device) -> Pipeline:
    shards = resolved.shards
    if shards is not None and shards < ranks.world_size:
        raise UserError(
            f"--reproducible: {ranks.world_size} ranks for {shards} logical shards, of which each takes at least one; "
            "--reproducible-shards takes their number, for the whole run"
        )
    pipeline = data.build_pipeline(
        dataset,
        resolved.data,
        resolved.augment,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
        global_batch=_known(resolved.data.batch_size),
        accumulate=resolved.data.accumulate or 1,
        seed=resolved.run.seed,
        shards=shards,
        local_world_size=ranks.local_world_size,
        equal_passes=resolved.model.sync_batch_norm,
    )
    if pipeline.steps_per_epoch == 0:
        raise UserError(
            f"--drop-last leaves no step: {len(dataset.train.labels)} training images, "
            f"global batch {resolved.data.batch_size}"
        )
    return Watched(pipeline)


def _balance(resolved: Config, pipeline: Pipeline, ranks: Ranks) -> Balance | None:
    """What divides the global batch by measured speed, where that is asked for and there is something to divide."""
    if resolved.data.shares != "measured" or ranks.world_size == 1:
        return None
    return Balance(pipeline.sampler, resolved.data.accumulate or 1, work_of(resolved))


def _without_lone_sample(
    resolved: Config, network: nn.Module, dataset: Dataset, ranks: Ranks, notes: tuple[str, ...]
) -> tuple[Config, tuple[str, ...]]:
    """Leave the last global batch out where a rank would get a single sample: batch norm has no variance then."""
    samples, batch = len(dataset.train.labels), _known(resolved.data.batch_size)
    shares = split(samples % batch, [1.0] * (resolved.shards or ranks.world_size))
    lone = any(1 in split(share, [1.0] * (resolved.data.accumulate or 1)) for share in shares)
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    synchronised = resolved.model.sync_batch_norm  # the ranks' samples are counted together
    if resolved.data.drop_last or synchronised or not (lone and normalised and samples >= batch):
        return resolved, notes
    part = "rank" if resolved.shards is None else "shard"
    note = f"the last {samples % batch} images of each epoch are left out: batch norm needs two per {part}"
    return config.with_values(resolved, {"drop_last": True}), (*notes, note)


def _without_effect(resolved: Config, device: torch.device) -> tuple[str, ...]:
    """A line for each option that has nothing to do where there is no GPU."""
    options = {
        "--expandable-segments": resolved.model.expandable_segments,
        f"--compile-mode {resolved.model.compile_mode}": resolved.model.compile_mode not in (None, "default"),
    }
    return tuple(
        f"{name}: no GPU is used, so it does nothing" for name, on in options.items() if on and device.type == "cpu"
    )


def _peak_rate(resolved: Config) -> float:
    rate, rule = resolved.optim.lr, resolved.optim.lr_scaling
    assert rate is not None and rule is not None
    return scale_learning_rate(rate, _known(resolved.data.batch_size), rule)


def _optimizer(resolved: Config, context: Context, precision: Precision) -> torch.optim.Optimizer:
    # Muon's iterations bear bf16, in which their authors run them.
    dtype = torch.bfloat16 if precision.mode == "bf16" else torch.float32
    return create_optimizer(context.network, resolved.optim, context.peak_rate, context.device, matrix_dtype=dtype)


def _schedule(context: Context, techniques: Sequence[Technique]) -> Schedule:
    schedule = create_schedule(
        context.config.schedule,
        epochs=context.epochs,
        steps_per_epoch=context.steps_per_epoch,
        peak_rate=context.peak_rate,
    )
    for technique in techniques:
        schedule = technique.schedule(schedule) if technique.schedule is not None else schedule
    return schedule


def _loss(resolved: Config, techniques: Sequence[Technique]) -> Loss:
    loss = cross_entropy_sum(resolved.regularize.label_smoothing)
    for technique in techniques:
        loss = technique.loss(loss) if technique.loss is not None else loss
    return loss


def _compiled(model: nn.Module, resolved: Config) -> nn.Module:
    """`model` compiled, if it is to be, and before it is wrapped: of the wrapper torch 2.15 compiles nothing.

    Within DistributedDataParallel's forward pass the graph is cut at its buckets, so that they still overlap.
    """
    if not resolved.model.compile:
        return model
    return torch.compile(model, mode=resolved.model.compile_mode)  # type: ignore[return-value]


def _wrap(network: nn.Module, ranks: Ranks, device: torch.device) -> DistributedDataParallel | None:
    """DistributedDataParallel, at more than one rank.

    Buffers are not broadcast at every step: `average_buffers` joins them once an epoch.
    """
    if ranks.world_size == 1:
        return None
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.15 renamed the option and warns about the old name.
    keep_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {keep_buffers: False, "gradient_as_bucket_view": True}
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    return without_compiler(lambda: DistributedDataParallel(network, **options))


def _sharded(resolved: Config, network: nn.Module, ranks: Ranks, device: torch.device) -> Sharded | None:
    """What takes DistributedDataParallel's place under --reproducible."""
    if resolved.shards is None:
        return None
    return Sharded(network, ranks, device, resolved.shards)


def _cost_of_bits(context: Context) -> tuple[str, ...]:
    """The line that says what --reproducible costs, measured; a run that only measures goes without."""
    run, looking = context.config.run, context.config.looking
    if context.config.shards is None or run.tune is not None or looking.overfit_one_batch is not None:
        return ()
    plain_threads = threads_of(context.ranks.local_world_size)
    cost = together(lambda: measure(context, plain_threads), context.ranks)
    threads = f", threads a rank: {torch.get_num_threads()}" if context.device.type == "cpu" else ""
    return (f"--reproducible: {context.config.shards} logical shards{threads}; {cost}",)


def _observers(
    resolved: Config, folder: RunFolder, parts: Parts, facts: RunFacts, source: Path | None
) -> tuple[Observer, ...]:
    """History first: what the others show must already be on disk."""
    history = folder.open_history(_environment(parts, facts), parts.progress.epoch, source)
    observers: list[Observer] = [HistoryObserver(history, folder.curves), create_progress()]
    if resolved.run.tensorboard:
        observers.append(TensorBoardObserver(folder.tensorboard))
    if resolved.looking.wandb:
        observers.append(WandbObserver(folder.path, resolved.looking.wandb_project, config.to_dict(resolved)))
    observers += [technique.observer for technique in parts.techniques if technique.observer is not None]
    return tuple(observers)


def _facts(resolved: Config, dataset: Dataset, parts: Parts, folder: RunFolder, notes: tuple[str, ...]) -> RunFacts:
    return RunFacts(
        name=folder.path.name,
        model=resolved.model.model or "small",
        parameters=models.parameter_count(parts.network),
        dataset=dataset.name,
        device=_device_name(parts.device),
        world_size=parts.ranks.world_size,
        epochs=parts.epochs,
        steps_per_epoch=parts.pipeline.steps_per_epoch,
        global_batch=parts.global_batch,
        out_dir=str(folder.path),
        gpu_uuids=gpu_uuids(parts.ranks, parts.device),
        notes=notes,
        start_epoch=parts.progress.epoch + 1,
        start_step=parts.progress.step_in_epoch,
        best_accuracy=parts.progress.best_accuracy,
    )


def _environment(parts: Parts, facts: RunFacts) -> dict[str, object]:
    """What a reader of the history needs to compare runs."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "model": facts.model,
        "parameters": facts.parameters,
        "dataset": facts.dataset,
        "device": facts.device,
        "world_size": facts.world_size,
        "threads_per_rank": torch.get_num_threads(),
        "precision": parts.precision.mode,
        "command": [sys.argv[0], *redacted(sys.argv[1:])],
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _known(value: int | None) -> int:
    """An option that `resolve` has filled in."""
    assert value is not None
    return value
