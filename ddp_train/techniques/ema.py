"""Exponential moving average of the weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780).

After every step average = DECAY * average + (1 - DECAY) * weights. The average, batch statistics included, is evaluated
and kept as the best model. Effect: the noise of the last steps is averaged away, which allows a large learning
rate late in a run. Cost: one copy of the network and one pass over the weights a step. DECAY must fit the run's length:
the average is over about 1 / (1 - DECAY) steps; `--ema-warmup` shortens that at the start. Not to be combined with SWA,
which evaluates an average of its own.

The average is a torch.optim.swa_utils.AveragedModel, updated here: its own update would wait for the GPU in each step,
because its counter is on the host, and would average counts (num_batches_tracked), which are copied here.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddp_train.buffers import CurrentBuffers
from ddp_train.technique import Context, Moment, Technique
from ddp_train.torch_internals import foreach


def create(context: Context) -> Technique:
    """Create the technique of `--ema DECAY`, `--ema-warmup`."""
    options = context.config.regularize
    assert options.ema is not None
    return average(context.network, options.ema, warmup=options.ema_warmup)


def average(network: nn.Module, decay: float, *, warmup: bool = False) -> Technique:
    """An average of the weights of `network`, with this decay."""
    ema = _Ema(network, decay, warmup)
    return Technique(name="ema", after_step=ema.after_step, evaluated=ema.averaged.module, state=ema.averaged)


class _Ema:
    def __init__(self, network: nn.Module, decay: float, warmup: bool) -> None:
        self._most, self._warmup = decay, warmup
        self.averaged = AveragedModel(network)
        self._parameters = [*zip(self.averaged.module.parameters(), network.parameters(), strict=True)]
        self._mine, self._its = CurrentBuffers(self.averaged.module), CurrentBuffers(network)
        self._pair()

    def _pair(self) -> None:
        """Pair the averages with the values that they follow; a buffer that changed its kind starts afresh."""
        pairs = zip(self._mine.tensors, self._its.tensors, strict=True)
        self._mine.put([a if (a.shape, a.dtype) == (v.shape, v.dtype) else v.detach().clone() for a, v in pairs])
        self._values: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        """The averages and the values that they follow, by dtype."""
        self._counts: list[tuple[Tensor, Tensor]] = []
        for average, value in chain(self._parameters, zip(self._mine.tensors, self._its.tensors, strict=True)):
            if average.is_floating_point():
                of_type = self._values.setdefault(average.dtype, ([], []))
                of_type[0].append(average)
                of_type[1].append(value)
            else:
                self._counts.append((average, value))

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Add the new weights to the average."""
        # The warm-up of TensorFlow's ExponentialMovingAverage: the first averages are over few steps.
        decay = min(self._most, (1 + moment.step) / (10 + moment.step)) if self._warmup else self._most
        first = not self.averaged.n_averaged  # on the host
        if any([self._mine.replaced(), self._its.replaced()]):
            self._pair()
        for averages, values in self._values.values():
            foreach("copy_", averages, values) if first else foreach("lerp_", averages, values, 1 - decay)
        for mine, its in self._counts:
            mine.copy_(its)
        self.averaged.n_averaged += 1
