"""Hooks on layers: what they see, on which layers, and that nothing of them stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ddp_train.diagnostics.hooks import statistics, watch


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(8, 3)))


def test_statistics_are_numpys() -> None:
    values = np.array([[1.0, -4.0, 0.0], [np.nan, np.inf, 2.0]], dtype=np.float32)
    found, finite = statistics(torch.from_numpy(values)), values[np.isfinite(values)]
    assert (found.mean, found.std) == (pytest.approx(finite.mean()), pytest.approx(finite.std()))
    assert (found.largest, found.not_finite, found.count) == (4.0, 2, 6)
    assert found.zeros == pytest.approx(1 / 6)


def test_statistics_of_nothing_finite() -> None:
    for values in (torch.full((3,), torch.nan), torch.empty(0)):
        found = statistics(values)
        assert np.isnan([found.mean, found.std, found.largest]).all() and found.not_finite == len(values)


def test_outputs_and_gradients_are_those_of_autograd() -> None:
    network, images = small(), torch.randn(5, 4)
    with watch(network) as seen:
        network(images).square().sum().backward()
    assert list(seen.activations) == ["0", "1", "2.0"] and list(seen.gradients) == ["2.0", "1", "0"]
    first = network[0](images).detach()
    hidden = first.relu().requires_grad_(True)
    logits = network[2](hidden)
    (by_logits, by_hidden) = torch.autograd.grad(logits.square().sum(), (logits, hidden))
    for name, expected in (("0", first), ("1", hidden), ("2.0", logits)):
        assert seen.activations[name].mean == pytest.approx(expected.mean().item())
    assert seen.activations["1"].zeros == pytest.approx((first <= 0).float().mean().item())
    for name, expected in (("2.0", by_logits), ("1", by_hidden), ("0", by_hidden * (first > 0))):
        assert seen.gradients[name].largest == pytest.approx(expected.abs().max().item()), name


def test_named_layers_alone_and_nothing_stays() -> None:
    network, images = small(), torch.randn(5, 4)
    with watch(network, names=["2"]) as seen:
        output = network(images)
    output.sum().backward()
    assert list(seen.activations) == ["2"] and not seen.gradients
    assert not any(module._forward_hooks for module in network.modules())


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"no module 'features'; it has 0, 1, 2, 2\.0"), watch(small(), ["features"]):
        pass
