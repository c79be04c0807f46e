"""`--tune WHAT`: the measurements in place of training. Each returns a text, and a function that writes its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_core.files import write_text
from ddp_train import data
from ddp_train.config.options import Config
from ddp_train.config.parse import with_values
from ddp_train.data.pipeline.resident import ResidentPipeline
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.data.sources.samples import Dataset
from ddp_train.engine.trainer import Trainer
from ddp_train.tune import batch_report, estimate, learning_rate, loader
from gpu_topology.host.host import read_host

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Answer = tuple[str, Callable[[Path], Sequence[Path]]]
_MIB = 2**20


def _rate(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    """`--tune lr`: the learning rate range test."""
    found = learning_rate.range_test(trainer)

    def figure() -> Figure:
        """Draw the range test."""
        from ddp_train.plots.tuning import range_test_figure

        return range_test_figure(found.rates, found.losses, found.smoothed, found.steepest, found.suggestion)

    text = f"suggested peak learning rate {found.suggestion:.2g} (steepest fall at {found.steepest:.2g})"
    if not found.ran_away:
        text += (
            f"\nwarning: the loss never ran away, up to a rate of {found.rates[-1]:.2g}: "
            "the suggestion may be far off; compare short runs with a third of it and with three times of it (--lr)"
        )
    document = {"schema": "ddp-train-lr-range/1", **asdict(found)}
    return text, lambda folder: _write(folder, "lr_range_test", document, figure)


def _batch(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    """`--tune batch`: the batch finder."""
    found = batch_report.find_for(trainer, len(dataset.train.labels), config.run.target_utilization)

    def figure() -> Figure:
        """Draw throughput and memory over the batch size."""
        from ddp_train.plots.tuning import batch_size_figure

        speeds = [(trial.batch, found.ranks * trial.batch / trial.seconds) for trial in found.trials if trial.seconds]
        peaks = [(trial.batch, trial.peak / _MIB) for trial in found.trials if trial.peak is not None]
        limit = None if found.limit is None else found.limit / _MIB
        return batch_size_figure(speeds, peaks, limit, found.recommended)

    text = f"{batch_report.table(found)}\n{batch_report.verdict(found, trainer.components.global_batch)}"
    document = {"schema": "ddp-train-batch-size/1", **asdict(found)}
    return text, lambda folder: _write(folder, "batch_size", document, figure)


def _loader(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    """`--tune loader`: settings of the data loader."""
    components, ranks = trainer.components, trainer.components.ranks

    def make(setting: loader.Setting) -> Pipeline | None:
        """The pipeline of a setting; None where the images do not fit."""
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
            channels_last=config.model.channels_last,
            agree=False,  # each rank measures for itself, for some seconds
        )
        return None if setting.workers is None and not isinstance(pipeline, ResidentPipeline) else pipeline

    found = loader.find_loader(make, max(1, read_host().usable_cpus // ranks.local_world_size), components.device)
    document = {"schema": "ddp-train-loader/1", **asdict(found)}
    return loader.table(found), lambda folder: _write(folder, "loader", document)


def _estimate(trainer: Trainer, config: Config, dataset: Dataset) -> Answer:
    """`--tune estimate`: the memory and time of a run."""
    found = estimate.estimate(trainer, len(dataset.held_out[dataset.selection]))
    document = {"schema": "ddp-train-estimate/1", "epoch_seconds": found.epoch_seconds, **asdict(found)}
    return estimate.table(found), lambda folder: _write(folder, "estimate", document)


def _write(
    folder: Path, name: str, document: Mapping[str, object], figure: Callable[[], Figure] | None = None
) -> list[Path]:
    """NAME.json, and NAME.png where there is something to draw."""
    written = [folder / f"{name}.json"]
    write_text(written[0], json.dumps(document, indent=2) + "\n")
    if figure is not None:
        from ddp_train.plots.style import save_if_possible

        written += save_if_possible(figure, folder / f"{name}.png")
    return written


MEASUREMENTS: dict[str, Callable[[Trainer, Config, Dataset], Answer]] = {
    "lr": _rate,
    "batch": _batch,
    "loader": _loader,
    "estimate": _estimate,
}
