"""SAM, Lookahead, EMA and SWA: each against a formula in NumPy or torch's own, and in runs of two ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch
from ddp_train.models.trainable import freeze
from ddp_train.optim.precision import Precision
from ddp_train.technique import Moment
from ddp_train.techniques import ema, lookahead, sam, swa
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import runs

CPU = torch.device("cpu")


def moment(step: int) -> Moment:
    return Moment(step // 10, step, 0, 0)


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def step_towards(model: nn.Module, seed: int) -> None:
    """Any change of the weights and of the batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(5, 3, 4, 4, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_sam_is_the_formula() -> None:
    """A quadratic loss 0.5 w A w, whose gradient A w is known everywhere; SGD without momentum."""
    matrix = np.array([[3.0, 1.0], [1.0, 2.0]])
    weight = np.array([1.0, -2.0])
    network = nn.Linear(2, 1, bias=False).double()
    network.weight.data = torch.tensor(weight)[None]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    technique = sam.create(make_context(network, sam=0.5))
    calls: list[tuple[bool, bool]] = []

    def gradients(*, communicate: bool = True, count: bool = True) -> None:
        calls.append((communicate, count))
        w = network.weight[0]
        (0.5 * w @ torch.tensor(matrix) @ w).backward()

    def apply() -> None:
        optimizer.step()
        optimizer.zero_grad()

    assert technique.update is not None
    for _ in range(3):
        gradient = matrix @ weight
        uphill = weight + 0.5 * gradient / np.linalg.norm(gradient)
        weight = weight - 0.1 * matrix @ uphill
        technique.update(gradients, apply, optimizer)
        assert np.allclose(network.weight.detach().numpy(), weight, atol=1e-12)
    assert calls == [(False, True), (True, False)] * 3, "the first pass counts, the second one communicates"


def test_sams_climb_is_rho_long_over_all_parameters() -> None:
    network = normed()
    before = [p.detach().clone() for p in network.parameters()]
    network(torch.randn(5, 3, 4, 4)).square().sum().backward()
    sam.climb(list(network.parameters()), 0.3)
    way = torch.cat([(p - b).flatten() for p, b in zip(network.parameters(), before, strict=True)])
    gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert way.norm().item() == pytest.approx(0.3, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(way, gradient, dim=0) > 0.9999


def test_sam_counts_batch_statistics_once(tmp_path: Path) -> None:
    run = runs.make("--sam 0.1 --epochs 1", tmp_path / "run", runs.STATEFUL)
    run.trainer.fit()
    counts = {
        int(b) for name, b in run.trainer.components.network.named_buffers() if name.endswith("num_batches_tracked")
    }
    assert counts == {10}


def test_an_overflow_in_sams_first_pass_skips_the_step() -> None:
    """Loss scaling as under fp16: an infinite first gradient leaves NaN in the second, and the weights stay."""
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    technique = sam.create(make_context(network, sam=0.5))
    passes: list[int] = []

    def gradients(*, communicate: bool = True, count: bool = True) -> None:
        passes.append(1)
        scaler.scale(network(torch.ones(1, 2)).square().sum() * (math.inf if len(passes) == 1 else 1.0)).backward()

    def apply() -> None:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    assert technique.update is not None
    technique.update(gradients, apply, optimizer)
    assert torch.equal(network.weight, before) and scaler.get_scale() == 1.0
    technique.update(gradients, apply, optimizer)
    assert not torch.equal(network.weight, before) and network.weight.isfinite().all()


def test_lookahead_is_the_formula() -> None:
    network = normed()
    technique = lookahead.create(make_context(network, lookahead=3, lookahead_alpha=0.4))
    assert technique.after_step is not None and technique.evaluated is not None
    slow = [p.detach().double().numpy().copy() for p in network.parameters()]
    for step in range(7):
        step_towards(network, step)
        fast = [p.detach().double().numpy().copy() for p in network.parameters()]
        technique.after_step(moment(step))
        if step in (2, 5):
            slow = [s + 0.4 * (f - s) for s, f in zip(slow, fast, strict=True)]
            fast = slow
        for expected, found in ((slow, technique.evaluated), (fast, network)):
            for value, parameter in zip(expected, found.parameters(), strict=True):
                assert np.allclose(parameter.detach().numpy(), value, atol=1e-6)
    for mine, its in zip(technique.evaluated.buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_torchs(warmup: bool) -> None:
    """swa_utils with its own decay function; with warm-up, and for counts, the formula."""
    network = normed()
    technique = ema.create(make_context(network, ema=0.9, ema_warmup=warmup))
    oracle = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    assert technique.after_step is not None and technique.evaluated is not None
    by_hand: list[np.ndarray] = []
    for step in range(6):
        step_towards(network, step)
        technique.after_step(moment(step))
        oracle.update_parameters(network)
        values = [p.detach().double().numpy().copy() for p in network.parameters()]
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        by_hand = [decay * a + (1 - decay) * v for a, v in zip(by_hand or values, values, strict=True)]
    for mine, value in zip(technique.evaluated.parameters(), by_hand, strict=True):
        assert np.allclose(mine.detach().numpy(), value, atol=1e-6)
    for name, mine in technique.evaluated.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert mine == 6
        elif not warmup:
            assert torch.equal(mine, oracle.module.state_dict()[name]), name


class Centred(nn.Module):
    """Replaces the tensor of a buffer, as DINO does with its center, or changes the buffer in place."""

    def __init__(self, *, replaces: bool) -> None:
        super().__init__()
        self.layer, self.replaces = nn.Linear(3, 1), replaces
        self.register_buffer("center", torch.zeros(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            center = 0.9 * self.center + inputs.mean(0)
            self.center = center if self.replaces else self.center.copy_(center)
        return self.layer(inputs - self.center)


@pytest.mark.parametrize(
    ("create", "options"),
    [(ema.create, {"ema": 0.9}), (lookahead.create, {"lookahead": 2})],
    ids=["ema", "lookahead"],
)
def test_a_buffer_that_is_replaced_is_the_one_that_is_evaluated(create: Any, options: dict[str, Any]) -> None:
    centers = []
    for replaces in (False, True):
        network = Centred(replaces=replaces)
        technique = create(make_context(network, **options))
        for step in range(5):
            network(torch.full((2, 3), float(step + 1)))
            technique.after_step(moment(step))
            if replaces and step == 2:  # an evaluation may replace it, too
                technique.evaluated.center = technique.evaluated.center.clone()
        centers.append(technique.evaluated.center)
    assert torch.equal(*centers) and centers[0].min() > 0


def test_the_average_of_a_buffer_that_changes_its_shape_starts_afresh() -> None:
    network = Centred(replaces=True)
    technique = ema.create(make_context(network, ema=0.9))
    assert technique.after_step is not None and technique.evaluated is not None
    technique.after_step(moment(0))
    network.center = torch.ones(5)
    technique.after_step(moment(1))
    assert torch.equal(technique.evaluated.center, torch.ones(5)) and technique.evaluated.center is not network.center


def test_sam_counts_a_buffer_that_is_replaced_once() -> None:
    network = Centred(replaces=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    technique = sam.create(make_context(network, sam=0.5))
    assert technique.update is not None

    def gradients(*, communicate: bool = True, count: bool = True) -> None:
        network(torch.ones(2, 3)).sum().backward()

    technique.update(gradients, optimizer.step, optimizer)
    assert torch.equal(network.center, torch.ones(3))


def test_swa_is_torchs() -> None:
    """AveragedModel at the ends of epochs, then update_bn over the same batches."""
    network = normed()
    technique = swa.create(make_context(network, swa=0.5))  # of 4 epochs of 10 steps
    assert technique.after_step is not None and technique.before_evaluation is not None
    evaluated = technique.evaluated
    assert evaluated is not None
    oracle = torch.optim.swa_utils.AveragedModel(network)
    batches = [Batch(torch.randn(6, 3, 4, 4), torch.zeros(6), torch.arange(6)) for _ in range(3)]
    for step in range(40):
        step_towards(network, step)
        technique.after_step(moment(step))
        if step % 10 == 9:
            technique.before_evaluation(iter(batches))
            if step < 20:
                oracle_network = network
            else:
                oracle.update_parameters(network)
                torch.optim.swa_utils.update_bn(((b.images, b.labels) for b in batches), oracle)
                oracle_network = oracle.module
            for name, value in oracle_network.state_dict().items():
                assert torch.equal(evaluated.state_dict()[name], value), (step, name)
    assert {module.momentum for module in evaluated.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_swas_estimate_draws_no_number_and_reads_no_batch_in_vain() -> None:
    network = nn.Sequential(nn.Dropout(0.5), normed())
    batch = Batch(torch.randn(6, 3, 4, 4), torch.zeros(6), torch.arange(6))
    state = torch.get_rng_state()
    swa.estimate_statistics(network, [batch], Precision("off", CPU))
    assert torch.equal(torch.get_rng_state(), state) and network.training

    def never():  # type: ignore[no-untyped-def]
        raise AssertionError("read")
        yield

    swa.estimate_statistics(nn.Linear(2, 2), never(), Precision("off", CPU))


def test_swa_leaves_a_frozen_batch_norm_its_statistics() -> None:
    network = normed()
    network[1].running_mean.fill_(5.0)
    freeze(network, "1")
    batch = Batch(torch.randn(6, 3, 4, 4), torch.zeros(6), torch.arange(6))
    swa.estimate_statistics(network, [batch], Precision("off", CPU))
    assert torch.equal(network[1].running_mean, torch.full((4,), 5.0)) and network.training


def test_swas_rate_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    oracle = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=6)
    ours = swa.annealed(lambda step: 0.5 if step < 10 else 0.4, 10, 6, 0.05 / 0.5)
    assert [ours(step) for step in range(10)] == [0.5] * 10
    for step in range(10, 22):
        assert 0.5 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        oracle.step()
    assert swa.annealed(lambda step: 1.0, 3, 0, 0.25)(3) == 0.25


def test_ema_and_swa_exclude_each_other() -> None:
    with pytest.raises(UserError, match="--ema with --swa: each evaluates"):
        parse(["--ema", "0.9", "--swa", "0.5"])


def test_averages_see_the_network_as_the_users_own_techniques_left_it(tmp_path: Path) -> None:
    words = "--ema 0.9 --technique tests.ddp_train.techniques.own:smoother"
    run = runs.make(words, tmp_path / "run", runs.PLAIN)
    components = run.trainer.components
    assert [type(m) for m in components.evaluated.modules()] == [type(m) for m in components.network.modules()]
    assert any(isinstance(module, nn.GELU) for module in components.evaluated.modules())


@pytest.mark.parametrize("words", ["--ema 0.9", "--swa 0.5", "--lookahead 2"])
def test_a_network_that_cannot_be_copied_is_refused_in_one_line(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{words.split()[0]}: needs a copy of the network.*cannot pickle"):
        runs.make(words, tmp_path / "run", "tests.ddp_train.techniques.tiny:single")


def test_the_best_model_on_disk_is_the_evaluated_one(tmp_path: Path) -> None:
    run = runs.make("--ema 0.5 --epochs 1", tmp_path / "run", runs.STATEFUL)
    run.trainer.fit()
    saved = torch.load(tmp_path / "run" / "best_model.pth", weights_only=True)
    evaluated = run.trainer.components.evaluated.state_dict()
    assert saved.keys() == run.trainer.components.network.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in evaluated.items())
    assert not all(
        torch.equal(saved[name], value) for name, value in run.trainer.components.network.state_dict().items()
    )
