"""Memory runs out in evaluation: the rank continues with halves of the batch, and each image still counts once.

No rank waits for another during evaluation, so the other ranks learn of it at the end, with the sums: from then on all
ranks take as few images at a time as the rank with the least memory. In evaluation mode the size of a batch changes
nothing but the rounding of a sum. The images of a whole batch must fit into memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_train.config.batch_split import ceil_div
from ddp_train.data.pipeline.window import Batch
from ddp_train.engine.oom_retry import is_out_of_memory


def look_at_all(batches: Iterable[Batch], look: Callable[[Batch], None], device: torch.device) -> int:
    """Call `look` so that it sees every image once. Returns the most images at a time at the end, 0: memory sufficed.

    look: allocates all its memory before it adds to its sums, so that it can be called again with a half. Errors: what
    `look` raises, also where memory runs out for a single image.
    """
    most = 0
    for batch in batches:
        waiting = _cut(batch, most)
        while waiting:
            piece, *waiting = waiting
            if not _fits(look, piece, device):
                most = ceil_div(len(piece.labels), 2)
                waiting = [part for one in (piece, *waiting) for part in _cut(one, most)]
                if device.type == "cuda":  # only here, where the error no longer keeps the computed tensors alive
                    torch.cuda.empty_cache()
    return most


def of_this_rank(most: int, device: torch.device) -> Tensor:
    """float64 [ranks], to be added up over the ranks: `most` of `look_at_all` at this rank's index, 0 elsewhere."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found = torch.zeros(ranks, dtype=torch.float64, device=device)
    found[rank : rank + 1].fill_(most)
    return found


def agree(of_ranks: Sequence[float]) -> int:
    """The most images at a time for all ranks, 0: no change. If memory ran out on a rank, the first rank prints it."""
    short = {rank: int(most) for rank, most in enumerate(of_ranks) if most}
    if not short:
        return 0
    most = min(short.values())
    if not dist.is_initialized() or dist.get_rank() == 0:
        event = f"memory ran out on rank {min(short)} in evaluation"
        print(f"{event}: from now on {most} images at a time, each counted once", file=sys.stderr, flush=True)
    return most


def _cut(batch: Batch, most: int) -> list[Batch]:
    """The batch in parts of at most `most` images; 0: the batch as it is."""
    count = len(batch.labels)
    if not most or count <= most:
        return [batch]
    parts = (slice(first, first + most) for first in range(0, count, most))
    return [Batch(batch.images[part], batch.labels[part], batch.indices[part]) for part in parts]


def _fits(look: Callable[[Batch], None], piece: Batch, device: torch.device) -> bool:
    """Call `look` on `piece`; returns whether there was enough memory. Errors: out of memory for a single image."""
    try:
        look(piece)
    except Exception as error:
        if len(piece.labels) == 1 or not is_out_of_memory(error, device):
            raise
        return False
    return True
