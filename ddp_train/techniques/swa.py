"""Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407): the mean of the weights at the ends of epochs.

From START on the learning rate goes to a constant, at which the weights wander around a wide minimum; the mean of the
weights at the ends of epochs lies in its middle. The mean is evaluated and kept as the best model. It has no batch
statistics from training, so they are estimated in one pass over the training set before each evaluation. Until the
first epoch that ends after START, the trained network is evaluated. Effect: better generalisation than the
last weights. Cost: a copy of the network, and for networks with batch norm a forward pass over the training set an
epoch. Not to be combined with EMA, which evaluates an average of its own. With --scheduler plateau the constant rate
is multiplied by the scheduler's factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ddp_train.data.pipeline.window import Batch
from ddp_train.models.sync_batch_norm import BATCH_NORMS
from ddp_train.optim.lr_schedule import Schedule
from ddp_train.optim.precision import Precision
from ddp_train.technique import Context, Moment, Technique

FRACTION_OF_PEAK = 0.5
"""Default of the constant rate, as a fraction of the peak: the paper has 0.05 with a peak of 0.1."""


def create(context: Context) -> Technique:
    """Create the technique of `--swa START`, `--swa-lr`, `--swa-anneal`."""
    options = context.config.regularize
    assert options.swa is not None
    per_epoch = context.steps_per_epoch
    start = round((options.swa if options.swa >= 1 else options.swa * context.epochs) * per_epoch)
    target = FRACTION_OF_PEAK if options.swa_lr is None else options.swa_lr / context.peak_rate
    swa = _Swa(context, start)
    return Technique(
        name="swa",
        schedule=lambda schedule: annealed(schedule, start, round(options.swa_anneal * per_epoch), target),
        after_step=swa.after_step,
        before_evaluation=swa.before_evaluation,
        evaluated=swa.averaged.module,
        state=swa.averaged,
    )


def annealed(schedule: Schedule, start: int, steps: int, target: float) -> Schedule:
    """`schedule` up to step `start`; from its rate there, half a cosine over `steps` steps to `target`, which stays.

    torch.optim.swa_utils.SWALR as a function of the step.
    """

    def factor(step: int) -> float:
        """The factor on the peak learning rate for `step`."""
        if step < start:
            return schedule(step)
        share = min(1.0, (step - start) / steps) if steps else 1.0
        weight = (1 - math.cos(math.pi * share)) / 2
        return target * weight + schedule(start) * (1 - weight)

    return factor


class _Swa:
    def __init__(self, context: Context, start: int) -> None:
        self._network, self._precision = context.network, context.precision
        self._start, self._per_epoch = start, context.steps_per_epoch
        self._by_counts = context.config.run.reproducible
        self.averaged = AveragedModel(context.network)

    def after_step(self, moment: Moment) -> None:
        """Add the weights to the mean at the end of an epoch."""
        done = moment.step + 1
        if done > self._start and done % self._per_epoch == 0:
            self.averaged.update_parameters(self._network)

    def before_evaluation(self, batches: Iterable[Batch]) -> None:
        """Estimate the mean's batch statistics; while there is no mean, copy the network in its place."""
        if self.averaged.n_averaged == 0:
            self.averaged.module.load_state_dict(self._network.state_dict())
        else:
            estimate_statistics(self.averaged.module, batches, self._precision, by_counts=self._by_counts)


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, batches: Iterable[Batch], precision: Precision, *, by_counts: bool = False
) -> None:
    """Estimate batch norm's running statistics again: the plain mean over `batches` (not read without batch norm).

    All other layers are in evaluation mode, so that dropout neither disturbs the estimate nor draws a number. A frozen
    batch norm, which stays in evaluation mode in training, keeps its statistics.
    by_counts: num_batches_tracked weights each batch (which waits for a GPU), since under --reproducible `batches` sets
    the buffers back between logical shards.
    """
    was_training = network.training
    network.train()
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats and m.training]
    if not norms:
        network.train(was_training)
        return
    momenta = [module.momentum for module in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = None if by_counts else 1 / number
        with precision.autocast():
            network(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)
