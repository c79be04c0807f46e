"""Flags between two steps: what is exchanged, saved and stopped, for a real run of one rank."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from ddp_core.errors import Stopped
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.engine.components import Components
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.step_boundary import StepBoundary
from tests.ddp_train.techniques import runs

Made = tuple[StepBoundary, Components, Metrics]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    components = runs.make("--save-every 2", tmp_path / "run", runs.PLAIN).trainer.components
    metrics = Metrics(runs.CPU)
    return StepBoundary(components, metrics), components, metrics


def saved(tmp_path: Path, components: Components) -> dict[str, object]:
    assert components.saver is not None
    components.saver.finish()
    progress = checkpoint_format.load(tmp_path / "run" / checkpoint_format.LATEST)["progress"]
    assert isinstance(progress, dict)
    return progress


def test_a_checkpoint_is_written_when_it_is_due(made: Made, tmp_path: Path) -> None:
    boundary, components, metrics = made
    metrics.add(torch.tensor(5.0), torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64))
    latest = tmp_path / "run" / checkpoint_format.LATEST
    for step in (1, 2):
        boundary.begin_step()
        boundary.exchange_flags()
        components.progress.step = components.progress.step_in_epoch = step
        boundary.after_step()
        assert components.saver is not None
        components.saver.finish()
        assert latest.exists() is (step == 2)
    assert (found := saved(tmp_path, components))["step"] == 2 and found["sums"] == [5.0, 3.0, 3.0]


@pytest.mark.parametrize("step", [3, 4])
def test_a_signal_stops_after_the_step_and_saves(made: Made, tmp_path: Path, step: int) -> None:
    boundary, components, _ = made
    components.stop.received = signal.SIGTERM
    components.progress.step = components.progress.step_in_epoch = step
    boundary.begin_step()
    assert boundary.exchange_flags()["stop"] == signal.SIGTERM
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step}, in epoch 1; saved") as stopped:
        boundary.after_step()
    assert stopped.value.status == 143 and saved(tmp_path, components)["step"] == step


def test_a_flag_counts_once_and_whichever_exchange_it_comes_with(made: Made) -> None:
    boundary, _, _ = made
    for in_backward in (False, True):
        boundary.begin_step()
        boundary.report(out_of_memory=2)
        if in_backward:
            boundary.exchange_flags_in_backward()
        assert boundary.flags_exchanged is in_backward
        flags = boundary.exchange_flags(not_finite=1)
        assert (flags["out_of_memory"], flags["not_finite"]) == (2, 1)
        boundary.begin_step()
        assert boundary.exchange_flags()["out_of_memory"] == 0
        assert not boundary.flags_exchanged


def test_a_loss_that_is_not_finite_is_seen_in_the_backward_pass(made: Made) -> None:
    boundary, _, metrics = made
    metrics.begin_step()
    metrics.add(torch.tensor(torch.nan), torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
    boundary.exchange_flags_in_backward()
    assert boundary.exchange_flags()["not_finite"] == 1


def test_an_evaluation_is_interrupted_by_a_signal(made: Made, tmp_path: Path) -> None:
    boundary, components, _ = made
    assert len(list(boundary.until_stopped(components.pipeline))) > 1
    batches = boundary.until_stopped(components.pipeline)
    next(batches)
    components.stop.received = signal.SIGINT
    with pytest.raises(Stopped, match="stopped by SIGINT after step 0, after epoch 0"):
        next(batches)
    assert saved(tmp_path, components)["step"] == 0


def test_an_epoch_is_stopped_with_its_checkpoint(made: Made, tmp_path: Path) -> None:
    boundary, components, _ = made
    boundary.after_epoch(components.network)
    components.progress.epoch, components.stop.received = 1, signal.SIGHUP
    with pytest.raises(Stopped, match="after epoch 1"):
        boundary.after_epoch(None)
    assert saved(tmp_path, components)["epoch"] == 1 and (tmp_path / "run" / "best_model.pth").exists()


def test_the_clock_of_a_resumed_epoch_continues(made: Made) -> None:
    boundary, components, _ = made
    components.progress.seconds = 100.0
    boundary.begin_epoch()
    begun = time.monotonic()
    assert 100.0 <= boundary.epoch_seconds <= 100.0 + (time.monotonic() - begun) + 1.0
