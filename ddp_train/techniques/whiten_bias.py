"""The first layer of speedrun stands still after some epochs (Jordan 2024, arXiv:2404.00498, section 3.2).

Its whitening kernels are never trained; its bias is, for the first epochs of a run. After them the layer is computed
without a graph, so that the backward pass ends before it: it leaves out the gradient of the largest activations of the
network. Effect: on accuracy none that its author found; three epochs in his runs. Cost: none, a shorter backward pass.
It combines with everything; --lookahead takes the bias to its slow weights at its first meeting after the last epoch.

Which layers have a graph follows from the epoch alone, so a resumed run needs no state. DistributedDataParallel waits
for a gradient of every parameter that it was made with: on several ranks the bias gets one of zero, by way of the
logits. It is taken away before the optimizer's step, whose momentum would move the bias all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddp_core.errors import UserError
from ddp_train.models.speedrun import SpeedrunNet
from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """`--whiten-bias-epochs N`. Errors: UserError for another network than speedrun."""
    network, epochs = context.network, context.config.model.whiten_bias_epochs
    if not isinstance(network, SpeedrunNet):
        raise UserError(f"--whiten-bias-epochs {epochs}: --model {context.config.model.model} has no whitening layer")
    assert epochs is not None
    bias = network.whiten.bias
    assert bias is not None
    network.zero_for_whiten = context.ranks.world_size > 1

    def before_step(moment: Moment) -> bool:
        network.trains_whiten = moment.epoch < epochs
        return network.trains_whiten

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        if name == "step" and not network.trains_whiten:
            bias.grad = None
        yield

    return Technique(name="whiten_bias", before_step=before_step, phase=phase)
