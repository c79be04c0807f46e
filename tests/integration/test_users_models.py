"""A user's network is tried before the run: it trains, or is refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.options import ModelOptions
from ddp_train.evaluation.saved_model import open_saved_model
from ddp_train.models import create_from_options, create_model, without_gradient
from tests.ddp_train.techniques import runs
from tests.ranks import ROOT, run_ranks

SHAPE, CPU = (3, 9, 8), torch.device("cpu")
REFUSED = {
    "pair": "returns a tuple; logits of shape [2, 4]",
    "other_dictionary": "returns a dict with out; logits of shape [2, 4]",
    "classes": "returns shape [2, 3] for [2, 3, 9, 8]; logits of shape [2, 4]",
    "maps": "returns shape [2, 4, 1, 1]",
    "squeezed": "returns shape [4] for [1, 3, 9, 8]",
    "integers": "returns int64; logits are real numbers",
    "imaginary": "returns complex64; logits are real numbers",
    "lazy": "1.weight is lazy",
    "meta": "features.0.weight is on the meta device",
    "frozen": "no parameter is to be trained",
    "weightless": "no parameter is to be trained",
    "complex_weights": "weight is complex",
    "other_size": "fails for images of 3 x 9 x 8",
    "half": "fails for images of 3 x 9 x 8",
    "raises": "ValueError: two",
    "viewed": "Use .reshape(...) instead. Or add --no-channels-last",
    "exits": "SystemExit: 3",
    "sparse": "1.table.weight gets a sparse gradient",
    "detached": "its logits do not depend on a trainable parameter",
}


def named(name: str) -> str:
    return f"tests.integration.users_models:{name}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        network = create_from_options(ModelOptions(model=named(name)), 4, SHAPE, CPU)
        without_gradient(named(name), network, SHAPE, CPU)
    assert str(caught.value).startswith(f"--model {named(name)}: ") and REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensor", "dictionary", "model_output", "answer", "patched"])
def test_logits_are_found_and_the_trial_leaves_no_trace(name: str) -> None:
    torch.manual_seed(3)
    fresh = create_model(named(name), num_classes=4, image_shape=SHAPE)
    draws = torch.rand(3), random.getstate(), np.random.get_state()[2]
    torch.manual_seed(3)
    tried = create_from_options(ModelOptions(model=named(name)), 4, SHAPE, CPU)
    assert without_gradient(named(name), tried, SHAPE, CPU) == ("unused.weight", "unused.bias")
    assert torch.equal(torch.rand(3), draws[0])
    assert (random.getstate(), np.random.get_state()[2]) == draws[1:]
    for (key, before), after in zip(fresh.state_dict().items(), tried.state_dict().values(), strict=True):
        assert torch.equal(before, after), key
    assert all(p.grad is None for p in tried.parameters()) and tried.training
    logits = fresh.eval()(images := torch.rand(2, *SHAPE))
    logits = getattr(logits, "logits", None) if not isinstance(logits, (torch.Tensor, dict)) else logits
    torch.testing.assert_close(tried.eval()(images), logits["logits"] if isinstance(logits, dict) else logits)


@pytest.mark.parametrize(("name", "option"), [("volumes", ""), ("viewed", "--no-channels-last")])
def test_networks_that_do_not_take_channels_last_train(name: str, option: str, tmp_path: Path) -> None:
    run = runs.make(f"--epochs 1 {option}", tmp_path / "run", named(name))
    assert run.trainer.fit().epoch == 1
    saved = open_saved_model(str(tmp_path / "run"), torch.device("cpu"))
    channels, *size = saved.facts.image_shape
    assert len(saved.network(saved.normaliser().normalise(torch.zeros((2, *size, channels), dtype=torch.uint8)))) == 2


def test_parameters_without_a_gradient_train_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    words = "--dataset synthetic --synthetic-samples 48 --batch-size 16 --epochs 2 --augment none --no-tensorboard"
    words += f" --no-examine --amp off --device cpu --lr 0.01 --model {named('normless')} --out-dir"
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        run_ranks(ranks, ROOT / "ddp_train" / "main.py", *words.split(), str(out), folder=out)
        assert "no gradient reaches unused.bias, unused.weight" in (out / "output-of-rank-0.txt").read_text()
        found.append(checkpoint_format.load(out / "checkpoint-latest.pt")["model"])
    for key, alone in found[0].items():
        torch.testing.assert_close(found[1][key], alone, rtol=0, atol=1e-6, msg=key)


def test_layers_that_some_passes_leave_out_train_on_two_ranks(tmp_path: Path) -> None:
    words = "--dataset synthetic --synthetic-samples 96 --batch-size 8 --epochs 2 --augment none --no-tensorboard"
    words += f" --amp off --device cpu --model {named('skipping')} --out-dir"
    run_ranks(2, ROOT / "ddp_train" / "main.py", *words.split(), str(tmp_path), folder=tmp_path)
    printed = (tmp_path / "output-of-rank-0.txt").read_text()
    for name in ("skipped.bias", "skipped.weight", "training_only.bias", "training_only.weight"):
        assert f"{name} (in some passes)" in printed


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint could be written: .*_extra_state'\] is a numpy"):
        runs.make("", tmp_path / "run", named("remembering"))
