"""Options of the model and of its numerical precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model"""

    model: str | None = option(
        None,
        "small, power, residual, wideresnet, resnet18, speedrun, vit, any torchvision name, or module:function "
        "(default: by hardware).",
    )
    width_mult: float | None = option(
        None,
        "Channel multiplier of power (default: by hardware), residual, resnet18, speedrun and wideresnet (default: 8).",
        Range(0, 64, exclusive=True),
        only_with=When("model", "power", "residual", "resnet18", "speedrun", "wideresnet", None),
    )
    n_layers: int | None = option(
        None,
        "Layers of vit (default: by hardware), depth of wideresnet (default: 16), convolutions of a group of speedrun "
        "(2 or 3; default: 2).",
        Range(1, 1000),
        only_with=When("model", "speedrun", "vit", "wideresnet"),
    )
    hidden_dim: int | None = option(
        None, "Width of a token (default: by hardware).", Range(8, 16384), only_with=When("model", "vit")
    )
    n_heads: int | None = option(
        None,
        "Attention heads (default: one for each 64 of --hidden-dim).",
        Range(1, 512),
        only_with=When("model", "vit"),
    )
    attention: Literal["sdpa", "chunked"] | None = option(
        None,
        "sdpa: torch's attention kernels; chunked: a reference implementation in chunks, with the same result "
        "(default: sdpa).",
        only_with=When("model", "vit"),
    )
    whiten_bias_epochs: int | None = option(
        None,
        "Train the bias of speedrun's first layer for this many epochs; after them no backward pass goes through that "
        "layer (default: for the whole run).",
        Range(0, 10**6),
        only_with=When("model", "speedrun"),
    )
    weights: str | None = option(
        None,
        "Start from these weights: a state_dict, checkpoint, safetensors file or run folder, or imagenet for "
        "torchvision's own (default: random). A last layer for other classes is initialised.",
    )
    freeze: str | None = option(
        None, "Do not train the parameters with these names, as in 'stem,blocks.0' or '*.bias' (default: train all)."
    )
    zero_init_residual: bool = option(
        False, "The last batch norm of each residual branch starts at 0, so that the block begins as the identity."
    )
    dropout: float | None = option(None, "Dropout probability (default: that of the model).", Range(0, 0.99))
    amp: Literal["auto", "bf16", "fp16", "off"] = option(
        "auto",
        "Automatic mixed precision; auto: bf16 where it is native, fp16 with loss scaling on older GPUs, else off.",
    )
    init_scale: float = option(
        65536.0, "fp16: initial loss scale.", Range(1, 2**32), only_with=When("amp", "fp16", "auto")
    )
    growth_factor: float = option(
        2.0,
        "fp16: the loss scale is multiplied by this after --growth-interval steps without overflow.",
        Range(1, 1000, exclusive=True),
        only_with=When("amp", "fp16", "auto"),
    )
    backoff_factor: float = option(
        0.5,
        "fp16: the loss scale is multiplied by this after an overflow; that step is skipped.",
        Range(0, 0.99, exclusive=True),
        only_with=When("amp", "fp16", "auto"),
    )
    growth_interval: int = option(
        2000,
        "fp16: steps without overflow before the loss scale grows.",
        Range(1, 10**9),
        only_with=When("amp", "fp16", "auto"),
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = option(
        None,
        "float32 on GPUs. highest: full float32; high and medium: tf32 (default: torch's, tf32 in convolutions only).",
    )
    cudnn_benchmark: bool = option(
        True,
        "GPUs: let cuDNN time its algorithms for each shape and take the fastest, in runs where few shapes come again "
        "and again; not with --reproducible.",
    )
    channels_last: bool = option(True, "Channels-last memory format.")
    sync_batch_norm: bool = option(
        False, "Batch norm over the samples of all ranks: the same statistics as in a single process."
    )
    compile: bool = option(False, "Compile the model with torch.compile.")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = option(
        None,
        "reduce-overhead and max-autotune record CUDA graphs; max-autotune times kernels first (default: default).",
        only_with=When("compile"),
    )
    checkpoint_activations: bool = option(
        False,
        "Recompute the model's blocks in the backward pass instead of keeping their activations.",
        excludes={When("compile"): "torch.compile decides by itself what is recomputed"},
    )
    expandable_segments: bool = option(
        False, "Let the GPU memory allocator grow its segments, which reduces fragmentation (PYTORCH_ALLOC_CONF)."
    )
