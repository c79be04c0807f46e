"""A rank of two whose second one has memory for three images at a time in evaluation: short_of_memory.py RESULT.json"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ddp_train.distributed import process_group
from tests.ddp_train.techniques.runs import CPU, PLAIN, make, rows_of_history

OPTIONS = "--batch-size 40 --synthetic-samples 40"


def main() -> None:
    """Train two epochs; the first rank writes what both have said of it."""
    torch.set_num_threads(1)
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, CPU, timeout_s=100)
    with tempfile.TemporaryDirectory() as folder:
        place = process_group.on_first_rank(lambda: folder, ranks)
        run = make(OPTIONS, Path(place) / "run", PLAIN, ranks)
        parts = run.trainer.components

        def short(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if ranks.rank == 1 and not module.training and len(inputs[0]) > 3:
                raise RuntimeError("can't allocate memory")

        run.trainer._settle_buckets()
        parts.network.register_forward_pre_hook(short)
        run.trainer._settle_buckets = lambda: None  # type: ignore[method-assign]
        run.trainer.fit()
        found = process_group.gather((parts.pipeline.test_batch, run.trainer.best.accuracy), ranks)
        if ranks.is_first:
            Path(sys.argv[1]).write_text(json.dumps({"ranks": found, "history": rows_of_history(run)}))
        process_group.wait_for_all()
    process_group.leave(0)


if __name__ == "__main__":
    main()
