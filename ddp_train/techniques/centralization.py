"""Gradient centralisation (Yong et al. 2020, arXiv:2004.01461): the mean is subtracted from each output's gradient.

For a weight of two dimensions or more, the gradient of each output (row or kernel) loses its mean over all of its
inputs. Effect: smoother training and slightly better generalisation with SGD, as the paper reports. Cost: one pass over
the gradients. It acts before clipping. It combines with everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Create the technique of `--centralize-gradients`."""
    return Technique(name="centralize_gradients", gradient=centralize)


def centralize(parameters: Sequence[nn.Parameter], moment: Moment) -> None:
    """Centralize in place every gradient of two dimensions or more."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.ndim > 1:
            gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))
