"""Loss, gradient and precision: the parts of a step, each against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.optim.precision import Precision
from ddp_train.technique import Moment
from ddp_train.techniques import centralization, clipping
from ddp_train.techniques.gradient_penalty import gradient_penalty
from tests.ddp_train.contexts import make_context

CPU = torch.device("cpu")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_a_sum_over_samples(smoothing: float) -> None:
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    mean = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.allclose(cross_entropy_sum(smoothing)(logits, labels), 7 * mean)


def test_the_loss_is_taken_in_float32() -> None:
    logits, labels = torch.randn(7, 5).bfloat16(), torch.randint(5, (7,))
    assert cross_entropy_sum()(logits, labels).dtype == torch.float32


def test_precision_off_and_bf16() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    for mode, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        with Precision(mode, CPU).autocast():
            assert layer(x).dtype == dtype


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="--amp fp16 needs a GPU"):
        Precision("fp16", CPU)


def test_clipping_is_torchs() -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = [p.detach().clone() for p in layer.parameters()]
    precision = Precision("off", CPU)
    precision.backward(layer(torch.randn(8, 4)).square().sum() * 100)
    clip = clipping.create(make_context(layer, clip_grad=0.5))
    assert clip.gradient is not None and clip.report is not None
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item()
    precision.step(optimizer, lambda: clip.gradient(list(layer.parameters()), Moment(0, 0, 0, 0)))
    assert clip.report() == {"gradient_norm": pytest.approx(norm)}
    moved = torch.cat([(p - b).flatten() for p, b in zip(layer.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_centralisation_is_the_formula() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    model(torch.randn(5, 3, 4, 4)).square().sum().backward()
    before = [p.grad.numpy().copy() for p in model.parameters()]
    centralization.centralize(list(model.parameters()), Moment(0, 0, 0, 0))
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        if gradient.ndim > 1:
            rows = gradient.reshape(len(gradient), -1)
            gradient = (rows - rows.mean(axis=1, keepdims=True)).reshape(gradient.shape)
        assert np.allclose(parameter.grad.numpy(), gradient, atol=1e-6)


def test_the_gradient_penalty_of_a_linear_critic_is_known() -> None:
    weights = torch.tensor([3.0, 4.0])  # its gradient has length 5 everywhere
    real, generated = torch.randn(6, 2), torch.randn(6, 2)
    assert gradient_penalty(lambda x: x @ weights, real, generated).item() == pytest.approx(10 * (5 - 1) ** 2)


def test_the_gradient_penalty_is_of_each_sample_and_can_be_trained_with() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    real, generated = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    draw = torch.Generator().manual_seed(3)
    penalty = gradient_penalty(critic, real, generated, weight=2.0, generator=draw)
    penalty.backward()
    # Only the last bias has no part in the gradient of the critic.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in list(critic.parameters())[:-1])
    share = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    expected = 0.0
    for at, one in enumerate(share * real + (1 - share) * generated):
        jacobian = torch.autograd.functional.jacobian(lambda x: critic(x[None])[0, 0], one)
        expected += 2.0 * (jacobian.norm().item() - 1) ** 2 / 4
        assert at < 4
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="differ in shape"):
        gradient_penalty(critic, real, generated[:2])
