"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks are recomputed in the backward pass.

Effect: only the input of each block is kept, so that activation memory falls to about the inputs of all blocks and the
inside of one. Results are the same bit for bit, with dropout and batch statistics too. Cost: a second forward pass of
the blocks, about a third of a step's arithmetic. A hook on a layer within a block is called twice a step. Not with
torch.compile, which decides by itself what to recompute.

A block is a child of a Sequential that has child layers and is not itself a sequence of blocks. In a Sequential of
single layers a block is a convolution or linear layer with all layers up to the next such layer.
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
    """Create the technique of `--checkpoint-activations`. Errors: UserError for a model in which no block is found."""

    def edit(network: nn.Module) -> nn.Module:
        """Checkpoint the blocks of a network. Errors: UserError where there are none."""
        if checkpoint_blocks(network) == 0:
            raise UserError(
                f"--checkpoint-activations: no blocks are found in --model {context.config.model.model}; "
                "they are the children of an nn.Sequential"
            )
        return network

    return Technique(name="checkpoint_activations", edit=edit)


def checkpoint_blocks(network: nn.Module) -> int:
    """Make each block of `network` recompute in the backward pass; returns the number of modules changed.

    In place, by a change to a subclass that has another `forward`: names, state_dict and isinstance stay as they are.
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
    """Whether a module is a sequence of blocks rather than one block."""
    return type(module) is nn.Sequential and any(_has_layers(child) for child in module)


def _starts_in_place(module: nn.Module) -> bool:
    """Whether the first layer overwrites the block's input, which recomputation needs."""
    first = next((m for m in module.modules() if not (_has_layers(m) or isinstance(m, nn.Identity))), None)
    return bool(getattr(first, "inplace", False))


@cache
def _as_block(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward pass is recomputed in the backward pass."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        """The forward pass of `kind`, recomputed in the backward pass."""
        return _run(self, lambda x: kind.forward(self, x), x)

    return type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})


class _Pieces(nn.Sequential):
    """A Sequential of single layers, in pieces that begin at its convolutions and linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        """x: the input of the first layer; returns the output of the last one."""
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
    """`forward(x)`, recomputed in the backward pass if there will be one."""
    if not (module.training and torch.is_grad_enabled()):
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The contexts of the forward pass and of its recomputation."""
        return contextlib.nullcontext(), _statistics_untouched(module)

    result: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    return result


@contextlib.contextmanager
def _statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Let batch norm compute as in training, with copies of its running estimates, which contain this batch already."""
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS)]
    buffers = [(norm, name, value) for norm in norms for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in buffers:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in buffers:
            setattr(norm, name, value)
