"""A number that is not finite on one rank of a real run: all end in the same step, and nothing of it is on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_core.errors import TrainingDiverged
from ddp_train.checkpoint import format as checkpoint_format
from tests.ddp_train.techniques import runs as techniques
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


class Extra(nn.Module):
    """Has state that is no tensor."""

    def get_extra_state(self) -> object:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["mask", "large numbers", "extra state"])
def test_what_is_no_poison_does_not_end_a_run_at_its_checkpoint(kind: str, tmp_path: Path) -> None:
    components = techniques.make("", tmp_path / "run", techniques.PLAIN).trainer.components
    network, saver = components.network, components.saver
    assert saver is not None
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    network.register_buffer("mine", mask if kind == "mask" else mask.clamp_min(torch.finfo(mask.dtype).min))
    if kind == "extra state":
        network.mine.zero_()
        network.add_module("extra", Extra())
    saver.save(components.progress)
    saver.finish()
    assert "mine" in checkpoint_format.newest(tmp_path / "run").state["model"]  # type: ignore[operator]
    for spoilt in (torch.nan, torch.inf):
        network.mine[0, 0] = spoilt
        with pytest.raises(TrainingDiverged, match="the weights are not finite after step 0"):
            saver.save(components.progress)
