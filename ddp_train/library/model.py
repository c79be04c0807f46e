"""`run.model(...)`: a network on this rank's device, joined with those of the other ranks.

On several ranks it is DistributedDataParallel with three differences: it has the attributes and the state_dict of the
network itself, buffers are averaged once an epoch instead of broadcast in each step, and an empty batch passes: the
network sees a made-up sample, without a trace in batch statistics, and the caller gets outputs of length 0, so that
this rank takes part in the step with a gradient of zero.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_core.errors import UserError
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.process_group import Ranks
from ddp_train.distributed.shm_allreduce import share
from ddp_train.library.reading import CannotBeEmpty, emptied, with_values
from ddp_train.torch_internals import can_complete_allreduces

_UNUSED = "find_unused_parameters"


Samples = Callable[[], tuple[int, int]]
"""Returns how many own samples a rank has in the batches that are in use: the fewest, and the most."""


class Joined(DistributedDataParallel):
    """`network` on several ranks. `samples`: see Samples."""

    def __init__(self, network: nn.Module, samples: Samples, **options: Any) -> None:
        super().__init__(network, **options)
        self._samples = samples
        self.averages = False
        """Whether the next backward pass that reaches the network averages its gradients over the ranks."""
        self.reduced = [parameter for parameter in network.parameters() if parameter.requires_grad]
        """The parameters whose gradients it averages: those that were trained when it was made."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's forward pass; gradients of its parameters are averaged over the ranks."""
        if self.reducer is None:
            return self.module(*inputs, **named)
        if torch.is_grad_enabled() and self.require_backward_grad_sync:
            self.averages = True
        fewest, most = self._samples()
        if fewest == 0 and (most == 0 or not _same(inputs, named)):
            return self._without_samples(inputs, named)
        try:
            return super().forward(*inputs, **named)
        except RuntimeError as error:
            if _UNUSED in str(error):
                raise UserError(
                    "a parameter got no gradient in the step before, and the other ranks wait for it: "
                    f"run.model(net, {_UNUSED}=True) allows that, at the cost of a look at the graph in each step"
                ) from error
            raise

    def leave(self) -> None:
        """Drop the process group; from now on this is the network alone."""
        self.reducer = self.logger = self.process_group = None  # type: ignore[assignment]

    def _without_samples(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        modes = [(module, module.training) for module in self.module.modules()]
        for module in self.module.modules():
            # Normalisation and dropout take no notice of the sample. What joins other modules stays as it is, as its
            # outputs in evaluation may be others, and so does an RNN: cuDNN has no backward pass for its evaluation.
            if next(module.buffers(recurse=False), None) is not None or next(module.children(), None) is None:
                module.training = module.training and isinstance(module, nn.RNNBase)
        try:
            if _same(inputs, named):
                return super().forward(*inputs, **named)
            with torch.no_grad():
                try:
                    fill, two = 0, self.module(*_made_up(inputs, 2), **_made_up(named, 2))
                except (RuntimeError, ValueError, IndexError):  # a length of 0, or a mask that leaves nothing
                    fill, two = 1, self.module(*_made_up(inputs, 2, 1), **_made_up(named, 2, 1))
            output = super().forward(*_made_up(inputs, 1, fill), **_made_up(named, 1, fill))
            try:
                return emptied(output, two, lists=True)
            except CannotBeEmpty:
                return output  # a loss, or an object that holds one: it counts with weight 0
        finally:
            for module, training in modes:
                module.training = training

    def __deepcopy__(self, known: dict[int, Any]) -> Any:
        """A copy is the network alone, as on one rank: the gradients of the original are those of all ranks."""
        return copy.deepcopy(self.module, known)

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        """The network's own parameters: the same names on any number of ranks."""
        return self.module.named_parameters(*args, **options)

    def named_buffers(self, *args: Any, **options: Any) -> Any:
        """The network's own buffers."""
        return self.module.named_buffers(*args, **options)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The network's own state: the same names on any number of ranks."""
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load the network's own state."""
        return self.module.load_state_dict(*args, **options)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def _made_up(value: Any, samples: int, fill: int = 0) -> Any:
    """`value` with each empty tensor replaced by one of zeros, or of `fill`, for `samples` samples."""
    if isinstance(value, Tensor) and not value.numel():
        return value.new_full([size or samples for size in value.shape], fill)
    if isinstance(value, Mapping):
        return with_values(value, {name: _made_up(item, samples, fill) for name, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_made_up(item, samples, fill) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_made_up(item, samples, fill) for item in value)
    return value


def _same(*values: Any) -> bool:
    """Whether no tensor in the values is empty."""
    return all(
        _same(*value.values())
        if isinstance(value, Mapping)
        else _same(*value)
        if type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields"))
        else not (isinstance(value, Tensor) and not value.numel())
        for value in values
    )


def join(
    network: nn.Module,
    ranks: Ranks,
    device: torch.device,
    samples: Samples,
    options: dict[str, Any],
) -> Joined:
    """`network` for several ranks; all take rank 0's weights. `options`: of DistributedDataParallel."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    for name, module in unwrapped(network).named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
            raise UserError(
                f"run.model(): {name or 'the network'} is an {type(module).__name__} with sparse=True, whose gradients "
                "the ranks cannot join: use sparse=False"
            )
    if unknown := options.keys() - known.keys():
        raise UserError(f"run.model(): DistributedDataParallel has no option {', '.join(sorted(unknown))}")
    # torch 2.15 renamed the option and warns about the old name.
    keep_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    chosen: dict[str, Any] = {keep_buffers: False, "gradient_as_bucket_view": True}
    if device.type == "cuda":
        chosen["device_ids"] = [device.index]
    return Joined(network, samples, **chosen | options)


def hook(joined: Joined, ranks: Ranks, device: torch.device, wait: Callable[[], object]) -> AllreduceHook | None:
    """Averages the gradients through shared memory where the ranks have it; None: as DistributedDataParallel does."""
    if joined.find_unused_parameters or joined.static_graph or not can_complete_allreduces(joined):
        return None
    memory = share(joined.module, ranks, device, wait)
    return AllreduceHook(joined, memory)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, without what joins the ranks and what compiles it."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def settle_forward(joined: Joined) -> Callable[[], Tensor]:
    """A pass through the wrapper that reaches every parameter, whatever the network computes (see settle_buckets)."""
    parameters = [parameter for parameter in joined.module.parameters() if parameter.requires_grad]

    def total(*_: object) -> Tensor:
        """The sum of all trainable parameters, in place of the network's output."""
        numbers = [torch.view_as_real(p) if p.is_complex() else p for p in parameters]
        return torch.stack([number.sum().double() for number in numbers]).sum()

    def forward() -> Tensor:
        """One pass through the wrapper, in which `total` replaces the network's forward."""
        attributes = vars(joined.module)
        own = attributes.get("forward")
        attributes["forward"] = total  # found before the class's own when the wrapper calls the network
        try:
            found: Tensor = DistributedDataParallel.forward(joined)
            return found
        finally:
            del attributes["forward"]
            if own is not None:
                attributes["forward"] = own

    return forward
