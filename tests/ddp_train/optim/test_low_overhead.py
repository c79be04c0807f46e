"""The optimizers with the bare arithmetic of their step: torch's bits, and torch's own step where it is watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ddp_train.optim import low_overhead

KINDS = {
    "sgd": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "sgd, heavy ball": ("SGD", {"momentum": 0.9}),
    "sgd, no momentum": ("SGD", {}),
    "sgd, dampening": ("SGD", {"momentum": 0.9, "dampening": 0.1}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {"amsgrad": True}),
}


def weights(module: Any, name: str, options: dict[str, Any], rates: tuple[float, float]) -> list[torch.Tensor]:
    """Parameters of two groups after four steps; one parameter gets no gradient in the third."""
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 3, generator=draw)) for _ in range(4)]
    groups = [
        {"params": parameters[:2], "weight_decay": 0.1, "lr": rates[0]},
        {"params": parameters[2:], "weight_decay": 0.0, "lr": rates[1]},
    ]
    optimizer = getattr(module, name)(groups, lr=0.1, foreach=True, **options)
    for step in range(4):
        for parameter in parameters:
            gradient = torch.randn(5, 3, generator=draw)
            parameter.grad = None if step == 2 and parameter is parameters[1] else gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.02)], ids=["one rate", "two rates"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_torchs(kind: str, rates: tuple[float, float]) -> None:
    name, options = KINDS[kind]
    found, expected = (weights(module, name, options, rates) for module in (low_overhead, torch.optim))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def made() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    return parameter, low_overhead.SGD([parameter], lr=0.1, momentum=0.9, foreach=True)


def test_hooks_and_closures_are_called() -> None:
    parameter, optimizer = made()
    seen: list[str] = []
    optimizer.step()
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.step()
    assert seen == ["pre", "post"]
    assert optimizer.step(lambda: float(parameter.detach()[0])) == pytest.approx(0.71) and seen == ["pre", "post"] * 2


def test_the_profiler_sees_the_step() -> None:
    _, optimizer = made()
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert any(event.name == "Optimizer.step#SGD.step" for event in profile.function_events)


def test_a_step_is_not_recorded_for_a_gradient() -> None:
    parameter, optimizer = made()
    optimizer.step()
    assert parameter.grad_fn is None and parameter.requires_grad


def test_a_fused_first_step_that_is_skipped_leaves_no_unfilled_momentum() -> None:
    """As under GradScaler after an overflow; torch's own would take whatever lay in memory for the momentum."""
    junk = [torch.full((1000,), 7e3) for _ in range(20)]
    del junk  # what the allocator hands out again
    parameter = nn.Parameter(torch.zeros(1000))
    optimizer: Any = low_overhead.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True, fused=True)
    optimizer.grad_scale = None
    for overflow, gradient in ((1.0, float("inf")), (0.0, 1.0)):
        parameter.grad, optimizer.found_inf = torch.full((1000,), gradient), torch.tensor(overflow)
        optimizer.step()
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.ones(1000))
    assert torch.allclose(parameter, torch.full((1000,), -0.19))  # Nesterov: the gradient and 0.9 of the momentum
