"""A number that is not finite on one rank of a real run: all end in the same step, and nothing of it is on the disk."""

from __future__ import annotations

import json

import torch

from ddp_train.checkpoint import format as checkpoint_format
from tests.faults.runs import Runs


def test_all_ranks_end_in_the_step_and_the_batch_is_kept(runs: Runs) -> None:
    status, text = runs.finish("run", "--save-every 1 --seed 3", network="tests.ddp_train.diagnostics.spoilt:poisoned")
    assert status == 1, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    assert errors[0].startswith("error: step 14 (epoch 2), rank 1: the output of layer 2 (Poison) is not finite")
    folder = runs.folder / "run"
    document = json.loads((folder / "bad_batch.json").read_text())
    assert (document["step"], document["epoch"], document["seed"]) == (14, 2, 3)
    assert [len(indices) for indices in document["indices"]] == [8, 8]
    found = checkpoint_format.newest(folder).state
    assert found["progress"]["step"] in range(10, 14)  # type: ignore[index]
    for name, value in found["model"].items():  # type: ignore[attr-defined]
        assert bool(torch.isfinite(value).all()), name
    assert not (folder / "done.json").exists()
