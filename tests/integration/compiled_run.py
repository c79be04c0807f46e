"""The trainer with another backend for torch.compile; says at the end how many graphs were compiled.

python tests/integration/compiled_run.py BACKEND OPTIONS...
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    from ddp_train import main
    from ddp_train.distributed import process_group

    torch.compile = functools.partial(torch.compile, backend=sys.argv[1])  # type: ignore[assignment]
    status = main.main(sys.argv[2:])
    from torch._dynamo.utils import counters

    print(f"compiled: {counters['stats']['unique_graphs']}")
    process_group.leave(status)
