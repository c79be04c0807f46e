"""How the gradients and buffers of logical shards are reduced to those of a global batch, independently of the ranks.

`ShardTree` adds up the shards' gradients in a binary tree. A node is split in the middle of its shards, so the tree
depends on their number alone. Each rank adds up the subtrees that it has whole, the ranks gather these, and each rank
adds up the rest in the same order (see reproducible.py). `Buffers` reduces batch statistics in the same tree: each
shard starts from the buffers of the step's beginning and reports how far it moved them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_train.config.batch_split import shards_of_rank
from ddp_train.distributed.process_group import Ranks
from ddp_train.torch_internals import foreach

PIECE = 1 << 22
"""Numbers that are gathered at a time: bounds the memory to PIECE x ranks x subtrees of a rank."""

Node = tuple[int, int]
"""A subtree: the shards from the first number up to the second, without the second."""
Sums = list[Tensor]
"""The tensors that a node adds up, each of one dimension."""


def add_up(node: Node, known: Callable[[Node], Sums | None]) -> Sums:
    """The sums of a node: `known`, or the sum of its two halves, which overwrites the left half's tensors."""
    found = known(node)
    if found is not None:
        return found
    start, stop = node
    middle = (start + stop) // 2
    left, right = add_up((start, middle), known), add_up((middle, stop), known)
    foreach("add_", left, right)
    return left


def cover(shards: range, node: Node) -> list[Node]:
    """The largest subtrees of `node` that make up `shards`, in order.

    >>> cover(range(2, 5), (0, 8))
    [(2, 4), (4, 5)]
    """
    start, stop = node
    if shards.start <= start and stop <= shards.stop:
        return [node]
    if stop <= shards.start or shards.stop <= start:
        return []
    middle = (start + stop) // 2
    return [*cover(shards, (start, middle)), *cover(shards, (middle, stop))]


class ShardTree:
    """The tree over `shards` logical shards, at least as many as there are ranks."""

    def __init__(self, ranks: Ranks, shards: int) -> None:
        assert ranks.world_size <= shards
        everyone = range(ranks.world_size)
        self._ranks, self._root = ranks, (0, shards)
        self._nodes = [cover(shards_of_rank(shards, rank, ranks.world_size), self._root) for rank in everyone]
        self.shards = shards_of_rank(shards, ranks.rank, ranks.world_size)
        """The shards of this rank."""

    def add_up(self, leaf: Callable[[int], Sums]) -> Sums:
        """The sums over all shards of all ranks; `leaf` is asked for each shard of this rank, in order."""

        def known(node: Node) -> Sums | None:
            """The sums of a single shard; None for a larger subtree."""
            return leaf(node[0]) if node[1] - node[0] == 1 else None

        return self._join([add_up(node, known) for node in self._nodes[self._ranks.rank]])

    def _join(self, mine: list[Sums]) -> Sums:
        """The sums of the root, from those of this rank's subtrees and the other ranks'."""
        total = mine[0]
        if self._ranks.world_size == 1:
            return total
        most = max(map(len, self._nodes))
        for piece in _pieces(total):
            lengths = [stop - start for _, start, stop in piece]
            sent = total[piece[0][0]].new_zeros(most, sum(lengths))
            for row, sums in zip(sent, mine, strict=False):
                torch.cat([sums[index][start:stop] for index, start, stop in piece], out=row)
            received = sent.new_empty(self._ranks.world_size, *sent.shape)
            dist.all_gather_into_tensor(received.flatten(0, 1), sent)
            rows = {
                node: [row]
                for nodes, of_rank in zip(self._nodes, received, strict=True)
                for node, row in zip(nodes, of_rank, strict=False)
            }
            (added,) = add_up(self._root, rows.get)
            for (index, start, stop), values in zip(piece, added.split(lengths), strict=True):
                total[index][start:stop] = values
        return total


def _pieces(tensors: Sums) -> Iterator[list[tuple[int, int, int]]]:
    """Lists of ranges (tensor, from, to) of one dtype with at most PIECE numbers in all, each list for one gather."""
    piece: list[tuple[int, int, int]] = []
    left = PIECE
    for index, tensor in enumerate(tensors):
        if piece and tensors[piece[-1][0]].dtype != tensor.dtype:
            yield piece
            piece, left = [], PIECE
        start = 0
        while start < len(tensor):
            stop = min(len(tensor), start + left)
            piece.append((index, start, stop))
            left -= stop - start
            start = stop
            if not left:
                yield piece
                piece, left = [], PIECE
    if piece:
        yield piece


class Buffers:
    """The buffers of a network: how far each shard moves them, and where all shards together move them.

    Whole numbers (num_batches_tracked) take the move of shard 0, which has as many micro-batches as any.
    """

    def __init__(self, network: nn.Module) -> None:
        places = {
            id(buffer): (module, name, buffer.is_floating_point())
            for module in network.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.numel()
        }
        # Whole numbers come last. Places are kept, not tensors: a module may replace the tensor of a buffer.
        self._places = sorted(places.values(), key=lambda place: not place[2])
        self._floats = sum(floating for _, _, floating in self._places)

    def _now(self) -> list[Tensor]:
        """The buffers as they are now; a module may have replaced them."""
        return [getattr(module, name) for module, name, _ in self._places]

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
        foreach("copy_", now, [one.view_as(buffer) for one, buffer in zip(flat, now, strict=True)])

    @torch.no_grad()
    def moved(self, start: Sums, shard: int, samples: int) -> Sums:
        """How far a shard has moved the buffers from `start`, times its samples: one tensor, or none for no buffer."""
        if not start:
            return []
        floats, counts = self.read()
        # 0 where nothing moved: the difference of infinite values, as in masks, would be NaN.
        moves = torch.where(floats == start[0], 0, floats - start[0]) * samples
        return [torch.cat([moves, (counts - start[1]).to(moves.dtype) * int(shard == 0)])]

    @torch.no_grad()
    def move(self, start: Sums, moves: Sums, samples: int) -> None:
        """Set the buffers to `start` plus the mean move. moves: the sum over the shards; samples: of all shards."""
        if moves:
            floats, counts = moves[0].split([len(one) for one in start])
            self.write([start[0] + floats / samples, start[1] + counts.to(start[1].dtype)])
