"""What run.use() and run.log() bring, on one rank: techniques that resume to the bit, and where the numbers arrive."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from ddp_train import Run
from tests.ddp_train.library.loops import Net, tensors, weights
from tests.ddp_train.observers.test_wandb import wandb  # noqa: F401 (a fixture)

TECHNIQUES: dict[str, dict[str, Any]] = {
    "sam": {"sam": 0.05},
    "bf16": {"amp": "bf16"},
    "clip, ema and sam": {"clip_grad": 0.1, "ema": 0.8, "sam": 0.05},
    "compile": {"compile": True},
}


class Stop(Exception):
    """What a test ends a loop with."""


def train(folder: Path, use: dict[str, Any], stop_at: int = -1, **options: Any) -> torch.Tensor | None:
    """The weights, and their average, at the end; None where it is broken off in the step `stop_at`."""
    steps = itertools.count()
    try:
        with Run(folder, device="cpu", seed=3, save_every=1, **options) as run:
            run.use(**use)
            net = run.model(Net())
            optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
            loader = run.loader(TensorDataset(*tensors()), batch_size=15)
            run.keep(net=net, optimizer=optimizer)
            for _ in run.epochs(2):
                for inputs, labels in loader:
                    if next(steps) == stop_at:
                        raise Stop

                    def loss(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> None:
                        with run.autocast():
                            scores = net(inputs)
                        run.backward(F.cross_entropy(scores.float(), labels, reduction="sum"))

                    if "sam" not in use:
                        loss()
                    run.step(optimizer, loss if "sam" in use else None)
                run.log(half=0.5)
            return torch.cat([weights(net), weights(run.averaged(net) if "ema" in use else net)])
    except Stop:
        return None


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_changes_the_run_and_resumes_to_the_bit(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "compile" and not request.config.getoption("--whole"):
        pytest.skip("a compilation takes long: --whole")
    whole, plain = train(tmp_path / "whole", TECHNIQUES[name]), train(tmp_path / "plain", {})
    assert whole is not None and plain is not None
    assert torch.allclose(whole, plain, atol=1e-5) if name == "compile" else not torch.equal(whole, plain)
    assert train(tmp_path / "stopped", TECHNIQUES[name], stop_at=5) is None
    found = train(tmp_path / "stopped", TECHNIQUES[name])
    assert found is not None and torch.equal(found, whole)


@pytest.mark.usefixtures("wandb")
def test_logged_numbers_reach_the_history_tensorboard_and_wandb(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, {}, tensorboard=True, wandb="mine")
    history = json.loads((folder / "training_history.json").read_text())
    assert [epoch["half"] for epoch in history["epochs"]] == [0.5, 0.5]
    events = b"".join(file.read_bytes() for file in (folder / "tensorboard").rglob("events*"))
    assert b"half" in events
    told = json.loads((tmp_path / "told").read_text())
    assert told["init"]["project"] == "mine" and any(entry.get("epoch/half") == 0.5 for entry in told["log"])


def test_wandb_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddp_train.library.records.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, {}, wandb="mine")
    assert "error: Run(wandb=...) needs the package wandb: pip install wandb" in capsys.readouterr().err


def test_an_average_needs_a_network_that_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), Run(tmp_path, device="cpu") as run:
        run.averaged(nn.Linear(1, 1))
    assert "run.use(ema=0.999) before run.model()" in capsys.readouterr().err
