"""--wandb, against a stand-in for the package that writes down what it is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.observers.records import RunFacts
from ddp_train.observers.wandb import WandbObserver
from tests.conftest import Trainer

STAND_IN = """
import json, os
class Run:
    def __init__(self, **how):
        self.told, self.summary = {"init": how, "metrics": [], "log": []}, {}
    def define_metric(self, name, step_metric):
        self.told["metrics"].append([name, step_metric])
    def log(self, numbers):
        self.told["log"].append(numbers)
    def finish(self, exit_code):
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps({**self.told, "summary": self.summary, "exit_code": exit_code}) + "\\n")
def init(**how):
    if os.environ.get("WANDB_MODE") != "offline":
        raise RuntimeError("api_key not configured\\nmore lines")
    return Run(**how)
"""
OPTIONS = ["--dataset", "synthetic", "--synthetic-samples", "64", "--batch-size", "16", "--device", "cpu"]
OPTIONS += ["--no-tensorboard", "--no-examine"]


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, where the package would be."""
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "stand-in")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.usefixtures("wandb")
def test_a_run_and_its_resume_are_one_wandb_run(trainer: Trainer, tmp_path: Path) -> None:
    words = ["--wandb", "--wandb-project", "mine", "--log-every", "2", "--clip-grad", "1"]
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "auto"]):
        done = trainer(*OPTIONS, "--out-dir", str(tmp_path / "run"), *words, *more)
        assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in (tmp_path / "told").read_text().splitlines())
    assert first["init"]["project"] == "mine" and first["init"]["config"]["batch_size"] == 16
    assert first["init"]["id"] == second["init"]["id"] and first["init"]["resume"] == "allow"
    assert first["metrics"] == [["step/*", "step"], ["epoch/*", "epoch"]]
    assert [entry.get("step") for entry in first["log"]] == [2, 4, None]
    assert [entry.get("step") for entry in second["log"]] == [6, 8, None]
    recorded = json.loads((tmp_path / "run" / "training_history.json").read_text())["epochs"]
    for told, record in zip((first["log"][-1], second["log"][-1]), recorded, strict=True):
        assert told["epoch"] == record["epoch"] and told["epoch/test_loss"] == record["test_loss"]
        assert told["epoch/gradient_norm"] == record["extra"]["gradient_norm"]
    assert second["exit_code"] == 0 and second["summary"]["best_epoch"] in (1, 2)


@pytest.mark.usefixtures("wandb")
def test_a_run_resumed_within_its_first_epoch_is_the_same_wandb_run(tmp_path: Path) -> None:
    words = {"name": "run", "model": "small", "dataset": "digits", "device": "cpu", "out_dir": str(tmp_path)}
    sizes = {"parameters": 1, "world_size": 1, "epochs": 4, "steps_per_epoch": 10, "global_batch": 8}
    facts = RunFacts(**words, **sizes, start_step=3, steps_before=3)  # type: ignore[arg-type]
    for _ in range(2):
        observer = WandbObserver(tmp_path, "mine", {})
        observer.on_start(facts)
        observer.close()
    first, second = (json.loads(line) for line in (tmp_path / "told").read_text().splitlines())
    assert first["init"]["id"] == second["init"]["id"]


@pytest.mark.usefixtures("wandb")
def test_wandb_that_cannot_start_is_one_line(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    done = trainer(*OPTIONS, "--wandb", "--epochs", "1")
    assert done.returncode == 2
    assert "error: --wandb: could not start (api_key not configured); WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()  # what wandb leaves in the working folder is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="--wandb needs the package wandb: pip install wandb"):
        parse(["--wandb"])
