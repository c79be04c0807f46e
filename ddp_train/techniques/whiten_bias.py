"""Freezes the first layer of the model `speedrun` after some epochs (Jordan 2024, arXiv:2404.00498, section 3.2).

Its whitening kernels are never trained; its bias is, for the first epochs of a run. After them the layer is computed
without a graph, so that the backward pass ends before it and leaves out the gradient of the largest activations of
the network. Effect: none on accuracy that its author found, with three epochs. Cost: none, a shorter backward pass. It
combines with everything; --lookahead sets the bias to the slow one in its first update after these epochs.

Which layers have a graph follows from the epoch alone, so a resumed run needs no state. DistributedDataParallel waits
for a gradient of every parameter that it was made with: on several ranks the bias gets a gradient of zero, by way
of the logits. That is removed before the optimizer's step, since momentum would still move the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddp_core.errors import UserError
from ddp_train.models.speedrun import SpeedrunNet
from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--whiten-bias-epochs N`. Errors: UserError for a network other than speedrun."""
    network, epochs = context.network, context.config.model.whiten_bias_epochs
    if not isinstance(network, SpeedrunNet):
        raise UserError(f"--whiten-bias-epochs {epochs}: --model {context.config.model.model} has no whitening layer")
    assert epochs is not None
    bias = network.whiten.bias
    assert bias is not None
    network.zero_for_whiten = context.ranks.world_size > 1

    def before_step(moment: Moment) -> bool:
        """Choose by the epoch whether the first layer is trained; returns that."""
        network.trains_whiten = moment.epoch < epochs
        return network.trains_whiten

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        """Remove the bias's gradient before a step that does not train the first layer."""
        if name == "step" and not network.trains_whiten:
            bias.grad = None
        yield

    return Technique(name="whiten_bias", before_step=before_step, phase=phase)
