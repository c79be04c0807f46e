"""How a loop of the user's own ends: by a signal, by a number that is none, by a rank that hangs or fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_train.checkpoint import format as checkpoint_format
from tests.ddp_train.library.test_loops import train

CASE = {"name": "run", "loop": "ends"}


def output_of(folder: Path, happens: str, *, rank: int, **options: object) -> str:
    """What the ranks print in a run on two of them that ends on `rank`."""
    with pytest.raises(AssertionError) as failure:
        train(folder, 2, [{**CASE, "happens": happens, "rank": rank, **options}])
    return str(failure.value)


def test_a_signal_on_one_rank_saves_and_stops_both(tmp_path: Path) -> None:
    printed = output_of(tmp_path, "signal", rank=1)
    assert "stopped by SIGTERM after step 4, in epoch 1; saved: the same command continues from there" in printed
    assert "status 143" in printed and "Traceback" not in printed
    assert checkpoint_format.step_of(tmp_path / "run" / checkpoint_format.LATEST) == 4
    found = train(tmp_path, 2, [{**CASE, "rank": 0}])["run"]["weights"]
    whole = train(tmp_path / "whole", 2, [{**CASE, "rank": 0}])["run"]["weights"]
    assert torch.equal(found, whole)
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 21


def test_a_loss_that_is_no_number_stops_both_and_its_rank_is_named(tmp_path: Path) -> None:
    printed = output_of(tmp_path, "nan", rank=1)
    assert "error: step 4 (epoch 1), rank 1: the loss is nan" in printed
    assert "status 1" in printed and "Traceback" not in printed
    document = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert [len(part) for part in document["indices"]] == [4, 4]


def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    printed = output_of(tmp_path, "hang", rank=1, step_timeout=15)
    assert "rank 1 has made no progress" in printed and "loops.py" in printed


def test_an_error_on_one_rank_ends_it_with_its_traceback_and_its_place(tmp_path: Path) -> None:
    printed = output_of(tmp_path, "error", rank=1)
    assert "ValueError: of the user's own" in printed and "rank 1 was at step 4 (epoch 1), forward" in printed


def test_memory_that_runs_out_halves_the_micro_batches_of_the_next_start(tmp_path: Path) -> None:
    printed = output_of(tmp_path, "memory", rank=0)
    assert "started again, the run continues with accumulate=2" in printed
    found = train(tmp_path, 2, [{**CASE, "happens": "memory", "rank": 0}])["run"]["weights"]
    whole = train(tmp_path / "whole", 2, [{**CASE, "rank": 0}])["run"]["weights"]
    assert torch.allclose(found, whole, atol=1e-6, rtol=0)
