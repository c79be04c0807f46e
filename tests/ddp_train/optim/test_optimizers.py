"""Every optimizer of the factory against torch's own or a formula; which parameters it takes, with which rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.options import Config, OptimOptions
from ddp_train.config.parse import parse
from ddp_train.config.validation import check
from ddp_train.optim import create_optimizer, describe, parameter_groups
from ddp_train.optim.muon import Muon, hidden_matrices, orthogonalized
from tests.ddp_train.techniques import runs

CPU = torch.device("cpu")


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 5), nn.Linear(5, 2)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for seed in range(steps):
        images = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_biases_and_norms_do_not_decay() -> None:
    decayed, free = parameter_groups(small().parameters(), 0.5)
    assert {tuple(p.shape) for p in decayed["params"]} == {(4, 3, 3, 3), (6, 4, 3, 3), (5, 24), (2, 5)}
    assert {p.ndim for p in free["params"]} == {1} and len(free["params"]) == 6
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)


Oracle = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
BETAS = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-4}
TORCHS = {"betas": (0.8, 0.9), "eps": 1e-4}


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        (OptimOptions(), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)),
        (OptimOptions(momentum=0.0), lambda p: torch.optim.SGD(p, 0.1, weight_decay=5e-4)),
        (OptimOptions(optimizer="adam"), lambda p: torch.optim.Adam(p, 0.1, weight_decay=5e-4)),
        (OptimOptions(optimizer="adam", **BETAS), lambda p: torch.optim.Adam(p, 0.1, weight_decay=5e-4, **TORCHS)),
        (OptimOptions(optimizer="adamw"), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=5e-4)),
        (
            OptimOptions(optimizer="adamw", amsgrad=True, weight_decay=0.2, **BETAS),
            lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2, amsgrad=True, **TORCHS),
        ),
    ],
)
def test_the_factory_makes_torchs_optimizers(options: OptimOptions, oracle: Oracle) -> None:
    weights = torch.randn(4, 3)
    ours, theirs = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    for layer in (ours, theirs):
        layer.weight.data.copy_(weights)
    pair = [(ours, create_optimizer(ours, options, 0.1, CPU)), (theirs, oracle(list(theirs.parameters())))]
    for seed in range(3):
        for layer, optimizer in pair:
            torch.manual_seed(seed)
            (layer(torch.randn(5, 3)).square().sum() / (1 + seed)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-7)


def test_muon_on_matrices_is_torchs() -> None:
    """In bf16, as torch computes it, to the bit; tall, wide and square."""
    shapes = [(6, 3), (3, 6), (4, 4)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    one = Muon(ours, None, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        one.step()
        other.step()
    assert all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))


def muon_formula(
    weight: np.ndarray,
    gradients: list[np.ndarray],
    lr: float,
    mu: float,
    decay: float,
    normalize: bool,
    iterations: int,
) -> np.ndarray:
    """Jordan et al. 2024, in float64, on kernels flattened to [out, in * height * width]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    momentum = np.zeros_like(weight)
    for gradient in gradients:
        momentum = mu * momentum + (1 - mu) * gradient
        x = ((1 - mu) * gradient + mu * momentum).reshape(len(weight), -1)
        x = x / np.linalg.norm(x)
        for _ in range(iterations):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        longer = math.sqrt(max(1.0, x.shape[0] / x.shape[1]))
        if normalize:
            weight = weight / np.linalg.norm(weight) * math.sqrt(len(weight))
        weight = weight * (1 - lr * decay) - lr * longer * x.reshape(weight.shape)
    return weight


@pytest.mark.parametrize(("normalize", "iterations"), [(False, 5), (True, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (20, 2, 2, 2)])
def test_muon_on_kernels_is_the_formula(
    shape: tuple[int, ...], layout: torch.memory_format, normalize: bool, iterations: int
) -> None:
    kernel = nn.Parameter(torch.randn(shape).contiguous(memory_format=layout))
    expected, gradients = kernel.detach().double().numpy(), []
    told = {"normalize": normalize, "iterations": iterations}
    muon = Muon([kernel], None, lr=0.05, momentum=0.9, weight_decay=0.1, **told)
    for _ in range(3):
        kernel.grad = torch.randn(shape).contiguous(memory_format=layout)
        gradients.append(kernel.grad.double().numpy())
        muon.step()
    expected = muon_formula(expected, gradients, 0.05, 0.9, 0.1, **told)
    assert np.allclose(kernel.detach().numpy(), expected, atol=1e-5)


def test_orthogonalized_has_singular_values_near_one() -> None:
    matrix = torch.randn(8, 32)
    singular = torch.linalg.svdvals(orthogonalized(matrix))
    assert singular.min() > 0.6 and singular.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalized(matrix).flatten(), (left @ right).flatten(), dim=0) > 0.97
    )


def test_muon_takes_what_lies_between_the_first_and_the_last_layer() -> None:
    model = small()
    assert [tuple(p.shape) for p in hidden_matrices(model)] == [(6, 4, 3, 3), (5, 24)]
    model[2].weight.requires_grad = False
    assert [tuple(p.shape) for p in hidden_matrices(model)] == [(5, 24)]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    tied.append(nn.Linear(4, 4))
    tied[4].weight = tied[1].weight
    assert [id(p) for p in hidden_matrices(tied)] == [id(tied[1].weight)]
    model[0].weight.requires_grad = False
    assert [tuple(p.shape) for p in hidden_matrices(model)] == [(5, 24)], "a frozen first layer is the first one too"


@pytest.mark.parametrize("rest", ["sgd", "adamw"])
def test_the_rest_beside_muon_is_trained_as_by_itself(rest: str) -> None:
    """With Muon's rate at 0 the hidden matrices stand still, and the rest is torch's optimizer over the rest."""
    ours, theirs = small(), small()
    theirs.load_state_dict(ours.state_dict())
    options = OptimOptions(optimizer="muon", lr=0.02, muon_rest=rest, muon_rest_lr=0.01)  # type: ignore[arg-type]
    optimizer = create_optimizer(ours, options, 0.04, CPU)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.04, 0.02, 0.02], "both rates are scaled"
    optimizer.param_groups[0]["lr"] = 0.0
    hidden = {id(p) for p in hidden_matrices(theirs)}
    for parameter in theirs.parameters():
        parameter.requires_grad = id(parameter) not in hidden
    plain = create_optimizer(theirs, OptimOptions(optimizer=rest), 0.02, CPU)  # type: ignore[arg-type]
    train(ours, optimizer)
    train(theirs, plain)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("rest", ["sgd", "adamw"])
def test_muons_state_goes_into_a_state_dict_and_back(rest: str) -> None:
    options = OptimOptions(optimizer="muon", muon_rest=rest)  # type: ignore[arg-type]
    model = small()
    optimizer = create_optimizer(model, options, 0.02, CPU)
    train(model, optimizer, 2)
    again = small()
    again.load_state_dict(model.state_dict())
    resumed = create_optimizer(again, options, 0.02, CPU)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (again, resumed)):
        train(one, its)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_muon_under_loss_scaling_sees_true_gradients_and_skips_infinite_ones() -> None:
    plain, scaled = small(), small()
    scaled.load_state_dict(plain.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = [create_optimizer(model, OptimOptions(optimizer="muon"), 0.02, CPU) for model in (plain, scaled)]
    images = torch.randn(5, 3, 6, 6)
    plain(images).square().sum().backward()
    optimizers[0].step()
    scaler.scale(scaled(images).square().sum()).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))
    before = [p.detach().clone() for p in scaled.parameters()]
    scaler.scale(scaled(images).square().sum() * math.inf).backward()
    scaler.step(optimizers[1])
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.parameters(), strict=True))


def test_muon_needs_a_hidden_matrix() -> None:
    with pytest.raises(UserError, match="--optimizer muon: this model has no linear layer"):
        create_optimizer(nn.Linear(3, 2), OptimOptions(optimizer="muon"), 0.02, CPU)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("--optimizer muon", "--muon-rest sgd"),
        ("--optimizer muon", "--optimizer sgd"),
        ("--optimizer adamw", "--optimizer adam"),
        ("--optimizer adamw", "--amsgrad"),
    ],
)
def test_a_resume_with_another_optimizer_is_refused(first: str, then: str, tmp_path: Path) -> None:
    run = runs.make(f"{first} --epochs 1", tmp_path / "run", runs.PLAIN)
    run.trainer.fit()
    with pytest.raises(UserError, match=r"does not fit this model and optimizer \(it was trained with (Muon|AdamW)"):
        runs.make(f"{first} {then} --resume auto", tmp_path / "run", runs.PLAIN)


@pytest.mark.parametrize("words", ["--optimizer adamw", "--optimizer muon --muon-rest sgd"])
def test_a_resumed_state_lies_in_memory_as_its_weights_do(words: str, tmp_path: Path) -> None:
    run = runs.make(f"{words} --epochs 1", tmp_path / "run", runs.PLAIN)
    run.trainer.fit()
    again = runs.make(f"{words} --epochs 2 --no-channels-last --resume auto", tmp_path / "run", runs.PLAIN)
    optimizer = again.trainer.components.optimizer
    kernel = next(p for p in again.trainer.components.network.parameters() if p.ndim == 4)
    before = next(iter(run.trainer.components.network.parameters()))
    assert kernel.stride() != before.stride() and torch.equal(kernel, before)
    for parameter, state in optimizer.state.items():
        assert all(v.stride() == parameter.stride() for v in state.values() if v.shape == parameter.shape)
    again.trainer.fit()


def test_the_kinds_of_optimizers_have_names() -> None:
    names = {
        describe(create_optimizer(small(), options, 0.1, CPU))
        for options in (
            OptimOptions(),
            OptimOptions(optimizer="adamw"),
            OptimOptions(optimizer="adam", amsgrad=True),
            OptimOptions(optimizer="muon", amsgrad=True),
            OptimOptions(optimizer="muon", muon_rest="sgd"),
        )
    }
    assert names == {"SGD", "AdamW", "Adam (amsgrad)", "Muon with AdamW (amsgrad)", "Muon with SGD"}


@pytest.mark.parametrize("words", ["--amsgrad", "--optimizer muon --muon-rest sgd --amsgrad"])
def test_amsgrad_is_not_for_sgd(words: str) -> None:
    with pytest.raises(UserError, match="--amsgrad is for adam and adamw"):
        parse(words.split())
    check(Config(optim=OptimOptions(optimizer="muon", amsgrad=True)))


def moved(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int, idle: int | None = None) -> None:
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        for number, weight in enumerate(weights):
            weight.grad = None if number == idle else torch.randn(weight.shape, generator=draw)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("idle", [None, 1, 3])
def test_a_step_has_torchs_bits(name: str, momentum: float, idle: int | None) -> None:
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    begin = [torch.randn(shape) for shape in ((4, 3), (2, 3, 3, 3), (4,), (7,))]
    ours, theirs = ([nn.Parameter(w.clone()) for w in begin] for _ in range(2))
    model = nn.ParameterList(ours)
    optimizer = create_optimizer(model, OptimOptions(optimizer=name, momentum=momentum), 0.1, CPU)
    torchs: dict[str, object] = {"momentum": momentum, "nesterov": momentum > 0} if name == "sgd" else {}
    groups = [
        {"params": theirs[:2], "weight_decay": OptimOptions().weight_decay},
        {"params": theirs[2:], "weight_decay": 0.0},
    ]
    oracle = kinds[name](groups, lr=0.1, foreach=True, **torchs)  # type: ignore[arg-type]
    for weights, one in ((ours, optimizer), (theirs, oracle)):
        moved(one, weights, 3, idle)  # the idle one has no momentum yet when it joins
        moved(one, weights, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    mine, its = optimizer.state_dict()["state"], oracle.state_dict()["state"]
    assert mine.keys() == its.keys()
    for number, state in its.items():
        assert all(torch.equal(torch.as_tensor(mine[number][key]), torch.as_tensor(state[key])) for key in state)


def test_hooks_and_the_profiler_see_a_step() -> None:
    model = small()
    optimizer = create_optimizer(model, OptimOptions(), 0.1, CPU)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("behind"))
    train(model, optimizer, steps=1)
    assert seen == ["before", "behind"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, create_optimizer(model, OptimOptions(), 0.1, CPU), steps=2)
    names = [event.key for event in profile.key_averages() if event.key.startswith("Optimizer.step")]
    assert names == ["Optimizer.step#SGD.step"]
