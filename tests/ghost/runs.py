"""Short runs of the real trainer on a ghost GPU, in this process."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from ddp_train.assemble.build import Run, build
from ddp_train.assemble.resolve_options import set_arithmetic
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks
from tests.ddp_train.techniques.runs import STATEFUL

GPU = torch.device("cuda", 0)
STEPS = 8
COMMON = f"--dataset synthetic --synthetic-samples {8 * STEPS} --batch-size 8 --epochs 1 --amp off --lr 0.01"


def make(
    options: str, out_dir: Path, network: str = STATEFUL, ranks: Ranks | None = None, device: torch.device = GPU
) -> Run:
    """A run of STEPS steps, ready to go."""
    words = f"{COMMON} --no-tensorboard --log-every 1000 --model {network} {options}"
    config = parse([*shlex.split(words), "--out-dir", str(out_dir)])
    set_arithmetic(config, ranks or Ranks(), device)
    torch.set_num_threads(1)  # such small models gain nothing from more, and other tests run beside
    return build(config, ranks or Ranks(), device)
