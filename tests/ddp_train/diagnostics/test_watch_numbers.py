"""--watch-numbers: the first bad layer, the step and the rank are named; spikes are told."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_core.errors import TrainingDiverged
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.data.pipeline.window import Window
from ddp_train.diagnostics import watch_numbers
from ddp_train.diagnostics.watch_numbers import RunningLoss, first_bad_layer
from ddp_train.technique import Moment
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import runs

SPOILT = "tests.ddp_train.diagnostics.spoilt:poisoned"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3))


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Outside(nn.Module):
    """A division outside of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) / 0)


def spoil(value: torch.Tensor) -> None:
    with torch.no_grad():
        value.flatten()[0] = torch.nan


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight": (lambda: (m := net(), spoil(m[3].weight))[0], "the weight of layer 3 (Linear) is not finite"),
    "buffer": (lambda: (m := net(), spoil(m[1].running_var))[0], "the running_var of layer 1 (BatchNorm1d)"),
    "output": (lambda: nn.Sequential(nn.Linear(4, 6), Log(), nn.ReLU()), "the output of layer 1 (Log) is not finite"),
    "between": (Outside, "what layer last (Linear) is given, computed after first (Linear), is not finite"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_bad_layer_is_named(case: str) -> None:
    make, expected = CASES[case]
    network = make().eval()
    found = first_bad_layer(network, torch.randn(5, 4), contextlib.nullcontext())
    assert found is not None and expected in found
    assert not any(module._forward_hooks for module in network.modules())


def test_bad_images_and_none_at_all() -> None:
    assert first_bad_layer(net(), torch.full((2, 4), torch.inf), contextlib.nullcontext()) == (
        "the images themselves are not finite"
    )
    assert first_bad_layer(net(), torch.randn(2, 4), contextlib.nullcontext()) is None


def test_a_gradient_that_is_not_finite_is_found_where_it_begins() -> None:
    network = net()
    watched = watch_numbers.create(make_context(network, amp="off"))
    assert watched.batch is not None and watched.gradient is not None
    watched.batch(torch.randn(5, 4), torch.zeros(5), Moment(0, 0, 0, 0))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network[1].weight.grad.fill_(torch.inf)
    network[0].weight.grad.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match=r"step 1 \(epoch 1\), all outputs are finite, the gradient of 1.weight"):
        watched.gradient(list(network.parameters()), Moment(0, 0, 0, 0))


def test_a_run_stops_at_the_step_with_its_weights_whole(tmp_path: Path) -> None:
    run = runs.make("--watch-numbers", tmp_path, SPOILT)
    with pytest.raises(TrainingDiverged, match=r"step 14 \(epoch 2\), rank 0: the output of layer 2 \(Poison\)"):
        run.trainer.fit()
    assert all(torch.isfinite(p).all() for p in run.trainer.components.network.parameters())


def test_every_run_stops_there_and_keeps_the_batch_for_a_replay(tmp_path: Path) -> None:
    run = runs.make("--save-every 1", tmp_path, SPOILT)
    with pytest.raises(TrainingDiverged, match=r"step 14 \(epoch 2\), rank 0: the output of layer 2 \(Poison\)"):
        run.trainer.fit()
    assert all(torch.isfinite(p).all() for p in run.trainer.components.network.parameters())
    document = json.loads((tmp_path / "bad_batch.json").read_text())
    assert (document["epoch"], document["step"]) == (2, 14) and "layer 2 (Poison)" in document["found"]
    sampler = run.trainer.components.pipeline.sampler
    sampler.set_epoch(1)
    assert document["indices"] == [sampler.order()[3 * 16 : 4 * 16].tolist()]
    saver = run.trainer.components.saver
    assert saver is not None
    saver.finish()
    assert checkpoint_format.newest(tmp_path).state["progress"]["step"] in range(10, 14)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--save-every 1", "--resume {folder} comes to it again, bit for bit; no checkpoint has it"),
        ("--synthetic-samples 320", "the same command comes to it again, bit for bit; there is no checkpoint yet"),
    ],
)
def test_the_way_back_that_is_told_is_there(tmp_path: Path, options: str, words: str) -> None:
    run = runs.make(options, tmp_path, SPOILT)
    with pytest.raises(TrainingDiverged, match=re.escape(words.format(folder=tmp_path))):
        run.trainer.fit()


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    run = runs.make("--save-every 12", tmp_path, "tests.ddp_train.techniques.tiny:plain")
    step = run.trainer.train_step

    def spoil(window: Window) -> None:
        step(window)
        if run.trainer.progress.step == 12:
            with torch.no_grad():
                next(iter(run.trainer.components.network.parameters()))[0, 0, 0, 0] = torch.nan

    run.trainer.train_step = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged, match=r"the weights are not finite after step 12 \(epoch 2\)"):
        run.trainer.fit()
    saver = run.trainer.components.saver
    assert saver is not None
    saver.finish()
    assert checkpoint_format.newest(tmp_path).state["progress"]["step"] == 10  # type: ignore[index]


def test_a_spike_is_told_with_step_and_layer(capsys: pytest.CaptureFixture[str]) -> None:
    network = net()
    watched = watch_numbers.create(make_context(network, amp="off"))
    assert watched.loss is not None and watched.gradient is not None and watched.report is not None
    generator = torch.Generator().manual_seed(1)
    for step in range(60):
        noise = 1 + 0.05 * torch.randn((), generator=generator)
        loss = watched.loss(lambda logits, targets, value=noise * (20 if step == 50 else 1): value * len(logits))
        loss(torch.zeros(8, 3), torch.zeros(8))
        for name, parameter in network.named_parameters():
            parameter.grad = torch.full_like(parameter, 30.0 if step == 50 and name == "1.bias" else 1.0)
        watched.gradient(list(network.parameters()), Moment(step // 30, step, 0, 0))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("step 51 (epoch 2): the loss")
    assert "the gradient of 1.bias rose most, to 30.0 times" in told
    assert watched.report() == {"loss_spikes": 1.0}


def test_the_running_loss_is_a_moving_mean() -> None:
    running = RunningLoss()
    values = [1.0, 2.0, 3.0, 4.0]
    assert [running.add(value) for value in values] == [None] * 4
    assert running.mean == pytest.approx(2.5) and math.sqrt(running.variance) == pytest.approx(math.sqrt(1.25))
    falling = RunningLoss()
    assert not any(falling.add(10 / (1 + step)) for step in range(200))


@pytest.mark.parametrize(("epoch", "way"), [(1, "and there is none yet"), (2, "and --resume {} continues")])
def test_weights_spoilt_at_the_end_of_an_epoch_name_that_epoch_and_a_checkpoint_that_exists(
    tmp_path: Path, epoch: int, way: str
) -> None:
    run = runs.make("--epochs 3", tmp_path, "tests.ddp_train.techniques.tiny:plain")
    step = run.trainer.train_step

    def spoil(window: Window) -> None:
        step(window)
        if run.trainer.progress.step == 10 * epoch:
            with torch.no_grad():
                next(iter(run.trainer.components.network.parameters()))[0, 0, 0, 0] = torch.nan

    run.trainer.train_step = spoil  # type: ignore[method-assign]
    expected = f"not finite after step {10 * epoch} (epoch {epoch}): no checkpoint is written of them, "
    with pytest.raises(TrainingDiverged, match=re.escape(expected + way.format(tmp_path))):
        run.trainer.fit()
    assert (tmp_path / "checkpoint-latest.pt").exists() is (epoch == 2)


def test_a_lost_epoch_names_a_checkpoint_only_where_there_is_one(tmp_path: Path) -> None:
    run = runs.make("--epochs 3", tmp_path, "tests.ddp_train.techniques.tiny:plain")
    assert "no checkpoint has it, and there is none yet; " in run.trainer._explain(0, math.nan)
    run.trainer.components = replace(run.trainer.components, epochs=1)
    run.trainer.fit()
    line = run.trainer._explain(1, math.nan)
    assert line.startswith("the training loss of epoch 2 is nan") and f"--resume {tmp_path} continues" in line
