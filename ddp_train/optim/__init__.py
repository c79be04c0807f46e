"""The optimizer factory: which parameters decay, and with which optimizer they are trained."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.options import OptimOptions
from ddp_train.optim.low_overhead import SGD, Adam, AdamW
from ddp_train.optim.muon import Muon, hidden_matrices

_LARGEST_FACTOR = 1000
_SHOWN = 3


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels decay; biases and normalisation parameters (one dimension or none) do not.

    Source: He et al. 2019, "Bag of Tricks" (arXiv:1812.01187), section 3.1.
    """
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(
    model: nn.Module,
    options: OptimOptions,
    learning_rate: float,
    device: torch.device,
    *,
    matrix_dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimizer that `options` names, with peak rate `learning_rate`: fused on a GPU, foreach elsewhere.

    A group's `initial_lr` is the peak rate of that group. `matrix_dtype`: dtype of Muon's iterations. Errors: UserError
    where Muon finds no matrix.
    """
    optimizer: torch.optim.Optimizer
    if options.optimizer == "muon":
        optimizer = _muon(model, options, learning_rate, device, matrix_dtype)
    else:
        factors = {} if options.lr_by_layer is None else _factors(model, options.lr_by_layer)
        optimizer = _plain(options.optimizer, model.parameters(), options, learning_rate, device, factors)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def describe(optimizer: torch.optim.Optimizer) -> str:
    """The name of the optimizer's kind; optimizers with the same name have state of the same form."""
    name = type(optimizer).__name__
    if isinstance(optimizer, Muon) and optimizer.rest is not None:
        name += f" with {type(optimizer.rest).__name__}"
    return f"{name} (amsgrad)" if any(group.get("amsgrad") for group in optimizer.param_groups) else name


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a saved state_dict, but keep the group options (rates, decay and the like) that `optimizer` has in this run.

    Errors: ValueError where the state does not fit.
    """
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group.update({name: value for name, value in own.items() if name != "params"})
    optimizer.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # Fused steps need state in the parameter's memory layout; the saved run may have used another one.
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def matching(option: str, pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match a pattern: by wildcards, or all in the layer that it names. Errors: UserError for none."""
    names, pattern = list(names), pattern.strip()
    found = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
    if found:
        return found
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    close = difflib.get_close_matches(pattern, layers, n=_SHOWN, cutoff=0.3) or layers[:_SHOWN]
    raise UserError(f"{option} {pattern!r}: no parameter has such a name; layers are {', '.join(close)}, ...")


def _factors(model: nn.Module, text: str) -> dict[nn.Parameter, float]:
    """Parse `--lr-by-layer`: the learning-rate factor of each parameter that it names. Errors: UserError."""
    named = dict(model.named_parameters())
    factors: dict[nn.Parameter, float] = {}
    for part in text.split(","):
        pattern, equals, factor = part.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = -1.0
        if not (equals and 0 <= value <= _LARGEST_FACTOR):
            raise UserError(f"--lr-by-layer {part!r}: expected NAME=FACTOR, with a factor from 0 to {_LARGEST_FACTOR}")
        factors |= {named[name]: value for name in matching("--lr-by-layer", pattern, named)}
    return factors


def _plain(
    name: str,
    parameters: Iterable[nn.Parameter],
    options: OptimOptions,
    learning_rate: float,
    device: torch.device,
    factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW. factors: learning-rate factors, 1 where absent; groups with another factor come last."""
    parameters = list(parameters)
    groups = [
        {**group, "params": chosen, "lr": learning_rate * factor}
        for factor in dict.fromkeys((1.0, *factors.values()))
        for group in parameter_groups(parameters, options.weight_decay)
        if (chosen := [p for p in group["params"] if factors.get(p, 1.0) == factor])
    ]
    # torch's fused CPU step ignores strides: it misreads a gradient whose memory layout differs from its weight's.
    speed: dict[str, Any] = {"fused": True} if device.type == "cuda" else {"foreach": True}
    if name == "sgd":
        # Nesterov momentum is defined for a positive momentum only.
        nesterov = options.momentum > 0
        return SGD(groups, lr=learning_rate, momentum=options.momentum, nesterov=nesterov, **speed)
    betas = (options.beta1, options.beta2)
    kind = {"adam": Adam, "adamw": AdamW}[name]
    return kind(groups, lr=learning_rate, betas=betas, eps=options.eps, amsgrad=options.amsgrad, **speed)


def _muon(
    model: nn.Module, options: OptimOptions, learning_rate: float, device: torch.device, dtype: torch.dtype
) -> Muon:
    """Muon on the hidden matrices, another optimizer on the rest; --muon-rest-lr is scaled with the batch like --lr."""
    matrices = hidden_matrices(model)
    if not matrices:
        raise UserError(
            "--optimizer muon: this model has no linear layer or convolution between its first and last one; "
            "take sgd, adam or adamw"
        )
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    scale = learning_rate / options.lr if options.lr is not None else 1.0
    rate = learning_rate if options.muon_rest_lr is None else options.muon_rest_lr * scale
    return Muon(
        matrices,
        _plain(options.muon_rest, others, options, rate, device) if others else None,
        lr=learning_rate,
        momentum=options.muon_momentum,
        weight_decay=options.weight_decay,
        normalize=options.muon_normalize,
        iterations=options.muon_iterations,
        dtype=dtype,
    )
