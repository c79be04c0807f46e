"""Number formats: the autocast region, loss scaling and the optimizer step under both, and the arithmetic of float32.

bf16 needs no loss scaling; fp16 does (torch.amp.GradScaler). `config/recommend.py` chooses the format for a device;
this module checks it and applies it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ddp_core.errors import UserError
from ddp_train import torch_internals

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LossScale:
    """The constants of torch.amp.GradScaler: the loss is multiplied by a scale that grows until gradients overflow."""

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000


def set_matmul_precision(name: str | None) -> None:
    """Set how float32 is multiplied in this process: "highest" in full, "high" and "medium" as tf32 where a GPU has it.

    None leaves torch's defaults: tf32 in convolutions, full float32 in matrix products. On a CPU with bf16, "medium"
    lets torch multiply matrices in bf16.
    """
    if name is not None:
        torch.set_float32_matmul_precision(name)
        # The function above does not cover cuDNN. This is the older of torch's two interfaces: after both were set,
        # reading either one is an error.
        torch.backends.cudnn.allow_tf32 = name != "highest"


class Precision:
    """`--amp bf16|fp16|off` for one device. UserError for fp16 without a GPU."""

    def __init__(self, mode: str, device: torch.device, loss_scale: LossScale | None = None) -> None:
        if mode == "fp16" and device.type != "cuda":
            raise UserError("--amp fp16 needs a GPU (GradScaler); on the CPU use --amp off")
        self.mode = mode
        self.device = device
        self.dtype = DTYPES.get(mode)
        self._constants = asdict(loss_scale or LossScale())
        self._seed: tuple[tuple[float, torch.dtype], torch.Tensor] | None = None
        self.scaler = torch.amp.GradScaler(device.type, enabled=mode == "fp16", **self._constants)

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return bool(self.scaler.is_enabled())

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The region in which forward passes run in the lower precision."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: torch.Tensor, weight: float = 1.0, *, retain_graph: bool = False) -> None:
        """Compute the gradient of `weight` times the loss, scaled under fp16. retain_graph: for another pass.

        The weight is the initial gradient of the pass: the same bits as multiplying the loss, in two operations fewer.
        """
        if self._seed is None or self._seed[0] != (weight, loss.dtype):
            self._seed = (weight, loss.dtype), loss.new_full((), weight)
        if retain_graph:
            self.scaler.scale(loss).backward(self._seed[1], retain_graph=True)
        else:
            torch_internals.backward(self.scaler.scale(loss), self._seed[1])

    def step(
        self, optimizer: torch.optim.Optimizer, prepare: Callable[[], None] | None = None, *, last: bool = True
    ) -> None:
        """Let `prepare` change the true (unscaled) gradients, then update.

        Under fp16 a step with infinite gradients is skipped. last: no other optimizer steps with gradients of the same
        loss scale; if False, the caller calls `end_step` after the last one.
        """
        if prepare is not None:
            self.scaler.unscale_(optimizer)
            prepare()
        self.scaler.step(optimizer)
        if last:
            self.end_step()

    def end_step(self) -> None:
        """Update the loss scale for the next step, by whether gradients overflowed in any optimizer of this one."""
        self.scaler.update()

    def has_diverged(self, loss: float) -> bool:
        """Whether an epoch's mean loss shows divergence. Under fp16 a step that overflows is skipped and the scale
        halved, so a loss that is not finite counts only once the scale is below 1."""
        return not math.isfinite(loss) and not (self.mode == "fp16" and self.scaler.get_scale() >= 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty unless fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved loss scale if the saved run and this one use fp16. The constants stay those of this run."""
        if state and self.mode == "fp16":
            self.scaler.load_state_dict(
                state | {name: self._constants[name] for name in state.keys() & self._constants}
            )
