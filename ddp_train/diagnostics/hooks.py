"""Hooks: what the layers of any network compute and what flows back to them, for a block of code.

    with watch(network, names=["features.0"]) as seen:
        loss(network(images)).backward()
    seen.activations["features.0"].mean, seen.gradients["features.0"].largest

Nothing stays on the network afterwards. A layer is a module without children; its name is that of `named_modules()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Statistics", "Watch", "each_output", "layers", "statistics", "watch"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a tensor's finite values, NaN if there are none. `zeros`: share of exact zeros in all values."""

    mean: float
    std: float
    """Population standard deviation: the sum of squares is divided by the count."""
    largest: float
    """The largest absolute value."""
    zeros: float
    not_finite: int
    """How many values are infinite or NaN."""
    count: int


@dataclass(slots=True)
class Watch:
    """Layer name -> statistics of its latest output (forward order), and of that output's gradient (backward order)."""

    activations: dict[str, Statistics] = field(default_factory=dict)
    gradients: dict[str, Statistics] = field(default_factory=dict)


def statistics(values: Tensor) -> Statistics:
    """The statistics of a tensor of any shape and type; waits for the device."""
    values = values.detach().float()
    finite = values[torch.isfinite(values)]
    mean, std, largest = math.nan, math.nan, math.nan
    if finite.numel():
        mean, std = finite.mean().item(), finite.std(correction=0).item()
        largest = finite.abs().max().item()
    zeros = (values == 0).float().mean().item() if values.numel() else math.nan
    return Statistics(mean, std, largest, zeros, values.numel() - finite.numel(), values.numel())


def layers(network: nn.Module, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    """The modules of these names, by default those without children. Errors: ValueError for an unknown name."""
    modules = dict(network.named_modules())
    if names is None:
        return {name: module for name, module in modules.items() if not any(module.children())}
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(
            f"the network has no module {missing[0]!r}; it has {', '.join(name for name in modules if name)}"
        )
    return {name: modules[name] for name in names}


@contextmanager
def each_output(
    network: nn.Module, see: Callable[[str, Tensor], None], names: Collection[str] | None = None
) -> Iterator[None]:
    """Within the block, call `see` with the name and the output (a tensor) of each layer at each forward pass."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        """The forward hook of the layer `name`."""

        def look(module: nn.Module, inputs: object, output: object) -> None:
            """Pass on an output that is a tensor."""
            if isinstance(output, Tensor):
                see(name, output)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in layers(network, names).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(network: nn.Module, names: Collection[str] | None = None) -> Iterator[Watch]:
    """Measure the layers' outputs and the outputs' gradients in every pass in the block; the latest values are kept.

    The gradient hook is on the output, not on the module, so that it also sees in-place layers. Errors: ValueError
    for a name that the network does not have. Each statistic waits for the device.
    """
    seen = Watch()
    watching = True

    def see(name: str, output: Tensor) -> None:
        """Record an output, and let its gradient be recorded."""
        seen.activations[name] = statistics(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: keep(name, gradient))

    def keep(name: str, gradient: Tensor) -> None:
        """Record a gradient while the block is active."""
        if watching:
            seen.gradients[name] = statistics(gradient)

    with each_output(network, see, names):
        try:
            yield seen
        finally:
            watching = False
