"""Options of augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["AugmentOptions"]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Augmentation"""

    augment: Literal["none", "minimal", "balanced", "heavy"] | None = None
    """Level: minimal is flip; balanced crop and flip; heavy crop, flip and random erasing (None: by dataset)."""
