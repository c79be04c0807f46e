"""Lookahead (Zhang et al. 2019, arXiv:1907.08610): every K steps, slow weights go a part of the way to the fast ones.

The optimizer trains the fast weights. After K steps slow += ALPHA * (fast - slow), and the fast weights start again
from there; the optimizer's own state stays. Evaluated and kept as the best model are the slow weights, as in the paper,
with the batch statistics of training. Effect: less variance, less dependence on the learning rate. Cost: one copy of
the weights. Every optimizer, SAM too, can be inside.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """`--lookahead K`, `--lookahead-alpha`."""
    options = context.config.optim
    assert options.lookahead is not None
    lookahead = _Lookahead(context.network, options.lookahead, options.lookahead_alpha)
    return Technique(name="lookahead", after_step=lookahead.after_step, evaluated=lookahead.slow, state=lookahead)


class _Lookahead:
    def __init__(self, network: nn.Module, steps: int, alpha: float) -> None:
        self._network, self._steps, self._alpha = network, steps, alpha
        # Own weights, but the same buffers: those of training, whatever happens to them.
        self.slow = copy.deepcopy(network, {id(buffer): buffer for buffer in network.buffers()})

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Meet the fast weights after every K steps of the run."""
        if (moment.step + 1) % self._steps == 0:
            for slow, fast in zip(self.slow.parameters(), self._network.parameters(), strict=True):
                slow.lerp_(fast, self._alpha)
                fast.copy_(slow)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.slow.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow.load_state_dict(state, strict=False)
        if missing := dict(self.slow.named_parameters()).keys() ^ state.keys():
            raise ValueError(f"its slow weights are of another model ({sorted(missing)[0]})")
