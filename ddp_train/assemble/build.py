"""The composition root: from a configuration to a trainer that is ready to run.

`build` proceeds in this order: data, recommendations, run folder, model, optimizer, resume, observers.
Every mistake that can be found before the first step is reported here, on all ranks together.
"""

from __future__ import annotations

import math
import platform
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_core.errors import UserError, one_line
from ddp_core.files import replacing, write_text
from ddp_core.redaction import redacted
from ddp_train import data, models
from ddp_train.assemble.factories import (
    context_of,
    create_balance,
    create_pipeline,
    create_precision,
    deliver_as_cast,
    optimization_of,
    without_effect,
    without_lone_sample,
    wrap,
)
from ddp_train.assemble.resolve_options import resolve
from ddp_train.checkpoint.manager import Saver
from ddp_train.checkpoint.progress import Advice, Progress, describe_run
from ddp_train.checkpoint.trained_state import TrainedState
from ddp_train.checkpoint.weights import holds_weights, load_weights
from ddp_train.config.options import DEFAULT_LOG_EVERY, Config, to_dict
from ddp_train.config.parse import with_values
from ddp_train.config.validation import check, read_interval, resume_file
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.data.sources.class_weights import weigh_classes
from ddp_train.data.sources.dataset import describe_left_out, load_on_ranks
from ddp_train.data.sources.samples import Dataset, DatasetFacts
from ddp_train.data.sources.validation import split_off
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import (
    Ranks,
    device_name,
    gpu_uuids,
    on_first_rank,
    take_first_ranks,
    together,
)
from ddp_train.distributed.shm_allreduce import share
from ddp_train.engine.components import Components
from ddp_train.engine.nan_guard import NanGuard, Replay
from ddp_train.engine.reproducible import Sharded
from ddp_train.engine.reproducible_cost import measure
from ddp_train.engine.stop_signals import StopSignals
from ddp_train.engine.trainer import Trainer
from ddp_train.models.sync_batch_norm import SynchronisedBatchNorm
from ddp_train.models.trainable import freeze, zero_init_residual
from ddp_train.observers.console import create_progress
from ddp_train.observers.records import Observer, RunFacts
from ddp_train.observers.tensorboard import TensorBoardObserver
from ddp_train.observers.wandb import WandbObserver
from ddp_train.run_folder.claim import claim, is_restart, unmark_done
from ddp_train.run_folder.files import HistoryObserver, RunFolder
from ddp_train.run_folder.lock import RunLock
from ddp_train.technique import Context, Technique
from ddp_train.techniques.registry import compose
from ddp_train.torch_internals import can_complete_allreduces, leave_compiler_out
from gpu_topology.host.host import read_host


@dataclass(frozen=True)
class Run:
    """A trainer with the configuration, folder and facts of its run. Only rank 0 has observers."""

    trainer: Trainer
    config: Config
    folder: RunFolder
    facts: RunFacts
    observers: Sequence[Observer]
    dataset: Dataset
    lock: RunLock


def build(config: Config, ranks: Ranks, device: torch.device, stop: StopSignals | None = None) -> Run:
    """Put a run together. The process group must have been started. Errors: UserError, on all ranks alike."""
    dataset, notes = _load_data(config, ranks)
    resolved, reasons = resolve(config, dataset, ranks, device)
    together(lambda: check(resolved), ranks)
    dataset = together(lambda: data.normalised(dataset, resolved.data.normalize), ranks)
    lock = RunLock()
    path, moved = on_first_rank(lambda: claim(resolved, lock, restarted=is_restart()), ranks)
    resolved, folder = with_values(resolved, {"out_dir": str(path)}), RunFolder(path)
    source = on_first_rank(lambda: resume_file(resolved), ranks)
    weights = resolved.model.weights if source is None else None
    network, started = _network(resolved, dataset, ranks, device, weights=weights)
    resolved, left_out = without_lone_sample(resolved, network, dataset, ranks)
    pipeline = together(lambda: create_pipeline(resolved, dataset, ranks, device), ranks)
    precision = create_precision(resolved, device)
    bare = context_of(resolved, dataset, network, pipeline, precision, ranks)
    context, techniques = together(lambda: compose(bare), ranks)
    together(lambda: deliver_as_cast(context, techniques, pipeline), ranks)
    balance = create_balance(resolved, pipeline, ranks)
    techniques = (*techniques, *([balance.technique()] if balance is not None else []))
    components, saver, cost = _components(context, techniques, pipeline, folder, len(dataset.train.labels))
    # After the network is wrapped: DistributedDataParallel's constructor copies rank 0's buffers to all ranks.
    progress, resumed = _resume(source, saver, folder, dataset, resolved, ranks)
    components = replace(components, progress=progress, stop=stop or StopSignals())
    shared = () if balance is None else (together(lambda: balance.start(components), ranks),)
    if moved is not None:
        notes = (*notes, moved)
    idle = without_effect(resolved, dataset, pipeline, device)
    notes = (*notes, *started, *left_out, *idle, *cost, *resumed, *shared)
    facts = _facts(resolved, dataset, components, folder, notes)
    if ranks.is_first:
        unmark_done(folder.path)
        folder.write_config(resolved)
        write_text(folder.path / "dataset.json", DatasetFacts.of(dataset).dump())
        folder.write_plan(_environment(components, facts), reasons)
        components = replace(components, observers=_observers(resolved, folder, components, facts, source))
    return Run(Trainer(components), resolved, folder, facts, components.observers, dataset, lock)


def _network(
    resolved: Config, dataset: Dataset, ranks: Ranks, device: torch.device, *, weights: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with its first weights, the same on all ranks, and lines for the user.

    weights: the source to read them from; None: random weights, which a checkpoint may replace later.
    """
    if not resolved.model.compile:
        leave_compiler_out()
    # A user's own model may draw its first weights from any of these generators.
    random.seed(resolved.run.seed)
    np.random.seed(resolved.run.seed % 2**32)
    torch.manual_seed(resolved.run.seed)
    sizes = len(dataset.classes), dataset.image_shape
    network = together(lambda: models.create_from_options(resolved.model, *sizes, device), ranks)
    together(lambda: models.init_from_data(network, dataset, device), ranks)
    options, notes = resolved.model, tuple[str, ...]()
    if options.zero_init_residual:
        together(lambda: zero_init_residual(network), ranks)
    if weights is not None:
        notes = on_first_rank(lambda: load_weights(network, weights, options.model or "small"), ranks)
    take_first_ranks(network, ranks)  # before a technique copies the weights
    if (patterns := options.freeze) is not None:
        notes = (*notes, *together(lambda: freeze(network, patterns), ranks))
    return network, notes


def _components(
    context: Context, techniques: Sequence[Technique], pipeline: Pipeline, folder: RunFolder, train_samples: int
) -> tuple[Components, Saver, tuple[str, ...]]:
    """The components of a new run, the saver among them, and lines for the user."""
    options, network, ranks, device = context.config, context.network, context.ranks, context.device
    optimizer, schedule, loss = together(lambda: optimization_of(context, techniques), ranks)
    flag_exchange, advice = FlagExchange(ranks), Advice(f"--resume {folder.path}")
    identity = describe_run(context, train_samples, pipeline.sampler.shares)
    saver = _saver(TrainedState(context, techniques, optimizer, identity), context, flag_exchange, folder, advice)
    gradient_sync = None if options.shards is None else Sharded(network, ranks, device, options.shards)
    cost = _cost_of_bits(context)
    model, ddp, untrained = wrap(context)
    allreduce_hook = _allreduce_hook(ddp, network, ranks, device, flag_exchange)
    components = Components(
        ranks=ranks,
        device=device,
        network=network,
        model=model,
        ddp=ddp,
        pipeline=pipeline,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        precision=context.precision,
        epochs=context.epochs,
        classes=context.classes,
        global_batch=context.global_batch,
        stop_after=math.inf if options.run.stop_after is None else options.run.stop_after,
        seed=options.run.seed,
        techniques=techniques,
        log_every=options.run.log_every or DEFAULT_LOG_EVERY,
        cuda_graphs=options.model.compile_mode not in (None, "default"),
        gradient_sync=gradient_sync,
        saver=saver,
        nan_guard=_nan_guard(context, techniques, pipeline, flag_exchange, folder.path, advice),
        allreduce_hook=allreduce_hook,
        flag_exchange=flag_exchange,
        advice=advice,
    )
    return components, saver, (*cost, *untrained)


def _saver(
    contents: TrainedState, context: Context, flag_exchange: FlagExchange, folder: RunFolder, advice: Advice
) -> Saver:
    """Create the object that saves checkpoints. Errors: UserError for a state that they cannot hold."""
    together(contents.check, context.ranks)
    interval, place = read_interval(str(context.config.run.save_every), "--save-every"), (context.ranks, context.device)
    files = folder.latest, folder.best_model
    return Saver(contents, contents.identity, interval, *place, flag_exchange, *files, advice)


def _nan_guard(
    context: Context,
    techniques: Sequence[Technique],
    pipeline: Pipeline,
    flag_exchange: FlagExchange,
    folder: Path,
    advice: Advice,
) -> NanGuard:
    """Create the object that handles losses and gradients that are not finite."""
    changes = [technique.batch for technique in techniques if technique.batch is not None]
    replay = Replay(context.network, context.precision, pipeline, changes)
    return NanGuard(context.network, context.precision, context.ranks, flag_exchange, folder, replay, advice)


def _allreduce_hook(
    ddp: DistributedDataParallel | None, network: nn.Module, ranks: Ranks, device: torch.device, flags: FlagExchange
) -> AllreduceHook | None:
    """None where DistributedDataParallel uses its own all-reduce; then a failed step cannot be retried."""
    synchronised = any(isinstance(module, SynchronisedBatchNorm) for module in network.modules())
    if ddp is None or synchronised or ddp.find_unused_parameters or not can_complete_allreduces(ddp):
        return None
    shared = share(ddp.module, ranks, device, lambda: flags.exchange({}))
    return AllreduceHook(ddp, shared, by_group=device.type == "cuda")


def _load_data(config: Config, ranks: Ranks) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset, and notes for the user, such as why it is not the one that was expected.

    Rank 0 downloads, one rank per node decodes, all map the result.
    """
    with heartbeat.during("data preparation"):
        name, note = on_first_rank(lambda: data.resolve(config.data), ranks)
        dataset = load_on_ranks(name, config.data, ranks)
    if config.data.val_split is not None:
        share = config.data.val_split
        dataset = together(lambda: split_off(dataset, share, config.run.seed), ranks)
    if (wanted := config.regularize.class_weights) is not None:
        dataset = together(lambda: weigh_classes(dataset, wanted), ranks)
    return dataset, (*((note,) if note else ()), *dataset.notes, *describe_left_out(dataset))


def _resume(
    source: Path | None, saver: Saver, folder: RunFolder, dataset: Dataset, resolved: Config, ranks: Ranks
) -> tuple[Progress, tuple[str, ...]]:
    """Restore the checkpoint `source` into everything that has state; returns its progress, and lines for the user.

    source: None for a new run. Errors: UserError, on all ranks alike.
    """
    if source is None:
        return Progress(), ()

    def restore() -> tuple[Progress, tuple[str, ...]]:
        """Check the data and restore on this rank. Errors: UserError."""
        if resolved.data.changed_data == "stop" and (facts := source.parent / "dataset.json").is_file():
            DatasetFacts.read(facts).refuse_other_data(dataset)
        try:
            progress, notes = saver.restore(source)
        except UserError:
            if holds_weights(source):
                words = "holds weights, not the state of a run: to start from them"
                raise UserError(f"--resume {source}: {words}, --weights {source}") from None
            raise
        if resolved.data.changed_data == "accept" and resolved.data.val_split is not None:
            drawn = "the validation images are drawn anew and may include images that were trained on"
            notes = (*notes, f"--changed-data accept with --val-split: {drawn}")
        return progress, notes

    progress, notes = together(restore, ranks)
    return progress, (*notes, *_take_best_model(source, folder, progress, ranks))


def _take_best_model(source: Path, folder: RunFolder, progress: Progress, ranks: Ranks) -> tuple[str, ...]:
    """Copy the best model of a run that continues in another folder. Where there is none, the best epoch is one of
    those to come; returns a line for the user."""

    def copied() -> bool:
        """Copy the best model from beside `source`; returns whether there is one."""
        theirs = source.with_name(folder.best_model.name)
        if theirs.is_file() and theirs.resolve() != folder.best_model.resolve():
            with theirs.open("rb") as file, replacing(folder.best_model) as own:
                shutil.copyfileobj(file, own)
        return theirs.is_file()

    if progress.best_epoch == 0 or on_first_rank(copied, ranks):
        return ()
    best, progress.best_epoch = progress.best_epoch, 0
    progress.best_accuracy, progress.best_loss, progress.best_balanced = -1.0, math.inf, -1.0
    return (f"{folder.best_model.name} of epoch {best} is not beside {source}: the best epoch is one from here on",)


def _cost_of_bits(context: Context) -> tuple[str, ...]:
    """A line with the measured cost of --reproducible; none for a run that only measures."""
    run, diagnostics = context.config.run, context.config.diagnostics
    if context.config.shards is None or run.tune is not None or diagnostics.overfit_one_batch is not None:
        return ()
    plain_threads = read_host().threads(context.ranks.local_world_size)
    cost = together(lambda: measure(context, plain_threads), context.ranks)
    threads = f", threads a rank: {torch.get_num_threads()}" if context.device.type == "cpu" else ""
    return (f"--reproducible: {context.config.shards} logical shards{threads}; {cost}",)


def _observers(
    resolved: Config, folder: RunFolder, components: Components, facts: RunFacts, source: Path | None
) -> tuple[Observer, ...]:
    """Create rank 0's observers. The history comes first: what the others show must be on disk already."""
    history = folder.open_history(_environment(components, facts), components.progress.epoch, source)
    screen = create_progress(each=resolved.run.log_every is not None)
    observers: list[Observer] = [HistoryObserver(history, folder.curves), screen]
    if resolved.run.tensorboard:
        observers.append(TensorBoardObserver(folder.tensorboard))
    if resolved.diagnostics.wandb:
        observers.append(WandbObserver(folder.path, resolved.diagnostics.wandb_project, to_dict(resolved)))
    observers += [technique.observer for technique in components.techniques if technique.observer is not None]
    return tuple(observers)


def _facts(
    resolved: Config, dataset: Dataset, components: Components, folder: RunFolder, notes: tuple[str, ...]
) -> RunFacts:
    """The facts of the run for observers."""
    return RunFacts(
        name=folder.path.name,
        model=resolved.model.model or "small",
        parameters=models.parameter_count(components.network),
        dataset=dataset.name,
        device=device_name(components.device),
        world_size=components.ranks.world_size,
        epochs=components.epochs,
        steps_per_epoch=components.pipeline.steps_per_epoch,
        global_batch=components.global_batch,
        out_dir=str(folder.path),
        gpu_uuids=gpu_uuids(components.ranks, components.device),
        notes=tuple(map(one_line, notes)),
        start_epoch=components.progress.epoch + 1,
        start_step=components.progress.step_in_epoch,
        steps_before=components.progress.step,
        split=components.pipeline.selection,
        best=(components.progress.best_accuracy, -components.progress.best_loss),
        seconds_before=components.progress.total_seconds + components.progress.seconds,
    )


def _environment(components: Components, facts: RunFacts) -> dict[str, object]:
    """Facts that a reader of the history needs to compare runs."""
    all_reduce = None
    if components.ranks.world_size > 1:
        shared = components.allreduce_hook is not None and components.allreduce_hook.shared is not None
        all_reduce = "shared memory" if shared else str(torch.distributed.get_backend())
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
        "precision": components.precision.mode,
        "all_reduce": all_reduce,
        "command": [sys.argv[0], *redacted(sys.argv[1:])],
    }
