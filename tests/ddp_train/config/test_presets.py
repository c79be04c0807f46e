"""Every preset parses, starts, and trains; those with a recipe are that recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.assemble.build import build
from ddp_train.config.options import to_dict
from ddp_train.config.parse import PRESETS, parse, presets
from ddp_train.config.recommend import Hardware, apply, recommend
from ddp_train.distributed.process_group import Ranks
from ddp_train.optim.lr_schedule import create_schedule
from ddp_train.tune.optimize import Machine, suggest

TWO_STEPS = ["--dataset=synthetic", "--synthetic-samples=64", "--batch-size=32", "--stop-after=1", "--no-tensorboard"]
# Any machine's CPU: bf16 may be emulated there, and a compiler be missing.
ON_A_CPU = ["--device", "cpu", "--amp", "off", "--no-compile"]
NARROW = {"high-accuracy": 0.5, "residual-93": 0.25, "rtx4090": 0.5, "rtx4080": 0.5, "rtx4070": 0.5, "speedrun": 0.25}
"""Channel multipliers for presets whose own network would take longer than its two steps are worth."""

RECIPES: dict[str, dict[str, Any]] = {
    "quick": {"model": "small", "epochs": 10},
    "residual-93": {
        "model": "residual",
        "epochs": 150,
        "batch_size": 128,
        "optimizer": "adamw",
        "amsgrad": True,
        "scheduler": "warm_restarts",
        "t_0": 37,
        "mixup_prob": 0.5,
        "early_stopping": 50,
    },
    "high-accuracy": {
        "model": "power",
        "width_mult": 2.0,
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "augment": "heavy",
        "label_smoothing": 0.1,
    },
    "speedrun": {
        "model": "speedrun",
        "target": "auto",
        "optimizer": "muon",
        "muon_normalize": True,
        "muon_rest": "sgd",
        "scheduler": "linear",
        "flip": "alternating",
        "tta": "flip+shifts",
    },
    "rtx4090": {"amp": "bf16", "channels_last": True},
    "rtx4080": {"model": "power", "amp": "bf16", "channels_last": True},
    "rtx4070": {"amp": "bf16", "channels_last": True},
    "gtx1080": {"amp": "off", "compile": False, "channels_last": False},
}


@pytest.mark.parametrize("name", presets())
def test_two_steps(name: str, tmp_path: Path) -> None:
    width = ["--width-mult", str(NARROW[name])] if name in NARROW else []
    words = ["--preset", name, *TWO_STEPS, *ON_A_CPU, *width, "--out-dir", str(tmp_path / "run")]
    run = build(parse(words), Ranks(), torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in run.trainer.components.network.parameters()]
    sized = "--target 0.89: an accuracy on CIFAR-10; synthetic gets a network and a run of that size"
    assert [note for note in run.facts.notes if "--target" in note] == ([sized] if name == "speedrun" else [])
    progress = run.trainer.fit()
    assert (progress.epoch, progress.step) == (1, 2)
    after = [parameter.detach() for parameter in run.trainer.components.network.parameters()]
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    again = parse(["--config", str(run.folder.path / "config.yaml")])
    assert to_dict(again) == to_dict(run.config) | {"stop_after": None}


def test_what_a_preset_sets_in_vain_is_not_recorded(tmp_path: Path) -> None:
    words = ["--preset", "rtx4090", *TWO_STEPS, *ON_A_CPU, "--model", "small", "--pipeline", "resident"]
    words += ["--out-dir", str(tmp_path / "run")]
    run = build(parse(words), Ranks(), torch.device("cpu"))
    recorded = run.config
    assert (recorded.model.width_mult, recorded.data.num_workers) == (None, None)
    again = parse(["--config", str(run.folder.path / "config.yaml")])
    assert to_dict(again) == to_dict(recorded) | {"stop_after": None}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe(name: str) -> None:
    parsed = to_dict(parse(["--preset", name]))
    assert RECIPES[name].items() <= parsed.items()


def test_a_recipe_goes_over_the_preset_of_a_gpu() -> None:
    recipe = str(PRESETS / "high-accuracy.yaml")
    parsed = parse(["--preset", "rtx4090", "--config", recipe])
    assert (parsed.data.batch_size, parsed.run.epochs, parsed.model.compile) == (256, 200, True)


@pytest.mark.parametrize(("name", "memory"), [("rtx4090", 24), ("rtx4080", 16), ("rtx4070", 12)])
def test_the_machine_and_the_optimizer_script_choose_what_the_preset_of_the_gpu_says(name: str, memory: int) -> None:
    gpu = Hardware("cuda", 1, 1, memory * 2**30, (8, 9), 16)
    preset, found = to_dict(parse(["--preset", name])), {r.name: r.value for r in recommend(gpu, parse([]))}
    named = {"model", "width_mult", "batch_size", "amp"}
    assert {key: found[key] for key in named} == {key: preset[key] for key in named}
    with_preset = apply(parse(["--preset", name]), recommend(gpu, parse(["--preset", name])))
    assert with_preset.data.num_workers == found["num_workers"]
    changes = {c.name: c.after for c in suggest(Machine(gpu, can_compile=True, note=None), parse(["--model", "power"]))}
    assert {key: changes[key] for key in changes.keys() & preset.keys() - {"num_workers", "accumulate"}} == {
        key: preset[key] for key in changes.keys() & preset.keys() - {"num_workers", "accumulate"}
    }


def test_restarts_end_with_the_run() -> None:
    for name in presets():
        schedule, epochs = parse(["--preset", name]).schedule, parse(["--preset", name]).run.epochs
        if schedule.scheduler == "warm_restarts" and epochs is not None:
            factor = create_schedule(schedule, epochs=epochs, steps_per_epoch=10)
            assert factor(epochs * 10 - 1) < 1e-3, name


def test_a_patience_outlasts_the_cycles_of_its_restarts() -> None:
    """Else a run would end in the slump behind a restart."""
    for name in presets():
        parsed = parse(["--preset", name])
        patience = parsed.regularize.early_stopping or math.inf
        if parsed.schedule.scheduler == "warm_restarts" and parsed.schedule.t_mult == 1:
            assert patience > (parsed.schedule.t_0 or 0)
        elif parsed.schedule.scheduler == "warm_restarts":
            assert patience == math.inf


@pytest.mark.parametrize("words", [["--no-examine"], ["--dataset", "digits", "--flip", "off"]])
def test_what_a_preset_has_set_is_refused_with_the_way_out_of_it(words: list[str]) -> None:
    with pytest.raises(UserError, match="add --tta none") as error:
        parse(["--preset", "speedrun", *words])
    assert "\n" not in str(error.value)
    assert parse(["--preset", "speedrun", *words, "--tta", "none"]).diagnostics.tta == "none"
