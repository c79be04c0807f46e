"""The buffers of a network that logical shards compute by themselves: each moves them from where the step began."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddp_train.engine.shard_reduce import Sums

__all__ = ["Buffers"]


class Buffers:
    """The buffers of a network: how far each shard moves them, and where all shards together move them.

    Whole numbers (num_batches_tracked) take the move of shard 0, which has as many micro-batches as any.
    """

    def __init__(self, network: nn.Module) -> None:
        places = {
            id(buffer): (module, name, buffer.is_floating_point())
            for module in network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.numel()
        }
        # Whole numbers behind the others. Places, not tensors: a module may put another tensor in a buffer's place.
        self._places = sorted(places.values(), key=lambda place: not place[2])
        self._floats = sum(floating for _, _, floating in self._places)

    def _now(self) -> list[Tensor]:
        return [module._buffers[name] for module, name, _ in self._places]  # type: ignore[misc]

    def read(self) -> Sums:
        """Copies: the floating-point numbers, and the whole ones (int64), each as one tensor of one dimension."""
        flat = [buffer.detach().flatten() for buffer in self._now()]
        if not flat:
            return []
        floats, counts = ([*kind, flat[0].new_empty(0)] for kind in (flat[: self._floats], flat[self._floats :]))
        return [torch.cat(floats), torch.cat([count.long() for count in counts])]

    @torch.no_grad()
    def write(self, values: Sums) -> None:
        """Give each buffer its value, from what `read` returns."""
        if not values:
            return
        now = self._now()
        lengths = [buffer.numel() for buffer in now]
        flat = (*values[0].split(lengths[: self._floats]), *values[1].split(lengths[self._floats :]))
        torch._foreach_copy_(now, [one.view_as(buffer) for one, buffer in zip(flat, now, strict=True)])

    @torch.no_grad()
    def moved(self, start: Sums, shard: int, samples: int) -> Sums:
        """How far a shard has moved the buffers from `start`, times its samples: one tensor, or none for no buffer."""
        if not start:
            return []
        floats, counts = self.read()
        # Not a difference where nothing moved: infinite values, as in masks, have none.
        moves = torch.where(floats == start[0], 0, floats - start[0]) * samples
        return [torch.cat([moves, (counts - start[1]).to(moves.dtype) * int(shard == 0)])]

    @torch.no_grad()
    def move(self, start: Sums, moves: Sums, samples: int) -> None:
        """To `start` and the shards' moves, which are added up; `samples` of all shards."""
        if moves:
            floats, counts = moves[0].split([len(one) for one in start])
            self.write([start[0] + floats / samples, start[1] + counts.to(start[1].dtype)])
