"""Options of the model and of its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelOptions"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str | None = None
    """small, power, a torchvision classification model by name, or package.module:function (None: by hardware)."""
    width_mult: float | None = None
    """Channel multiplier of power (None: by hardware)."""
    dropout: float | None = None
    """Dropout probability (None: the model's own)."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Automatic mixed precision; auto takes bf16 where it is native, fp16 with loss scaling on older GPUs, else off."""
    channels_last: bool = True
    """Channels-last memory format."""
    compile: bool = False
    """torch.compile the model."""
