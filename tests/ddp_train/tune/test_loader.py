"""The choice of a loader's settings, and a measurement of pipelines whose rates are known."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.main import main
from ddp_train.tune.loader import Setting, candidates, choose, find_loader

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (8, [0, 1, 2, 4, 8])]
)
def test_candidates(cores: int, expected: list[int]) -> None:
    assert candidates(cores) == expected


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([(0, None, 50), (2, 4, 98), (4, 4, 100)], (2, 4)),
        ([(0, None, 50), (2, 4, 90), (4, 4, 100), (4, 2, 99)], (4, 2)),
        ([(None, None, 10), (4, 4, 9)], (None, None)),
        ([(None, None, None), (0, None, 9), (4, 4, 9)], (0, None)),
    ],
)
def test_the_choice(rates: list[tuple[int | None, int | None, float | None]], expected: tuple) -> None:
    found = choose([Setting(*row) for row in rates])
    assert (found.recommended.workers, found.recommended.prefetch) == expected


class Paced:
    """A pipeline that delivers ten images every so many seconds."""

    steps_per_epoch = 5

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        for _ in range(self.steps_per_epoch):
            time.sleep(self.seconds)
            labels = torch.zeros(10, dtype=torch.int64)
            yield Window(iter([Batch(labels, labels, labels)]), 1, 10, 10)


def test_rates_are_measured_and_what_does_not_fit_is_left() -> None:
    def make(setting: Setting) -> Paced | None:
        return None if setting.workers is None else Paced({0: 0.04, 1: 0.02, 2: 0.01}[setting.workers])

    found = find_loader(make, 2, CPU, time_limit_s=3.0)  # type: ignore[arg-type]
    assert found.recommended.workers == 2
    rates = {setting.workers: setting.rate for setting in found.settings if setting.prefetch in (None, 4)}
    assert rates[None] is None
    assert 100 < rates[0] <= 255  # ten images in 40 ms or, on a busy machine, in more
    assert rates[0] < rates[2]


def test_a_run_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("ddp_train.tune.loader.find_loader.__kwdefaults__", {"time_limit_s": 2.0})
    words = ["--dataset", "synthetic", "--synthetic-samples", "64", "--batch-size", "16", "--device", "cpu"]
    words += ["--model", "tests.ddp_train.techniques.tiny:plain", "--tune", "loader", "--no-tensorboard"]
    assert main([*words, "--out-dir", str(tmp_path / "run")]) == 0
    assert "recommended: --pipeline resident" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "loader.json").read_text())["recommended"]["workers"] is None
