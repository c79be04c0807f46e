"""The residual families and the vision transformer, against torchvision, the papers' sizes, and formulas."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import nn

from ddp_train.models import Residual, create_model, parameter_count
from ddp_train.models.vit import SelfAttention, chunked_attention, positions


@pytest.mark.parametrize(
    ("depth", "widening", "millions"),
    [(None, None, 11.0), (16, 8, 11.0), (28, 10, 36.5), (40, 4, 8.9)],  # table 5 of arXiv:1605.07146; 16-8 by default
)
def test_wide_residual_networks_have_the_papers_sizes(depth: int | None, widening: int | None, millions: float) -> None:
    model = create_model("wideresnet", num_classes=10, n_layers=depth, width_mult=widening)
    assert math.floor(parameter_count(model) / 1e5 + 0.5) / 10 == pytest.approx(millions, abs=0.051)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 3 + 1 == (depth or 16) + 1  # with the three 1x1 shortcuts and the last layer


def test_residual_has_the_channels_of_its_recipe() -> None:
    model = create_model("residual", num_classes=10)
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    assert [block.branch[-1].num_features for block in blocks] == [128, 256, 512, 768]
    assert parameter_count(model) == 14_144_138
    sides = []
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert sides == [32, 16, 8, 4]


def test_resnet18_is_torchvisions_behind_another_stem() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = create_model("resnet18", num_classes=10)
    # Both list stem, blocks and head in order; in a block torchvision has the shortcut last, as ours does.
    values = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), theirs.train(mode)(images))
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_wide_block_is_the_papers_formula() -> None:
    """x + conv(relu(bn(conv(relu(bn(x)))))), and with another shape the shortcut behind the first relu(bn(x))."""
    torch.manual_seed(0)
    model = create_model("wideresnet", num_classes=10, n_layers=16, width_mult=2).eval()
    first, second = model.blocks[0], model.blocks[1]
    x = torch.randn(2, 16, 8, 8)
    pre = torch.relu(first.before[0](x))
    expected = first.shortcut(pre) + first.branch[4](torch.relu(first.branch[1](first.branch[0](pre))))
    torch.testing.assert_close(first(x), expected)
    branch = second.branch
    expected = x_ = first(x)
    for norm, convolution in ((branch[0], branch[2]), (branch[3], branch[6])):
        expected = convolution(torch.relu(norm(expected)))
    torch.testing.assert_close(second(x_), x_ + expected)


def test_vit_is_torchs_encoder() -> None:
    """The same weights in nn.TransformerEncoder, between the same patches, positions and head."""
    torch.manual_seed(0)
    model = create_model("vit", num_classes=10, hidden_dim=64, n_layers=2, n_heads=4).eval()
    layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, norm=model.norm, enable_nested_tensor=False).eval()
    for own, other in zip(model.layers, theirs.layers, strict=True):
        mixing, perceptron = own[0].branch, own[1].branch
        pairs = {"norm1": mixing[0], "norm2": perceptron[0], "linear1": perceptron[1], "linear2": perceptron[3]}
        for name, module in (pairs | {"self_attn.out_proj": mixing[1].outward}).items():
            other.get_submodule(name).load_state_dict(module.state_dict())
        other.self_attn.in_proj_weight.data.copy_(mixing[1].inward.weight)
        other.self_attn.in_proj_bias.data.copy_(mixing[1].inward.bias)
    images = torch.randn(3, 3, 32, 32)
    cut = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 64, 48)
    tokens = cut @ model.patches.weight.reshape(64, 48).T + model.patches.bias + positions(8, 8, 64).reshape(64, 64)
    torch.testing.assert_close(model(images), model.head(theirs(tokens).mean(1)))


def test_positions_are_numpys() -> None:
    found = positions(3, 5, 16).numpy()
    frequencies = 10_000.0 ** (-numpy.arange(4) / 3)
    for row in range(3):
        for column in range(5):
            angles = [row * frequencies, row * frequencies, column * frequencies, column * frequencies]
            waves = [wave(angle) for wave, angle in zip((numpy.sin, numpy.cos) * 2, angles, strict=True)]
            numpy.testing.assert_allclose(found[row, column], numpy.concatenate(waves), atol=1e-6)


def test_vit_takes_images_that_change_their_size() -> None:
    torch.manual_seed(0)
    model = create_model("vit", num_classes=10, hidden_dim=32, n_layers=1)
    assert model(torch.randn(2, 3, 16, 24)).shape == (2, 10)
    assert "positions" not in model.state_dict()


def test_vit_sees_where_a_patch_is() -> None:
    torch.manual_seed(0)
    model = create_model("vit", num_classes=10, hidden_dim=32, n_layers=2).eval()
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(model(images), model(images.flip(3)), atol=1e-4)


@pytest.mark.parametrize("chunk", [5, 32, 1000])
def test_chunked_attention_agrees_with_torchs_kernel(chunk: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 65, 16, requires_grad=True) for _ in range(3)]
    outputs = [nn.functional.scaled_dot_product_attention(*inputs), chunked_attention(*inputs, chunk=chunk)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((output * weight).sum(), inputs) for output in outputs]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_both_kinds_of_attention_are_one_model() -> None:
    logits, gradients = [], []
    for kind in ("sdpa", "chunked"):
        torch.manual_seed(0)
        model = create_model("vit", num_classes=10, hidden_dim=64, n_layers=2, attention=kind)
        assert {m.kind for m in model.modules() if isinstance(m, SelfAttention)} == {kind}
        output = model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        output.square().sum().backward()
        logits.append(output)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_chunked_attention_keeps_fewer_weights() -> None:
    """With 256 tokens: not the 256 x 256 weights of each head, but the inputs and outputs of its chunks."""

    def kept(attend: object) -> int:
        torch.manual_seed(0)
        inputs = [torch.randn(1, 1, 256, 8, requires_grad=True) for _ in range(3)]
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attend(*inputs).sum()
        return sum(sizes.values())

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.softmax(query @ key.mT / math.sqrt(8), dim=-1) @ value

    assert kept(plain) > 256 * 256 * 4
    assert kept(chunked_attention) < 256 * 256 * 4 / 3
