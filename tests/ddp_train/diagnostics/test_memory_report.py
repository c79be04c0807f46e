"""The peaks by phase: what is counted, joined, written and shown."""

from __future__ import annotations

import gc
import json
import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_train.diagnostics import memory_report
from tests.ddp_train.techniques import runs

CPU = torch.device("cpu")
MIB = 2**20


def test_what_is_kept_is_what_autograd_needs() -> None:
    """A linear layer needs its input, ReLU its output, and a parameter is no activation."""
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    images = torch.randn(10, 16)
    with memory_report.kept_bytes(network) as kept:
        network(images).sum()
    # the input of the first layer, and ReLU's output, which is the input of the second too
    assert sorted(kept.values()) == [10 * 16 * 4, 10 * 32 * 4]


def test_the_peak_of_the_process_starts_anew() -> None:
    gc.collect()  # not in between, where it could lower what is resident
    if not memory_report.reset_peak(CPU):
        pytest.skip("this kernel does not let a process reset its high-water mark")
    before = memory_report.read_peak(CPU)
    assert before is not None
    with mmap.mmap(-1, 64 * MIB) as pages:  # a tensor may fit into what the heap still holds from earlier tests
        for offset in range(0, 64 * MIB, mmap.PAGESIZE):
            pages[offset] = 1
    raised = memory_report.read_peak(CPU)
    assert raised is not None and 56 * MIB < raised - before < 80 * MIB
    memory_report.reset_peak(CPU)
    lower = memory_report.read_peak(CPU)
    assert lower is not None and lower < raised - 32 * MIB


def test_a_run_ends_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.make("--memory-report --accumulate 2", tmp_path / "run", runs.PLAIN)
    run.trainer.fit()
    for observer in run.observers:
        observer.on_end(run.trainer.best)
        observer.close()
    document = json.loads((tmp_path / "run" / "memory.json").read_text())
    assert (document["schema"], document["unit"]) == ("ddp-train-memory/1", "bytes")
    (peaks,) = document["ranks"]
    # 8 images of 3x32x32, and the maps of the tiny network: at least the images are kept
    assert 8 * 3 * 32 * 32 * 4 <= peaks["kept"] < MIB
    heading, columns, row = capsys.readouterr().err.splitlines()[-3:]
    assert heading.startswith("peak memory in MiB (resident memory of the whole process)")
    assert columns.split() == ["rank", "forward", "backward", "step", "evaluation", "kept"]
    assert row.split()[0] == "0" and row.split()[-1] == f"{peaks['kept'] / MIB:,.1f}"
    for name in ("forward", "backward", "step", "evaluation"):
        assert peaks[name] is None or peaks[name] > 50 * MIB  # torch alone is larger


def test_what_is_unknown_is_a_dash() -> None:
    peaks: dict[str, int | None] = dict.fromkeys(memory_report.COLUMNS, None)
    assert memory_report.table([peaks | {"step": 3 * MIB}], "x").splitlines()[-1].split() == [
        "0",
        "-",
        "-",
        "3.0",
        "-",
        "-",
    ]
