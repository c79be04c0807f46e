"""Memory runs out on one rank: all ranks take the step again in smaller micro-batches, with the same gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import starving
from tests.ranks import run_ranks

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Every case, trained by one start of two real ranks."""
    folder = tmp_path_factory.mktemp("memory")
    run_ranks(2, Path(starving.__file__), str(folder / "result.pt"), folder=folder, timeout_s=180)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize(
    ("case", "reference", "accumulate"),
    [
        ("forward", "whole", 2),
        ("backward", "whole", 2),
        ("twice", "whole", 4),
        ("accumulated forward", "accumulated", 4),
        ("accumulated backward", "accumulated", 4),
        ("sam backward", "sam", 2),
    ],
)
def test_the_step_is_taken_again_with_the_same_gradient(
    case: str, reference: str, accumulate: int, found: Found
) -> None:
    mine, whole = found[case], found[reference]
    assert len(mine["norms"]) == len(whole["norms"]) == 19, "as many steps as without"
    assert mine["norms"][: starving.STEP] == whole["norms"][: starving.STEP]
    assert (mine["gradient"] - whole["gradient"]).norm() / whole["gradient"].norm() <= 1e-5
    assert mine["accumulate"] == accumulate
    assert len(mine["said"]) == (2 if case == "twice" else 1) and f"rank {starving.RANK} in step 14" in mine["said"][0]
    before, after = mine["history"]
    assert before == whole["history"][0], "the epoch before knows nothing of it"
    assert after["extra"]["accumulate"] == accumulate and after["learning_rate"] == whole["history"][1]["learning_rate"]
    assert after["train_loss"] == pytest.approx(whole["history"][1]["train_loss"], rel=1e-5)


def test_memory_runs_out_in_the_midst_of_the_exchange_too(found: Found) -> None:
    assert found["forward"]["buckets"] == [0] and found["accumulated backward"]["buckets"] == [0]
    assert found["backward"]["buckets"] == [1], "one bucket was on its way, another was owed"


def test_batch_statistics_forget_the_step_that_was_broken_off(found: Found) -> None:
    mine, whole = found["statistics forward"]["buffers"], found["statistics"]["buffers"]
    # In 7 of 20 steps there are two micro-batches in place of one, and no trace of the one that was broken off.
    assert int(whole["1.num_batches_tracked"]) == 20 and int(mine["1.num_batches_tracked"]) == 27


def test_at_micro_batches_of_one_image_the_run_ends_with_one_line(found: Found) -> None:
    mine = found["to the end"]
    assert mine["step"] == starving.STEP and mine["accumulate"] == 8
    assert mine["error"].startswith("memory ran out on rank 1 in step 14, with micro-batches of one image")
