"""Samples that cannot be used: how they are reported, and when there are too many (`--on-bad-sample`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ddp_core.errors import UserError

Policy = Literal["stop", "skip"]
LARGEST_FRACTION = 0.001
"""Of a split: with more, something is wrong that leaving images out does not fix."""


@dataclass(frozen=True, order=True)
class BadSample:
    """A file of a split that is left out, or ends the run. index: in the split as it was listed."""

    part: str
    index: int
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} (image {self.index} of {self.part}) {self.reason}"


def largest_number(policy: Policy, total: int) -> int:
    """How many of a split's `total` samples may be left out."""
    return int(total * LARGEST_FRACTION) if policy == "skip" else 0


def refuse(bad: Sequence[BadSample], policy: Policy, totals: dict[str, int]) -> None:
    """Errors: UserError, one line naming the first of them, where these are too many for a split. totals: by part."""
    for part, total in totals.items():
        here = sorted(sample for sample in bad if sample.part == part)
        if len(here) <= largest_number(policy, total):
            continue
        others = f"; so are {len(here) - 1} more" if len(here) > 1 else ""
        if policy == "skip":
            share = f"{len(here):,} of the {total:,} images of {part} are bad, more than {LARGEST_FRACTION:.1%}"
            raise UserError(f"--on-bad-sample skip: {share}; the first: {here[0]}")
        remedy = f"--on-bad-sample skip leaves up to {LARGEST_FRACTION:.1%} of a split out"
        raise UserError(f"{here[0]}{others}; {remedy}")
