"""The first layer of speedrun stands still after some epochs: against a bias that is frozen by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.models.speedrun import SpeedrunNet
from ddp_train.optim.lr_schedule import set_learning_rate
from ddp_train.tune.warm_up import warm_up
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import runs
from tests.ddp_train.techniques.tiny import plain

SMALL = "--width-mult 0.05"


def test_a_run_is_one_whose_bias_is_frozen_by_hand(tmp_path: Path) -> None:
    parts = runs.make(SMALL, tmp_path / "run", "speedrun").trainer.components
    network, optimizer, step = parts.network, parts.optimizer, 0
    assert isinstance(network, SpeedrunNet) and network.whiten.bias is not None
    network.train()
    for epoch in range(2):
        network.whiten.bias.requires_grad_(epoch < 1)
        for window in parts.pipeline.train(epoch):
            (batch,) = window.batches
            (parts.loss(network(batch.images), batch.labels) / window.size).backward()
            set_learning_rate(optimizer, parts.schedule(step))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    found = runs.train(f"{SMALL} --whiten-bias-epochs 1", "speedrun")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[f"network.{name}"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_backward_pass_goes_through_the_first_layer(ranks: int) -> None:
    network = SpeedrunNet(10, width_mult=0.05).train()
    bias, images = network.whiten.bias, torch.randn(4, 3, 32, 32)
    assert bias is not None
    before = network(images)
    patches: list[torch.Tensor] = []
    network.whiten.register_forward_hook(lambda module, inputs, output: patches.append(output))
    network.trains_whiten, network.zero_for_whiten = False, ranks > 1
    after = network(images)
    after.sum().backward()
    assert torch.equal(before, after) and not patches[0].requires_grad
    if ranks > 1:
        assert bias.grad is not None and not bias.grad.any(), "DistributedDataParallel waits for it"
    else:
        assert bias.grad is None


def test_every_sort_of_step_is_warmed_up(tmp_path: Path) -> None:
    run = runs.make(f"{SMALL} --whiten-bias-epochs 1", tmp_path / "run", "speedrun")
    network, seen = run.trainer.components.network, []
    assert isinstance(network, SpeedrunNet)
    network.register_forward_pre_hook(lambda module, inputs: seen.append((len(inputs[0]), network.trains_whiten)))
    shape = (3, 32, 32)
    assert warm_up(run.trainer, passes=1) == [(16, shape), (16, shape)]
    assert seen == [(16, True), (16, False)]


def test_another_network_is_refused() -> None:
    from ddp_train.techniques.whiten_bias import create

    network = plain(10, (3, 32, 32))
    with pytest.raises(UserError, match="has no whitening layer"):
        create(make_context(network, whiten_bias_epochs=1))


def test_what_looks_at_gradients_bears_that_one_stays_away(tmp_path: Path) -> None:
    looking = "--watch-numbers --gradient-flow --clip-grad 1 --memory-report --checkpoint-activations --amp bf16"
    run = runs.make(f"{SMALL} --whiten-bias-epochs 1 {looking}", tmp_path / "run", "speedrun")
    run.trainer.fit()
    assert run.trainer.progress.step == 20
