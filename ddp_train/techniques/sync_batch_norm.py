"""Batch statistics over all ranks (`--sync-batch-norm`): they do not depend on how a global batch is split.

Effect: a run on several ranks, with equal shares or not, has the batch statistics, gradients and running estimates of
the single process; small per-rank batches no longer make them noisy. Cost: two small collectives for each layer and
pass, in which every rank waits for the slowest. With --accumulate the statistics are those of one micro-batch of all
ranks. --shares measured switches it on. Source: torch.nn.SyncBatchNorm on GPUs, models/sync_batch_norm.py elsewhere.
"""

from __future__ import annotations

from torch import nn

from ddp_train.models.sync_batch_norm import synchronise
from ddp_train.technique import Context, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--sync-batch-norm`."""

    def edit(network: nn.Module) -> nn.Module:
        """Synchronize the batch norm layers of a network."""
        synchronise(network)
        return network

    return Technique(name="sync_batch_norm", edit=edit)
