"""--histograms: what TensorBoard's files hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.diagnostics import histograms
from ddp_train.observers.records import EpochRecord, RunFacts
from ddp_train.technique import Moment
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import tiny

FACTS = RunFacts(
    name="x",
    model="m",
    parameters=1,
    dataset="d",
    device="cpu",
    world_size=1,
    epochs=1,
    steps_per_epoch=1,
    global_batch=1,
    out_dir="x",
)
NUMBERS = ("train_loss", "train_accuracy", "loss", "accuracy", "learning_rate", "seconds")


def test_the_histograms_are_numpys(tmp_path: Path) -> None:
    network, images = tiny.plain(10, (3, 32, 32)), torch.randn(6, 3, 32, 32)
    made = histograms.create(make_context(network, out_dir=str(tmp_path)))
    assert made.batch is not None and made.observer is not None
    made.observer.on_start(FACTS)
    assert made.batch(images, torch.zeros(6), Moment(0, 0, 0, 0))[0] is images
    record = EpochRecord(epoch=1, images_per_second=1, global_batch=1, **dict.fromkeys(NUMBERS, 1.0))
    made.observer.on_epoch(record)
    made.observer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "histograms"), size_guidance={"histograms": 0})
    events.Reload()
    assert len(events.Tags()["histograms"]) == len(list(network.parameters())) + 7
    expected = {
        "weights/0.weight": network[0].weight.detach().numpy(),  # type: ignore[union-attr]
        "activations/1": network[1](network[0](images)).detach().numpy(),
    }
    for tag, values in expected.items():
        (event,) = events.Histograms(tag)
        found = event.histogram_value
        assert (event.step, found.num) == (1, values.size)
        assert (found.min, found.max) == (pytest.approx(values.min()), pytest.approx(values.max()))
        assert math.isclose(found.sum, values.sum(dtype=np.float64), rel_tol=1e-4, abs_tol=1e-3)
    assert network.training


def test_without_tensorboard_they_are_refused() -> None:
    with pytest.raises(UserError, match="--histograms go into TensorBoard"):
        parse(["--histograms", "--no-tensorboard"])
