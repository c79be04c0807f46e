"""The preset `speedrun` by target: how wide the network, how long the run, how large the steps.

Pure and torch-free. A run is sized by the accuracy that it is for and by the device. The sizes for a CPU up to 0.93
were tried out with 45,000 of the training images for training and 5,000 for testing, never on the test set; the larger
ones are wider and longer in proportion.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from ddp_train.config.options import UserError

__all__ = ["AUTOMATIC", "Size", "size_for"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """One sort of run, by the names of its options; None leaves an option as it is. `lr`: of Muon's matrices."""

    width_mult: float
    epochs: int
    batch_size: int
    lr: float
    muon_rest_lr: float
    progressive_resize: int | None = None
    progressive_resize_end: int | None = None
    progressive_resize_epochs: int | None = None
    erasing: float | None = None

    def settings(self) -> dict[str, float | int]:
        """Option name -> value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


# On GPUs: the settings of airbench (Jordan 2024, arXiv:2404.00498, and its later version with Muon) as far as they are
# options here. On CPUs: tried out with two cores.
SIZES: dict[Literal["cpu", "cuda"], dict[float, Size]] = {
    "cpu": {
        0.80: Size(width_mult=0.25, epochs=2, batch_size=250, lr=0.1, muon_rest_lr=45.0),
        0.89: Size(width_mult=0.5, epochs=5, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.91: Size(width_mult=0.5, epochs=10, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.93: Size(width_mult=1.0, epochs=16, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.94: Size(width_mult=1.0, epochs=30, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.96: Size(width_mult=2.0, epochs=40, batch_size=250, lr=0.1, muon_rest_lr=60.0, erasing=1.0),
    },
    "cuda": {
        0.90: Size(width_mult=0.5, epochs=6, batch_size=2000, lr=0.24, muon_rest_lr=307.0),
        0.93: Size(width_mult=1.0, epochs=6, batch_size=2000, lr=0.24, muon_rest_lr=307.0),
        0.94: Size(width_mult=1.0, epochs=8, batch_size=2000, lr=0.24, muon_rest_lr=307.0),
        0.96: Size(width_mult=2.0, epochs=40, batch_size=1000, lr=0.24, muon_rest_lr=153.0, erasing=1.0),
    },
}
AUTOMATIC: dict[Literal["cpu", "cuda"], float] = {"cpu": 0.89, "cuda": 0.94}
"""The target where none is named: minutes on a CPU, seconds on a data-centre GPU."""


def size_for(target: float, device: Literal["cpu", "cuda"]) -> tuple[float, Size]:
    """The smallest size for at least `target` (a fraction of 1), and what it is for. Errors: UserError above all."""
    sizes = SIZES[device]
    reaching = [aim for aim in sizes if aim >= target]
    if not reaching:
        where = "a GPU" if device == "cuda" else "the CPU"
        raise UserError(f"--target {target:g}: the largest size for {where} is for {max(sizes):g}")
    return min(reaching), sizes[min(reaching)]
