"""The run folder before the run: its name, what becomes of an earlier run that is already in it, and whether the run
is finished. Torch-free, because it is imported before torch.

done.json marks a finished run. It is the last file that a run writes; before the ranks end, it and all files that it
refers to are on the disk.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.config.options import Config
from ddp_train.config.validation import LATEST, PREVIOUS, resume_target
from ddp_train.run_folder.lock import RunLock

RESULTS = ("training_history.json", "best_model.pth", LATEST, PREVIOUS)
"""Any of these files marks a folder as that of an earlier run."""
DONE = "done.json"
MICRO_BATCHES = "micro_batches.json"
"""How a user's own training loop splits its global batches since it ran out of memory."""
BESIDE = (
    "config.yaml",
    DONE,
    MICRO_BATCHES,
    "plan.json",
    "topology.json",
    "events.jsonl",
    "report.html",
    "dataset.json",
    "training_curves.png",
    "gradient_flow.json",
    "gradient_flow.png",
    "profile.txt",
    "trace.json.gz",
    "confusion_matrix.png",
    "worst_images.png",
    "model_card.md",
    "wandb",
    "wandb_id.txt",
    "overfit_one_batch.json",
    "memory.json",
    "lr_range_test.json",
    "lr_range_test.png",
    "tensorboard",
    "logs",
)
"""Other files of a run, which are moved together with its results."""
DONE_SCHEMA = "ddp-train-done/1"


def claim(config: Config, lock: RunLock, *, restarted: bool = False) -> tuple[Path, str | None]:
    """Claim the run folder of `config`, see `claim_folder`."""
    run, name = config.run, config.model.model
    return claim_folder(run.out_dir, name, lock, resume=run.resume, restarted=restarted)


def claim_folder(
    out_dir: str | None, name: str | None, lock: RunLock, *, resume: str | None, restarted: bool = False
) -> tuple[Path, str | None]:
    """Create and lock a run folder; returns the folder, and a line for the user if an earlier run was moved.

    The folder is `out_dir`, or a new runs/TIME-NAME. An earlier run that is not resumed (`resume`: as --resume) is
    moved into a subfolder, never overwritten; a `restarted` run keeps what it finds. Errors: UserError when the folder
    cannot be made or written, or another run is using it.
    """
    path = Path(out_dir or "runs")
    try:
        path = _make(out_dir, name)
        lock.take(path, patient=restarted)
        note = None if restarted or resume_target(resume, out_dir) is not None else _set_aside(path)
    except OSError as error:
        raise UserError(f"--out-dir {path}: cannot be written ({error.strerror or error})") from None
    return path, note


def _make(out_dir: str | None, name: str | None) -> Path:
    """Create the folder `out_dir`, or one with a new name where that is None. Errors: OSError."""
    if out_dir is not None:
        path = Path(out_dir)
        path.mkdir(parents=True, exist_ok=True)
        return path
    while True:
        path = new_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # taken by a run that started in the same second
            path.mkdir()
            return path


def is_restart() -> bool:
    """Whether the elastic agent has started the ranks of this run again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def new_name(model: str | None) -> Path:
    """A path runs/TIME-MODEL that does not exist yet."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9.]+', '-', model or 'model')}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    free = next((path for name in names if not (path := Path("runs") / name).exists()), None)
    if free is None:
        raise UserError(f"--out-dir: every name like runs/{stem} is taken")
    return free


def _set_aside(folder: Path) -> str | None:
    """Move an earlier run's files to earlier-N; returns a note for the user, None if there are no results."""
    if not any((folder / name).exists() for name in RESULTS):
        return None
    place = next(path for number in range(1, 10**6) if not (path := folder / f"earlier-{number}").exists())
    place.mkdir()
    for name in (*RESULTS, *BESIDE):
        if (folder / name).exists():
            (folder / name).rename(place / name)
    return f"the run that was in {folder} is now in {place}; to continue a run, add --resume auto"


def mark_done(folder: Path, *, epochs: int, epoch: int, step: int, best: dict[str, Any]) -> None:
    """Write done.json: epochs requested, epochs and steps done, the best epoch. Errors: UserError."""
    document = {"schema": DONE_SCHEMA, "epochs": epochs, "epoch": epoch, "step": step, "best": best}
    write_text(folder / DONE, json.dumps(document, indent=2) + "\n")


def unmark_done(folder: Path) -> None:
    """Remove done.json, because a run that continues is not finished."""
    (folder / DONE).unlink(missing_ok=True)


def finished(config: Config) -> str | None:
    """A line for the user if the run that `config` wants to resume has nothing left to do, else None."""
    folder = Path(config.run.out_dir) if config.run.resume is not None and config.run.out_dir else None
    if folder is None:
        return None
    document: Any = None
    with suppress(OSError, ValueError):
        document = json.loads((folder / DONE).read_bytes())
    if not isinstance(document, dict) or document.get("schema") != DONE_SCHEMA:
        return None
    epochs, epoch = document.get("epochs"), document.get("epoch")
    if not isinstance(epochs, int) or not isinstance(epoch, int) or (config.run.epochs or epochs) > epochs:
        return None
    early = "" if epoch >= epochs else f" of {epochs}, where it was stopped early"
    return f"{folder} is finished: epoch {epoch}{early}; for more, add --epochs N"
