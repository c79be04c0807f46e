"""Where the host waits for the GPU in a run: in a step, nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ghost import Ghost
from tests.ghost.runs import STEPS, make

NOWHERE = {
    "default": "",
    "bf16": "--amp bf16",
    "fp16": "--amp fp16 --clip-grad 1",
    "fp16, muon": "--amp fp16 --optimizer muon",
    "accumulate": "--accumulate 2",
    "mixup": "--mixup 0.5 --cutmix 1",
    "SAM": "--sam 0.1 --optimizer adamw",
    "EMA": "--ema 0.8 --ema-warmup --lookahead 3",
    "SWA": "--swa 0",
    "muon": "--optimizer muon --muon-normalize --clip-grad 1 --centralize-gradients",
    "loader": "--pipeline loader --num-workers 0 --augment heavy --accumulate 2",
    "loader with workers": "--pipeline loader --num-workers 2 --mixup 0.5",
    "augmentation": "--augment heavy --random-resized-crop 0.3 --rotation 15 --augment-policy randaugment",
    "class weights": "--class-weights tests/ddp_train/techniques/class_weights.yaml --label-smoothing 0.1",
    "hard samples": "--hard-samples 0.5",
    "speedrun": "--preset speedrun --model speedrun --width-mult 0.1 --whiten-bias-epochs 0 --amp bf16",
    "reproducible": "--reproducible --reproducible-shards 2",
}


@pytest.mark.parametrize("options", NOWHERE.values(), ids=NOWHERE.keys())
def test_no_step_waits(options: str, ghost: Ghost, tmp_path: Path) -> None:
    run = make(options, tmp_path / "run")
    ghost.waits.forget()
    run.trainer.fit()
    assert run.trainer.progress.step == STEPS
    assert ghost.gpu.queued > 100 * STEPS, "they were steps on the GPU"
    assert ghost.waits.places(at_least=STEPS - 1) == []


def test_what_an_epoch_waits_for(ghost: Ghost, tmp_path: Path) -> None:
    """Its metrics, its evaluation, its checkpoint: each once."""
    run = make("--no-initial-loss-check", tmp_path / "run")
    ghost.waits.forget()
    run.trainer.fit()
    places = {(wait.place.partition(":")[0].removeprefix("ddp_train/"), wait.kind) for wait in ghost.waits.counts}
    assert places == {
        ("engine/metrics.py", "a copy to the device, with memory that is not pinned"),
        ("distributed/process_group.py", "tolist"),
        ("checkpoint/manager.py", "_local_scalar_dense"),
        ("checkpoint/async_writer.py", "Stream.synchronize"),
    }
    assert max(ghost.waits.counts.values()) <= 3


def test_watch_numbers_waits_once_a_step(ghost: Ghost, tmp_path: Path) -> None:
    run = make("--watch-numbers", tmp_path / "run")
    ghost.waits.forget()
    run.trainer.fit()
    (place,) = ghost.waits.places(at_least=STEPS)
    assert place.endswith("to_host: tolist"), "the sum over the ranks"
