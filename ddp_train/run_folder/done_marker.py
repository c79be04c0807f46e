"""The marker of a finished run: done.json, the last file that a run writes. Torch-free, as it is read before torch is.

It is on the disk, like all that it refers to, before the ranks end.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_core.files import write_text
from ddp_train.config.options import Config

FILE = "done.json"
SCHEMA = "ddp-train-done/1"


def mark(folder: Path, *, epochs: int, epoch: int, step: int, best: dict[str, Any]) -> None:
    """Write the marker: epochs wanted, epochs and steps done, the best epoch. Errors: UserError."""
    document = {"schema": SCHEMA, "epochs": epochs, "epoch": epoch, "step": step, "best": best}
    write_text(folder / FILE, json.dumps(document, indent=2) + "\n")


def unmark(folder: Path) -> None:
    """A run that continues is not finished."""
    (folder / FILE).unlink(missing_ok=True)


def finished(config: Config) -> str | None:
    """A line where the run that `config` wants to resume has nothing left to do, None where it has."""
    folder = Path(config.run.out_dir) if config.run.resume is not None and config.run.out_dir else None
    if folder is None:
        return None
    document: Any = None
    with suppress(OSError, ValueError):
        document = json.loads((folder / FILE).read_bytes())
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    epochs, epoch = document.get("epochs"), document.get("epoch")
    if not isinstance(epochs, int) or not isinstance(epoch, int) or (config.run.epochs or epochs) > epochs:
        return None
    early = "" if epoch >= epochs else f" of {epochs}, where it was stopped early"
    return f"{folder} is finished: epoch {epoch}{early}; for more, add --epochs N"
