"""`--tune WHAT`: what can be measured in place of training. Each gives its text and what writes its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ddp_train import data
from ddp_train.config.options import Config
from ddp_train.config.parse import with_values
from ddp_train.data.pipeline.resident import ResidentPipeline
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.data.sources.samples import Dataset
from ddp_train.engine.trainer import Trainer
from ddp_train.tune import batch_report, estimate, learning_rate, loader
from gpu_topology.host.host import read_host

Answer = tuple[str, Callable[[Path], Sequence[Path]]]


def _rate(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    found = learning_rate.range_test(trainer)
    text = f"suggested peak learning rate {found.suggestion:.2g} (steepest fall at {found.steepest:.2g})"
    return text, lambda folder: learning_rate.write(found, folder)


def _batch(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    found = batch_report.find_for(trainer, len(dataset.train.labels), config.run.target_utilization)
    text = f"{batch_report.table(found)}\n{batch_report.verdict(found, trainer.components.global_batch)}"
    return text, lambda folder: batch_report.write(found, folder)


def _loader(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    components = trainer.components

    ranks = components.ranks

    def make(setting: loader.Setting) -> Pipeline | None:
        way = "auto" if setting.workers is None else "loader"
        options: dict[str, object] = {"pipeline": way, "num_workers": setting.workers or 0}
        options |= {} if setting.prefetch is None else {"prefetch_factor": setting.prefetch}
        tried = with_values(config, options)
        pipeline = data.build_pipeline(
            dataset,
            tried.data,
            tried.augment,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=components.device,
            global_batch=components.global_batch,
            accumulate=config.data.accumulate or 1,
            seed=config.run.seed,
            local_world_size=ranks.local_world_size,
        )
        return None if setting.workers is None and not isinstance(pipeline, ResidentPipeline) else pipeline

    found = loader.find_loader(make, max(1, read_host().usable_cpus // ranks.local_world_size), components.device)
    return loader.table(found), lambda folder: loader.write(found, folder)


def _estimate(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    found = estimate.estimate(trainer, len(dataset.test.labels))
    return estimate.table(found), lambda folder: estimate.write(found, folder)


MEASUREMENTS: dict[str, Callable[[Trainer, Config, Dataset], Answer]] = {
    "lr": _rate,
    "batch": _batch,
    "loader": _loader,
    "estimate": _estimate,
}
