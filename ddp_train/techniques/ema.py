"""Exponential moving average of the weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780).

After every step average = DECAY * average + (1 - DECAY) * weights; evaluated and kept as the best model is the average,
batch statistics included. Effect: the noise of the last steps is averaged away, which makes a large learning rate late
in a run bearable. Cost: one copy of the network and one pass over the weights a step. DECAY must fit the run's length:
the average is over about 1 / (1 - DECAY) steps; `--ema-warmup` shortens that at the start. Not to be combined with SWA,
which evaluates an average of its own.

torch.optim.swa_utils does the averaging. It would average counts (num_batches_tracked) as well; here they are those
of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """`--ema DECAY`, `--ema-warmup`."""
    options = context.config.regularize
    assert options.ema is not None
    ema = _Ema(context.network, options.ema, options.ema_warmup)
    return Technique(name="ema", after_step=ema.after_step, evaluated=ema.averaged.module, state=ema.averaged)


class _Ema:
    def __init__(self, network: nn.Module, decay: float, warmup: bool) -> None:
        self._network, self._most, self._warmup = network, decay, warmup
        self._decay = decay
        self.averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)
        pairs = zip(self.averaged.module.buffers(), network.buffers(), strict=True)
        self._counts = [(mine, its) for mine, its in pairs if not mine.is_floating_point()]

    def after_step(self, moment: Moment) -> None:
        """Take the new weights in."""
        # That of TensorFlow's ExponentialMovingAverage: the first averages are short.
        self._decay = min(self._most, (1 + moment.step) / (10 + moment.step)) if self._warmup else self._most
        self.averaged.update_parameters(self._network)
        for mine, its in self._counts:
            mine.copy_(its)

    @torch.no_grad()
    def _average(self, averages: Sequence[Tensor], values: Sequence[Tensor], taken: Tensor | int) -> None:
        if averages[0].is_floating_point():
            get_ema_multi_avg_fn(self._decay)(averages, values, taken)
