"""A cache of calibrations for the next plan: seconds of a step by kind of work and model of GPU. Torch-free.

The cache never ends a run: a file that cannot be read counts as absent, one that cannot be written is not written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ddp_core.cache_folder import cache_folder
from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.config.options import Config
from ddp_train.distributed.load_balance import Speed

SCHEMA = "ddp-train-speeds/1"


@dataclass(frozen=True)
class KnownSpeeds:
    """Speeds by the name of the GPU, and the seconds of the gradients' all-reduce, for one kind of work."""

    speeds: Mapping[str, Speed] = field(default_factory=dict)
    communication: float = 0.0


def work_of(config: Config) -> str:
    """The kind of work, as text: what a step's time depends on besides the GPU and the batch size."""
    model, data = config.model, config.data
    network = (model.model, model.width_mult, model.n_layers, model.hidden_dim, model.amp, model.compile)
    return " ".join(map(str, (*network, data.dataset, data.image_size, data.accumulate or 1)))


def recall(work: str) -> KnownSpeeds | None:
    """The stored speeds for this kind of work; None if there are none. Never raises."""
    kept = _read().get(work)
    try:
        assert isinstance(kept, dict)
        speeds = {str(name): Speed(float(a), float(b)) for name, (a, b) in kept["speeds"].items()}
        known = KnownSpeeds(speeds, float(kept["communication"]))
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError):
        return None
    sound = all(speed.each > 0 and speed.fixed >= 0 for speed in speeds.values())
    return known if sound and known.communication >= 0 else None


def remember(work: str, found: KnownSpeeds) -> None:
    """Store a calibration; GPU models that took no part keep their earlier speeds. Never raises."""
    path = _path()
    if path is None:
        return
    before = recall(work)
    speeds = {**(before.speeds if before is not None else {}), **found.speeds}
    rows = {name: [speed.fixed, speed.each] for name, speed in speeds.items()}
    everything = _read() | {work: {"speeds": rows, "communication": found.communication}}
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"schema": SCHEMA, "works": everything}, indent=1) + "\n")


def _read() -> dict[str, object]:
    """The stored speeds; {} where there are none, or the file is damaged."""
    path = _path()
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        if path is not None and (kept := json.loads(path.read_bytes()))["schema"] == SCHEMA:
            return dict(kept["works"])
    return {}


def _path() -> Path | None:
    """The file of speeds; None without a cache folder."""
    folder = cache_folder("ddp_launch")
    return None if folder is None else folder / "speeds.json"
