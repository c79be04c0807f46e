"""The trainer as a user starts it: torchrun, plain Python, from anywhere; what it writes; resume; mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_core import __version__
from ddp_train.checkpoint import format as checkpoint_format
from tests.conftest import Trainer
from tests.integration.conftest import MAIN, ROOT, Command, torchrun

FILES = ["config.yaml", "plan.json", "training_history.json", "training_curves.png", "best_model.pth", "report.html"]


def history(folder: Path) -> dict:
    return json.loads((folder / "training_history.json").read_text())


def without_clock(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in history(folder)["epochs"]
    ]


def test_the_version_from_any_folder(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for words in ((MAIN,), ("-m", "ddp_train")):
        done = command(*words, "--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert f" {__version__} (Python " in done.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_digits_from_another_folder(command: Command, tmp_path: Path, ranks: int) -> None:
    launch = torchrun(ranks) if ranks > 1 else []
    done = command(*launch, MAIN, "--dataset", "digits", "--epochs", "2", "--out-dir", "run")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "cwd" / "run"
    for name in (*FILES, "checkpoint-latest.pt"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").rglob("events*"))
    written = history(folder)
    assert written["schema"] == "ddp-train-history/1"
    assert written["environment"]["world_size"] == ranks
    assert [epoch["epoch"] for epoch in written["epochs"]] == [1, 2]
    assert written["epochs"][1]["train_loss"] < written["epochs"][0]["train_loss"]
    assert 0 <= written["best"]["test_accuracy"] <= 1
    assert {*written["rank_seconds"]} == {str(rank) for rank in range(ranks)} and "energy" not in written
    assert "finished" in (folder / "report.html").read_text()
    weights = torch.load(folder / "best_model.pth", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert (folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_out_dir_a_new_run_folder_is_made(trainer: Trainer, tmp_path: Path) -> None:
    done = trainer("--dataset", "synthetic", "--synthetic-samples", "64", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cwd" / "runs").iterdir()
    assert (folder / "best_model.pth").exists() and folder.name.endswith("-small")


def test_resumed_equals_uninterrupted_bit_for_bit(command: Command, trainer: Trainer, tmp_path: Path) -> None:
    """On one rank; tests/faults kills two, and launchers, at any step."""
    # --model power has dropout and batch statistics: both must come back exactly.
    options = ["--dataset", "synthetic", "--synthetic-samples", "200", "--model", "power", "--width-mult", "0.125"]
    options += ["--amp", "off", "--augment", "heavy", "--batch-size", "32", "--scheduler", "multistep"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer(*options, "--epochs", "4", "--out-dir", str(whole)).returncode == 0
    killed_after_two = ["--epochs", "4", "--out-dir", str(parts)]
    stop = tmp_path / "stop.py"
    stop.write_text(STOP_AFTER_TWO_EPOCHS)
    assert command(str(stop), *options, *killed_after_two).returncode != 0
    assert len(history(parts)["epochs"]) == 3  # the third was recorded, its checkpoint never came
    done = command(MAIN, "--resume", str(parts))
    assert done.returncode == 0, done.stderr
    one, other = (checkpoint_format.load(folder / "checkpoint-latest.pt") for folder in (whole, parts))
    assert one["progress"] == other["progress"]
    _assert_same(one["model"], other["model"])
    _assert_same(one["optimizer"], other["optimizer"])
    assert without_clock(whole) == without_clock(parts)


# Ends as a kill would: after the third epoch was recorded, before its checkpoint.
STOP_AFTER_TWO_EPOCHS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from ddp_train import main
from ddp_train.checkpoint import manager as saving
write = saving.Saver.save
def save(self, progress, best=None):
    if progress.epoch == 3:
        os._exit(9)
    write(self, progress, best)
saving.Saver.save = save
main.program()
"""
SMALL_RUN = ["--dataset", "synthetic", "--synthetic-samples", "200", "--amp", "off", "--batch-size", "32"]


def test_a_resumed_run_follows_its_new_options(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert trainer(*SMALL_RUN, "--epochs", "1", "--out-dir", str(folder)).returncode == 0
    done = trainer("--resume", str(folder), "--epochs", "2", "--lr", "0.001", "--weight-decay", "0.25")
    assert done.returncode == 0, done.stderr
    state = checkpoint_format.load(folder / "checkpoint-latest.pt")
    assert {group["initial_lr"] for group in state["optimizer"]["param_groups"]} == {0.001}  # type: ignore[index]
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.25, 0.0}  # type: ignore[index]
    done = trainer("--resume", str(folder), "--epochs", "3", "--optimizer", "adamw")
    assert_one_error(done, "--resume", "SGD")


# Rank 1 alone fails in its second epoch, while rank 0 goes on to wait for it.
ONE_RANK_FAILS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from ddp_train import main
from ddp_train.engine import trainer
from ddp_core.errors import UserError
step = trainer.Trainer.train_step
def fail(self, window):
    if self.progress.step == 3 and os.environ["RANK"] == "1":
        raise UserError("image 7 is gone")
    step(self, window)
trainer.Trainer.train_step = fail
main.program()
"""


def test_a_rank_that_fails_alone_says_so_and_ends(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(ONE_RANK_FAILS)
    launch = [str(ROOT / "launch.py"), "--cpu", "--nproc", "2", str(script)]
    done = command(*launch, *SMALL_RUN, "--epochs", "3", "--out-dir", "run", timeout_s=90)
    assert done.returncode == 2, done.stderr
    assert "error: image 7 is gone" in done.stderr


def test_what_nobody_expects_ends_a_rank_with_its_traceback(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trainer, window: object) -> None:
        raise LookupError("not there")

    monkeypatch.setattr("ddp_train.engine.trainer.Trainer.train_step", fail)
    done = trainer(*SMALL_RUN, "--epochs", "1", "--out-dir", "run")
    assert done.returncode == 1
    assert "\nLookupError: not there\n" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr


def _assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple)) and len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_same(a, b)
    else:
        assert one == other


def test_a_damaged_checkpoint_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    options = ["--dataset", "synthetic", "--synthetic-samples", "64", "--out-dir", str(tmp_path / "run")]
    assert trainer(*options, "--epochs", "1").returncode == 0
    latest = tmp_path / "run" / "checkpoint-latest.pt"
    damaged = bytearray(latest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    latest.write_bytes(damaged)
    done = trainer(*options, "--epochs", "2", "--resume", "auto")
    assert_one_error(done, "checkpoint-latest.pt")
    assert latest.read_bytes() == damaged, "nothing is lost"


def assert_one_error(done: object, *words: str) -> None:
    """Status 2 and, of our own output, exactly one line that begins with error: and holds the words."""
    assert done.returncode == 2, done.stderr  # type: ignore[attr-defined]
    text = done.stdout + done.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, text
    for word in words:
        assert word in lines[0]


MISTAKES = [
    (["--batchsize", "3"], ["--batchsize", "--batch-size"]),
    (["--lr", "fast"], ["--lr", "fast"]),
    (["--config", "wrong.yaml"], ["wrong.yaml", "epochs", "many"]),
    (["--data-dir", "nowhere"], ["--data-dir nowhere"]),
    (["--dataset", "folder", "--data-dir", "empty"], ["empty"]),
    (["--dataset", "folder", "--data-dir", "corrupt"], ["broken.png"]),
    (["--dataset", "digits", "--out-dir", "wrong.yaml/run"], ["--out-dir"]),
    (["--dataset", "digits", "--model", "resnet19"], ["--model resnet19", "resnet18"]),
    (["--dataset", "digits", "--device", "cuda"], ["--device cuda"]),
    (["--resume", "nowhere"], ["--resume nowhere"]),
]


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder with the files that the mistakes name."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "cwd"
    (folder / "empty").mkdir(parents=True)
    (folder / "wrong.yaml").write_text("epochs: many\n")
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "corrupt" / part / name).mkdir(parents=True)
            for index in range(3):
                image = Image.fromarray(np.full((8, 8, 3), index * 40, dtype=np.uint8))
                image.save(folder / "corrupt" / part / name / f"{index}.png")
    (folder / "corrupt" / "train" / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return folder


@pytest.mark.parametrize(("argv", "words"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_is_one_line_and_status_2(trainer: Trainer, messy: Path, argv: list[str], words: list[str]) -> None:
    before = sorted(messy.iterdir())
    assert_one_error(trainer(*argv, cwd=messy), *words)
    assert [p for p in sorted(messy.iterdir()) if p.name != "runs"] == before


@pytest.mark.parametrize("argv", [["--lr", "fast"], ["--dataset", "folder", "--data-dir", "corrupt"]], ids=" ".join)
def test_under_torchrun_a_mistake_is_said_once(command: Command, messy: Path, argv: list[str]) -> None:
    done = command(*torchrun(2), MAIN, *argv, cwd=messy)
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr


def test_a_loss_that_is_not_finite_ends_the_run_with_status_1(trainer: Trainer) -> None:
    options = ["--dataset", "synthetic", "--synthetic-samples", "256", "--lr", "10000", "--warmup-epochs", "0"]
    done = trainer(*options, "--epochs", "5", "--amp", "off", "--batch-size", "16", "--out-dir", "run")
    assert done.returncode == 1, done.stderr
    assert "error: step " in done.stderr and "bad_batch.json" in done.stderr and "--lr" in done.stderr
    assert "Traceback" not in done.stderr


NETWORK = """
import warnings
from torch import nn

def make(num_classes, image_shape):
    warnings.warn("torch.old is deprecated", FutureWarning)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))
"""


def test_a_log_has_lines_within_an_epoch_and_no_warning_for_programmers(command: Command, tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORK)
    options = ["--dataset", "digits", "--model", "networks:make", "--epochs", "1", "--batch-size", "100"]
    options += ["--log-every", "4", "--no-tensorboard", "--no-examine", "--device", "cpu"]
    done = command(MAIN, *options, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines() if "  step " in line] == [
        f"1/1  step {step}/15" for step in (4, 8, 12)
    ]
    assert "Warning" not in done.stderr
