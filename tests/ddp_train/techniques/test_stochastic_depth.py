"""Stochastic depth against torchvision's, its rule over depth, and who has branches to drop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.models import Residual, create_model
from ddp_train.techniques import stochastic_depth
from ddp_train.techniques.stochastic_depth import DropBranch
from tests.ddp_train.contexts import make_context


def edited(network: nn.Module, probability: float, model: str = "x") -> nn.Module:
    technique = stochastic_depth.create(make_context(network, stochastic_depth=probability, model=model))
    assert technique.edit is not None
    return technique.edit(network)


@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (6, 16, 32)])
def test_dropping_is_torchvisions(shape: tuple[int, ...]) -> None:
    from torchvision.ops import stochastic_depth as torchvisions

    branch = torch.randn(shape)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = torchvisions(branch, 0.4, "row", training=True)
        torch.manual_seed(seed)
        assert torch.equal(DropBranch(0.4)(branch), expected)
    assert DropBranch(0.4).eval()(branch) is branch
    assert DropBranch(0)(branch) is branch


@pytest.mark.parametrize(
    ("model", "branches"),
    [("residual", 4), ("wideresnet", 6), ("resnet18", 8), ("vit", 6)],
    ids=lambda value: str(value),
)
def test_the_probability_grows_in_a_line_with_the_depth(model: str, branches: int) -> None:
    network = edited(create_model(model, num_classes=10, width_mult=0.1), 0.6)
    found = [module.drop.probability for module in network.modules() if isinstance(module, Residual)]
    assert found == pytest.approx([0.6 * (index + 1) / branches for index in range(branches)])
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_samples_are_dropped_one_by_one_and_the_mean_is_kept() -> None:
    torch.manual_seed(0)
    out = DropBranch(0.3)(torch.ones(20_000, 2, 2))
    kinds = out.flatten(1).unique(dim=0)  # all zero, or all of one value
    torch.testing.assert_close(kinds, torch.tensor([[0.0] * 4, [1 / 0.7] * 4]))
    assert float(out.mean()) == pytest.approx(1, abs=0.02)


def test_weights_keep_their_names() -> None:
    network = create_model("resnet18", num_classes=10, width_mult=0.1)
    before = list(network.state_dict())
    assert list(edited(network, 0.5).state_dict()) == before


def test_torchvisions_own_layers_are_set() -> None:
    network = edited(create_model("convnext_tiny", num_classes=10), 0.5)
    found = [module.p for module in network.modules() if type(module).__name__ == "StochasticDepth"]
    assert len(found) == 18 and found[-1] == 0.5 and found[0] == pytest.approx(0.5 / 18)


def test_a_model_without_branches_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="residual, wideresnet, resnet18 and vit") as refused:
        edited(create_model("small", num_classes=10), 0.5, model="small")
    assert "\n" not in str(refused.value) and "--model small" in str(refused.value)
    edited(create_model("small", num_classes=10), 0.0)
    with pytest.raises(UserError, match="take residual, wideresnet, resnet18 or vit"):
        parse(["--model", "power", "--stochastic-depth", "0.1"])
