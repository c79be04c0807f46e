"""Fills in the options that are not set: the hardware is read here, `config/recommend.py` decides."""

from __future__ import annotations

import os

import torch

from ddp_train.config import recommend
from ddp_train.config.options import Config, declared, to_dict
from ddp_train.config.parse import with_values
from ddp_train.data.sources.samples import Dataset
from ddp_train.distributed.process_group import Ranks, gather
from ddp_train.engine.reproducible import pin
from gpu_topology.host.host import read_host


def resolve(
    config: Config, dataset: Dataset, ranks: Ranks, device: torch.device
) -> tuple[Config, tuple[recommend.Recommendation, ...]]:
    """Fill in every option that is not set, first by hardware, then by data; returns options and reasons."""
    by_hardware = recommend.recommend(read_hardware(ranks, device), config)
    resolved = recommend.apply(config, by_hardware)
    if resolved.data.batch_size_per_rank is not None:
        batch = resolved.data.batch_size_per_rank * ranks.world_size
        resolved = with_values(resolved, {"batch_size": batch, "batch_size_per_rank": None})
    if resolved.shards is not None:
        threads = torch.get_num_threads() if device.type == "cpu" else None
        resolved = with_values(resolved, {"reproducible_shards": resolved.shards, "reproducible_threads": threads})
    if resolved.data.accumulate is None:
        resolved = with_values(resolved, {"accumulate": 1})
    if resolved.data.shares == "measured" and ranks.world_size > 1 and "sync_batch_norm" not in config.given:
        # Otherwise the statistics of a rank with few samples would count as much as those of one with many.
        resolved = with_values(resolved, {"sync_batch_norm": True})
    samples = len(dataset.train.labels)
    least = (resolved.shards or ranks.world_size) * (resolved.data.accumulate or 1)
    if not resolved.data.drop_last and (largest := max(samples, least)) < (resolved.data.batch_size or 1):
        # A larger batch would never occur, but the learning rate and the records would be based on it.
        resolved = with_values(resolved, {"batch_size": largest})
        by_hardware = (
            *(reason for reason in by_hardware if reason.name != "batch_size"),
            recommend.Recommendation("batch_size", largest, f"all {samples:,} training images"),
        )
    by_data = recommend.recommend_for_data(dataset.name, samples, resolved.data.batch_size or 1, resolved)
    resolved = recommend.apply(resolved, by_data)
    values = to_dict(resolved)
    # Reset what a preset set for another model or optimizer, so that --config accepts the run's config.yaml later.
    idle = (o for o in declared().values() if o.only_with is not None and not o.only_with.holds(values))
    resolved = with_values(resolved, {o.name: o.default for o in idle if o.name not in resolved.wanted})
    return resolved, (*by_hardware, *by_data)


def read_hardware(ranks: Ranks, device: torch.device) -> recommend.Hardware:
    """The hardware of all ranks: total GPU memory, lowest compute capability. A collective on GPUs."""
    host = read_host()
    memory, capability = 0, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        mine = (properties.total_memory, (properties.major, properties.minor))
        everyone = gather(mine, ranks)
        memory, capability = sum(m for m, _ in everyone), min(c for _, c in everyone)
    return recommend.Hardware(
        device="cuda" if device.type == "cuda" else "cpu",
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        gpu_memory=memory,
        compute_capability=capability,
        cpus=host.usable_cpus,
        cpu_flags=host.cpu_flags,
    )


def set_arithmetic(config: Config, ranks: Ranks, device: torch.device) -> None:
    """Set this process's threads and choice of kernels, before anything is computed. Errors: see `pin`."""
    if config.shards is None:
        set_threads(ranks, device)
        # cuDNN tries its algorithms once for each shape, which pays off where few shapes recur. The fastest one may
        # differ from run to run, and with it the last bits of the results.
        any_part = config.regularize.hard_samples is not None and ranks.world_size > 1
        few_shapes = config.run.tune is None and not config.augment.progressive_resize and not any_part
        torch.backends.cudnn.benchmark = device.type == "cuda" and few_shapes and config.model.cudnn_benchmark
    else:
        # By default as many threads as one rank per shard would have: independent of the number of ranks.
        pin(config.run.reproducible_threads or read_host().threads(config.shards), device)


def set_threads(ranks: Ranks, device: torch.device) -> None:
    """On the CPU share the usable cores among the local ranks.

    OMP_NUM_THREADS is kept where the user set it. Under bare torchrun, 1 is torchrun's default; the launcher (which
    sets DDP_LAUNCH) never leaves it to torchrun. A thread count that is not one of torch's defaults was set by the
    user's program (torch.set_num_threads) and is kept.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    filler = threads == "1" and "TORCHELASTIC_RUN_ID" in os.environ and "DDP_LAUNCH" not in os.environ
    if device.type != "cpu" or not (threads is None or filler):
        return
    host = read_host()
    counted = (os.cpu_count(), len(os.sched_getaffinity(0)), host.physical_cores, host.usable_cores, host.usable_cpus)
    defaults = {1} if filler else {*counted, *(count // 2 for count in counted if count)}  # halved: two threads a core
    if torch.get_num_threads() in defaults:
        torch.set_num_threads(host.threads(ranks.local_world_size))
