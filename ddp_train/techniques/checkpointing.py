"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks are computed again in the backward pass.

Effect: of each block only the input is kept, so that memory for activations falls to about the inputs of the blocks and
the inside of one; nothing else changes, dropout and batch statistics included: results are the same bit for bit. Cost:
a second forward pass of the blocks, about a third of a step's arithmetic. A hook on a layer within a block is called
twice a step. Not with torch.compile, which decides by itself what is computed again.

A block is a child of a Sequential that has layers of its own and is no row of blocks in turn; in a Sequential of single
layers it is a convolution or linear layer with all that follows it up to the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddp_core.errors import UserError
from ddp_train.models.sync_batch_norm import BATCH_NORMS
from ddp_train.technique import Context, Technique

_STARTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def create(context: Context) -> Technique:
    """`--checkpoint-activations`. Errors: UserError for a model in which no block is found."""

    def edit(network: nn.Module) -> nn.Module:
        if checkpoint_blocks(network) == 0:
            raise UserError(
                f"--checkpoint-activations: no blocks are found in --model {context.config.model.model}; "
                "they are the children of an nn.Sequential"
            )
        return network

    return Technique(name="checkpoint_activations", edit=edit)


def checkpoint_blocks(network: nn.Module) -> int:
    """Let each block of `network` be computed again in the backward pass; the number of modules changed.

    In place, by a subclass that has another `forward`: names, state_dict and isinstance stay as they are.
    """
    changed = 0
    for child in network.children():
        if not (isinstance(network, nn.Sequential) and _has_layers(child)) or _has_blocks(child):
            changed += checkpoint_blocks(child)
        elif not _starts_in_place(child):
            child.__class__ = _as_block(type(child))  # type: ignore[arg-type]
            changed += 1
    single = type(network) is nn.Sequential and not any(map(_has_layers, network.children()))
    if single and any(isinstance(layer, _STARTS) for layer in network.children()):
        network.__class__ = _Pieces
        changed = 1
    return changed


def _has_layers(module: nn.Module) -> bool:
    """Whether a module has children."""
    return next(module.children(), None) is not None


def _has_blocks(module: nn.Module) -> bool:
    """Whether it is a row of blocks, not a block."""
    return type(module) is nn.Sequential and any(_has_layers(child) for child in module)


def _starts_in_place(module: nn.Module) -> bool:
    """Whether the first layer overwrites the block's input, which is what is kept."""
    first = next((m for m in module.modules() if not (_has_layers(m) or isinstance(m, nn.Identity))), None)
    return bool(getattr(first, "inplace", False))


@cache
def _as_block(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward pass is run again in the backward pass."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return _run(self, lambda x: kind.forward(self, x), x)

    return type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})


class _Pieces(nn.Sequential):
    """A Sequential of single layers, in pieces that begin at its convolutions and linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        """x: what the first layer takes; returns what the last one gives."""
        layers = list(self)
        starts = [index for index, layer in enumerate(layers) if index == 0 or isinstance(layer, _STARTS)]
        for start, end in zip(starts, [*starts[1:], len(layers)], strict=True):
            piece = layers[start:end]
            x = _run(self, lambda x, piece=piece: _through(piece, x), x)  # type: ignore[misc]
        return x


def _through(layers: list[nn.Module], x: Tensor) -> Tensor:
    """The output of layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def _run(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`forward(x)`, computed again in the backward pass, if there is going to be one."""
    if not (module.training and torch.is_grad_enabled()):
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return contextlib.nullcontext(), _statistics_untouched(module)

    result: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    return result


@contextlib.contextmanager
def _statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Batch norm computes as in training, with copies of its running estimates: they have seen this batch."""
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS)]
    buffers = [(norm, name, value) for norm in norms for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in buffers:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in buffers:
            setattr(norm, name, value)
