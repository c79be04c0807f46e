"""A run that tells on stdout which slow packages a rank had imported at its first batch, and behind its end.

Then, as of a rank among others: DistributedDataParallel and a step, in a process group of this process alone.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.main import main
from ddp_train.technique import Context, Moment, Technique
from ddp_train.torch_internals import without_compiler

SLOW = ("torchvision", "matplotlib", "tensorboard", "sklearn", "scipy", "pandas", "wandb", "sympy", "torch._dynamo")


def tell(when: str) -> None:
    print(when, *(name for name in SLOW if name in sys.modules), flush=True)


def create(context: Context) -> Technique:
    def batch(images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        if moment.step == 0:
            tell("first batch:")
        return images, targets

    return Technique(name="tell", batch=batch)


def step_among_others() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    model = without_compiler(lambda: DistributedDataParallel(nn.Linear(3, 2)))
    model(torch.ones(4, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    dist.destroy_process_group()


if __name__ == "__main__":
    status = main([*sys.argv[1:], "--technique", "tests.integration.imports_run:create"])
    tell("end:")
    step_among_others()
    tell("wrapped:")
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2.0
    tell("compiled:")
    sys.exit(status)
