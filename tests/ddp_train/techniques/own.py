"""Techniques as a user would write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddp_train.technique import Context, Moment, Technique


class Noise:
    """Adds the same grey level to all images of a step, and counts the steps."""

    def __init__(self) -> None:
        self.steps = torch.zeros((), dtype=torch.int64)

    def batch(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(moment.seed + moment.step)
        return images + 0.1 * torch.randn((), generator=generator), targets

    def after_step(self, moment: Moment) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def report(self) -> dict[str, float]:
        return {"noise_steps": float(self.steps)}


def noise(context: Context) -> Technique:
    own = Noise()
    return Technique(name="noise", batch=own.batch, after_step=own.after_step, report=own.report, state=own)


def silence(context: Context) -> Technique:
    return Technique(name="silence", batch=lambda images, targets, moment: (images, targets))


def smoother(context: Context) -> Technique:
    """Another activation, in place."""

    def edit(network: nn.Module) -> nn.Module:
        for name, module in network.named_children():
            if isinstance(module, nn.ReLU):
                setattr(network, name, nn.GELU())
        return network

    return Technique(name="smoother", edit=edit)
