"""A technique that makes ranks slow by a delay for each sample: `--technique tests.ddp_train.tune.slowed:create`.

SLOWED is a list of milliseconds a sample by rank, as "1,3"; SLOWED_FROM is "STEP:1,6", other delays from a step on.
"""

from __future__ import annotations

import os
import time

from torch import Tensor

from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """Sleeps before each forward pass."""
    slowed = _Slowed(context.ranks.rank)
    return Technique(name="slowed", batch=slowed.batch, after_step=slowed.after_step)


class _Slowed:
    def __init__(self, rank: int) -> None:
        self._delay = _of(os.environ["SLOWED"], rank)
        first, _, later = os.environ.get("SLOWED_FROM", "").partition(":")
        self._change = (int(first), _of(later, rank)) if later else None

    def batch(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Take the time that these samples would take."""
        time.sleep(self._delay * len(images))
        return images, targets

    def after_step(self, moment: Moment) -> None:
        """Become slower, when it is time."""
        if self._change is not None and moment.step + 1 == self._change[0]:
            self._delay = self._change[1]


def _of(text: str, rank: int) -> float:
    return float(text.split(",")[rank]) / 1000
