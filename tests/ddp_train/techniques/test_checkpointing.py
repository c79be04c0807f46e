"""Activation checkpointing: the same bits, less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.diagnostics.memory_report import kept_bytes
from ddp_train.models import create_model
from ddp_train.techniques import checkpointing
from ddp_train.techniques.checkpointing import checkpoint_blocks
from tests.ddp_train.contexts import make_context

MODELS = ("small", "power", "residual", "wideresnet", "resnet18", "vit", "mobilenet_v3_small")


def make(model: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        model, num_classes=10, width_mult=0.2, hidden_dim=32, dropout=None if "mobile" in model else 0.3
    )


def step(network: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Gradients and batch statistics of one step, and the bytes that autograd kept for it."""
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    with kept_bytes(network) as kept:
        loss = network(images).square().sum()
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | dict(network.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("model", MODELS)
def test_everything_is_as_without_it(model: str) -> None:
    plain, saving = make(model), make(model)
    assert checkpoint_blocks(saving) > 0
    assert list(saving.state_dict()) == list(plain.state_dict())
    (expected, much), (found, little) = step(plain), step(saving)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []
    assert little < 0.75 * much, f"{little:,} of {much:,} bytes are kept"
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), saving.eval()(images))


def test_a_copy_computes_with_its_own_weights() -> None:
    network = make("resnet18")
    checkpoint_blocks(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not bool(other(torch.randn(2, 3, 32, 32)).any())


def test_a_block_that_overwrites_its_input_is_left_alone() -> None:
    block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
    assert checkpoint_blocks(nn.Sequential(nn.Linear(4, 4), block)) == 0


def test_a_model_without_blocks_and_torch_compile_are_refused() -> None:
    class Lone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

    technique = checkpointing.create(make_context(Lone(), model="lone"))
    assert technique.edit is not None
    with pytest.raises(UserError, match="no blocks are found in --model lone"):
        technique.edit(Lone())
    with pytest.raises(UserError, match="--checkpoint-activations with --compile"):
        parse(["--compile", "--checkpoint-activations"])
