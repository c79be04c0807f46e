"""Measurements without side effects: everything that a training step changes is restored bit for bit.

Also frees memory between trials in one process, before the next one is measured.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ddp_train.buffers import CurrentBuffers
from ddp_train.technique import Stateful

Part = nn.Module | torch.optim.Optimizer | Stateful
Restore = Callable[[], object]


@contextlib.contextmanager
def preserved(*parts: Part, release: bool = True) -> Iterator[None]:
    """Inside, the parts may be trained; afterwards they are what they were, and so are the random generators.

    Restored: of a module, its parameters, buffers, gradients and the mode of each submodule; of an optimizer, its state
    and the options of its groups; of anything else, its `state_dict`. Generators: torch's on the CPU and on each GPU,
    Python's and NumPy's. The copies are kept in host memory, so that they take nothing from what is measured. release:
    memory that nothing refers to any more goes back to the GPU at the end.
    """
    on_gpus = torch.cuda.is_available() and torch.cuda.is_initialized()
    python, numpys, restores = random.getstate(), np.random.get_state(), [_keep(part) for part in parts]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if on_gpus else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
        for restore in restores:
            restore()
        if release:
            release_memory()


def _keep(part: Part) -> Restore:
    """Copy the state of a part; returns a function that restores it."""
    if isinstance(part, nn.Module):
        return _module(part)
    if isinstance(part, torch.optim.Optimizer):
        return _optimizer(part)
    state = copy.deepcopy(part.state_dict())
    return lambda: part.load_state_dict(copy.deepcopy(state))


def _module(module: nn.Module) -> Restore:
    """Copy parameters, buffers, gradients and modes; returns a function that restores them in place."""
    buffers = CurrentBuffers(module)
    tensors = [(tensor, _copy(tensor)) for tensor in (*module.parameters(), *buffers.tensors)]
    gradients = [(p, p.grad, None if p.grad is None else _copy(p.grad)) for p in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]

    @torch.no_grad()
    def restore() -> None:
        """Copy the saved tensors, gradients and modes back; a buffer is the tensor again that it was."""
        buffers.put(buffers.tensors)
        for tensor, value in tensors:
            tensor.copy_(value)
        for parameter, gradient, before in gradients:
            parameter.grad = gradient
            if gradient is not None and before is not None:
                gradient.copy_(before)
        for part, training in modes:
            part.training = training

    return restore


def _optimizer(optimizer: torch.optim.Optimizer) -> Restore:
    """Copy an optimizer's state and groups; returns a function that restores them."""
    # Not by load_state_dict: it makes new tensors from those that it gets, and casts some of them.
    state = {parameter: {k: _value(v) for k, v in values.items()} for parameter, values in optimizer.state.items()}
    groups = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def restore() -> None:
        """Put the saved state and group options back."""
        optimizer.state.clear()
        for parameter, values in state.items():
            optimizer.state[parameter] = {k: again() for k, again in values.items()}
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            group.update(options)

    return restore


def _value(value: object) -> Callable[[], object]:
    """A function that returns a copy of the value; a tensor on its original device."""
    if isinstance(value, Tensor):
        kept, device = _copy(value), value.device
        return lambda: kept.to(device)
    other = copy.deepcopy(value)
    return lambda: other


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the host in the same layout, also of a tensor that is on the host already."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.preserve_format)


def release_memory() -> None:
    """Free what nothing refers to any more, cycles included, and give the allocator's cache back to the GPU.

    First drop all references to the model, the optimizer and the error of a trial that ran out of memory. Peak
    statistics are reset. Without a GPU in use, this is only a garbage collection.
    """
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
