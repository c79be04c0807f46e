"""Options of the model and of its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str | None = None
    """small, power, residual, wideresnet, resnet18, speedrun, vit, torchvision name, module:function (None: auto)."""
    width_mult: float | None = None
    """Channel multiplier of power (None: by hardware), residual, resnet18, speedrun and wideresnet (None: 8)."""
    n_layers: int | None = None
    """Layers of vit (None: by hardware), depth of wideresnet (None: 16)."""
    hidden_dim: int | None = None
    """vit: width of a token (None: by hardware)."""
    n_heads: int | None = None
    """vit: heads of the attention (None: one for each 64 of --hidden-dim)."""
    attention: Literal["sdpa", "chunked"] | None = None
    """vit: torch's attention kernels, or a written-out reference in chunks that agrees with them (None: sdpa)."""
    dropout: float | None = None
    """Dropout probability (None: the model's own)."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Automatic mixed precision; auto takes bf16 where it is native, fp16 with loss scaling on older GPUs, else off."""
    init_scale: float = 65536.0
    """fp16: what the loss is multiplied by at first."""
    growth_factor: float = 2.0
    """fp16: what the scale is multiplied by after --growth-interval steps without an overflow."""
    backoff_factor: float = 0.5
    """fp16: what the scale is multiplied by after an overflow, whose step is skipped."""
    growth_interval: int = 2000
    """fp16: steps without an overflow before the scale grows."""
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    """float32 on GPUs: highest is full float32, high and medium are tf32 (None: torch's own, tf32 in convolutions)."""
    channels_last: bool = True
    """Channels-last memory format."""
    sync_batch_norm: bool = False
    """Batch norm sees the samples of all ranks, each counted once, and so what a single process would see."""
    compile: bool = False
    """torch.compile the model."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """compile: reduce-overhead and max-autotune record CUDA graphs, the latter after timing kernels (None: default)."""
    checkpoint_activations: bool = False
    """Compute the blocks of the model again in the backward pass instead of keeping what is inside them."""
    expandable_segments: bool = False
    """Let the GPU's memory allocator grow its segments: less is lost between them (PYTORCH_ALLOC_CONF)."""
