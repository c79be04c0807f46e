"""A run that continues in another folder than that of its checkpoint: its best model, and a restart of its ranks."""

from __future__ import annotations

from pathlib import Path

from ddp_train.config.parse import parse
from ddp_train.config.validation import LATEST
from ddp_train.main import _continued
from tests.ddp_train.techniques import runs


def test_a_run_that_continues_elsewhere_has_a_best_model(tmp_path: Path) -> None:
    runs.make("--epochs 1", tmp_path / "first", runs.PLAIN).trainer.fit()
    best = tmp_path / "first" / "best_model.pth"
    words = f"--epochs 2 --resume {tmp_path / 'first'}"
    copied = runs.make(words, tmp_path / "copied", runs.PLAIN)
    assert (tmp_path / "copied" / "best_model.pth").read_bytes() == best.read_bytes()
    assert copied.trainer.progress.best_epoch == 1
    best.unlink()
    missing = runs.make(words, tmp_path / "missing", runs.PLAIN)
    assert any("best_model.pth of epoch 1 is not beside" in note for note in missing.facts.notes)
    assert missing.trainer.best.accuracy is None and missing.trainer.fit().best_epoch == 2
    assert (tmp_path / "missing" / "best_model.pth").is_file()


def test_restarted_ranks_continue_from_the_runs_own_checkpoint(tmp_path: Path) -> None:
    for name in ("begun", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LATEST).touch()
    begun = str(tmp_path / "begun" / LATEST)
    for out_dir, expected in (("own", "auto"), ("begun", begun), ("empty", begun)):
        config = parse(["--resume", begun, "--out-dir", str(tmp_path / out_dir)])
        assert _continued(config).run.resume == expected
