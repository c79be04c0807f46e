"""Lookahead (Zhang et al. 2019, arXiv:1907.08610): every K steps, slow weights go a part of the way to the fast ones.

The optimizer trains the fast weights. After K steps slow += ALPHA * (fast - slow), and the fast weights start again
from there; the optimizer's own state stays. The slow weights are evaluated and kept as the best model, as in the paper,
with the batch statistics of training. Effect: less variance, less dependence on the learning rate. Cost: one copy of
the weights. The optimizer of the fast weights can be any, SAM included.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ddp_train.buffers import CurrentBuffers
from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--lookahead K`, `--lookahead-alpha`."""
    options = context.config.optim
    assert options.lookahead is not None
    lookahead = _Lookahead(context.network, options.lookahead, options.lookahead_alpha)
    return Technique(name="lookahead", after_step=lookahead.after_step, evaluated=lookahead.slow, state=lookahead)


class _Lookahead:
    def __init__(self, network: nn.Module, steps: int, alpha: float) -> None:
        self._network, self._steps, self._alpha = network, steps, alpha
        # A copy of the weights that shares the buffers of the trained network.
        self.slow = copy.deepcopy(network, {id(buffer): buffer for buffer in network.buffers()})
        self._slows, self._networks = CurrentBuffers(self.slow), CurrentBuffers(network)

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """After every K steps of the run, move the slow weights and restart the fast ones from them."""
        if self._networks.replaced():
            self._slows.put(self._networks.tensors)
        if (moment.step + 1) % self._steps == 0:
            for slow, fast in zip(self.slow.parameters(), self._network.parameters(), strict=True):
                slow.lerp_(fast, self._alpha)
                fast.copy_(slow)

    def state_dict(self) -> dict[str, Tensor]:
        """The slow weights by name."""
        return {name: weight.detach() for name, weight in self.slow.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the slow weights. Errors: ValueError for those of another model."""
        self.slow.load_state_dict(state, strict=False)
        if missing := dict(self.slow.named_parameters()).keys() ^ state.keys():
            raise ValueError(f"its slow weights are of another model ({sorted(missing)[0]})")
