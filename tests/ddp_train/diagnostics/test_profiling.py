"""--profile: which steps, what the table says, and the files."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddp_train.diagnostics.profiling import steps_to_profile, table
from tests.ddp_train.techniques import runs


@pytest.mark.parametrize(
    ("steps_per_epoch", "left", "expected"),
    [
        (98, 980, (10, 5)),
        (16, 32, (10 - 5, 5)),
        (10, 20, (3, 5)),
        (4, 8, (1, 3)),
        (2, 2, (1, 1)),
        (1, 9, (3, 5)),
        (1, 1, (1, 0)),
    ],
)
def test_the_steps_are_within_an_epoch(steps_per_epoch: int, left: int, expected: tuple[int, int]) -> None:
    before, steps = steps_to_profile(steps_per_epoch, left)
    assert (before, steps) == expected
    assert before + steps <= max(steps_per_epoch, left)


@dataclass
class Row:
    key: str
    count: int
    self_cpu_time_total: float
    self_device_time_total: float


def test_calls_and_times_are_those_of_the_steps() -> None:
    rows = [Row("aten::add", 10, 1000.0, 9000.0), Row("aten::conv2d", 5, 3000.0, 1000.0), Row("x" * 80, 5, 0.0, 0.0)]
    cpu = table(rows, 5, on_gpu=False, limit=2)
    assert [line.split() for line in cpu[1:]] == [
        ["75.0%", "0.60", "1", "aten::conv2d"],
        ["25.0%", "0.20", "2", "aten::add"],
    ]
    gpu = table(rows, 5, on_gpu=True, limit=3)
    assert gpu[1].split() == ["90.0%", "1.80", "2", "aten::add"]
    assert gpu[3].endswith("x" * 57 + "...")


def test_a_run_leaves_a_trace_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.make("--profile", tmp_path, runs.PLAIN)
    run.trainer.fit()
    for observer in run.observers:
        observer.close()
    with gzip.open(tmp_path / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 5
    text = (tmp_path / "profile.txt").read_text()
    assert text.startswith("steps 4 to 8 on the CPU, ") and "conv" in text
    # Kernels of 3 to 8 and 8 to 16 channels, with the images of a batch of 16; a gradient of the linear layer.
    shaped = [line.split() for line in text[text.index("shapes of its inputs") :].splitlines()[1:]]
    assert any(line[2].endswith("convolution") and line[3:5] == ["16x3x32x32", "8x3x3x3"] for line in shaped), text
    assert any("256x10" in line or "10x256" in line for line in shaped)
    assert any(float(line[1]) > 0 for line in shaped)
    times = [float(line[0]) for line in shaped]
    assert times == sorted(times, reverse=True)
    screen = capsys.readouterr().err
    assert "steps 4 to 8" in screen and "profile.txt" in screen and len(screen) < len(text)


def test_a_run_that_is_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.make("--profile --synthetic-samples 16 --epochs 1", tmp_path, runs.PLAIN)
    run.trainer.fit()
    for observer in run.observers:
        observer.close()
    assert "--profile: the run ended before" in capsys.readouterr().err
    assert not (tmp_path / "trace.json.gz").exists()
