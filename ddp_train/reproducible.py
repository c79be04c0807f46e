"""`--reproducible`: the same bits on any number of ranks, and through any change of their number.

Each global batch is cut into V logical shards, by a rule of the batch alone. A shard is computed by itself, with draws
of dropout of its own, from the weights and buffers that the step began with. What the shards give is added up in a
binary tree over their numbers, which does not know the ranks:

    shards   0   1   2   3   4   5   6   7
              \\ /     \\ /     \\ /     \\ /
               +       +       +       +          a rank has consecutive shards and adds up the whole
                \\     /         \\     /           subtrees among them; these sums are gathered, and
                   +               +              every rank adds up the rest of the tree
                    \\             /
                           +

So each sum has the same operands, in the same order, whoever computes it. Batch statistics are those of a shard, and
running estimates move by the mean of the shards' moves, weighted by their samples. `pin` fixes what else decides about
bits: the number of threads and the choice of kernels.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_train.batching import shards_of_rank
from ddp_train.data.pipeline import Batch, Window
from ddp_train.distributed import Ranks
from ddp_train.joining import Compute, seed_shard
from ddp_train.options import UserError
from ddp_train.technique import Moment

__all__ = ["Sharded", "add_up", "cover", "differences", "facts", "pin"]

PIECE = 1 << 22
"""Numbers that are gathered at a time: bounds the memory, which is so many times the ranks and their subtrees."""

Node = tuple[int, int]
"""A subtree: the shards from the first up to, and without, the second."""
Sums = list[Tensor]
"""What a node adds up: tensors of one dimension."""


def pin(threads: int, device: torch.device) -> None:
    """Let torch choose kernels by shape alone, never by timing, by the machine's load, or by the number of ranks.

    threads: of a rank on the CPU, where sums are cut by them. To be called before the first kernel runs on a GPU.
    Errors: UserError for a workspace of cuBLAS's that does not allow it.
    """
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda" and workspace not in (":4096:8", ":16:8"):
        raise UserError(f"--reproducible: CUBLAS_WORKSPACE_CONFIG is {workspace}; it takes :4096:8 or :16:8, or unset")
    torch.use_deterministic_algorithms(True)
    # Memory that was never written is never read here; to fill it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if device.type == "cpu":
        torch.set_num_threads(threads)


def facts(shards: int, accumulate: int, device: torch.device) -> dict[str, str | int]:
    """What the bits of a run depend on beside its options, for the checkpoint."""
    gpu = device.type == "cuda"
    return {
        "shards": shards,
        "accumulate": accumulate,
        "threads": 0 if gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if gpu else f"cpu {platform.machine()}",
        "kernels": f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if gpu else _processor(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def _processor() -> str:
    return torch.backends.cpu.get_cpu_capability()


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """In words, what keeps a resumed run from having the bits of the one that was saved."""
    return [f"{name} {saved.get(name)} -> {value}" for name, value in now.items() if saved.get(name) != value]


def add_up(node: Node, known: Callable[[Node], Sums | None]) -> Sums:
    """The sums of a node, from its two halves where they are not known; the left one's tensors are written over."""
    found = known(node)
    if found is not None:
        return found
    start, stop = node
    middle = (start + stop) // 2
    left, right = add_up((start, middle), known), add_up((middle, stop), known)
    torch._foreach_add_(left, right)
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


class Sharded:
    """See the module, and joining.Joining. shards: at least as many as ranks."""

    def __init__(self, network: nn.Module, ranks: Ranks, device: torch.device, shards: int) -> None:
        assert ranks.world_size <= shards
        self._network, self._ranks, self._device = network, ranks, device
        self._tree: Node = (0, shards)
        self._nodes = [cover(shards_of_rank(shards, r, ranks.world_size), self._tree) for r in range(ranks.world_size)]
        self._buffers = {id(network): _Buffers(network)}

    def gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, compute: Compute, *, communicate: bool
    ) -> None:
        """See Joining. The parts are always joined: one rank's own would follow the number of ranks."""
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        buffers, counts, rest = self._buffers[id(self._network)], Counter(window.shards), iter(batches)
        start = buffers.read()

        def leaf(node: Node) -> Sums | None:
            shard, stop = node
            if stop - shard > 1:
                return None
            for parameter in parameters:
                parameter.grad = None
            buffers.write(start)
            mine = replace(moment, shard=shard)
            seed_shard(self._device, mine)
            samples = 0
            for batch in islice(rest, counts[shard]):
                compute(batch, mine, 1 / window.size)
                samples += len(batch.labels)
            return [*map(_gradient, parameters), *buffers.moved(start, shard, samples)]

        total = self._join([add_up(node, leaf) for node in self._nodes[self._ranks.rank]])
        with torch.no_grad():
            for parameter, earlier, flat in zip(parameters, before, total, strict=False):
                gradient = flat.as_strided(parameter.shape, _strides(parameter))
                parameter.grad = gradient if earlier is None else earlier.add_(gradient)
        buffers.move(start, total[len(parameters) :], window.size)

    def unify(self, network: nn.Module) -> None:
        """See Joining. They are the same on all ranks, behind every step."""

    def again(self, network: nn.Module, windows: Iterable[Window]) -> Iterator[Batch]:
        """See Joining. As in training, each shard begins with the buffers of the window's beginning."""
        buffers = self._buffers.setdefault(id(network), _Buffers(network))
        for window in windows:
            start, leaves = buffers.read(), dict[Node, Sums]()
            counts = Counter(window.shards)
            for shard in range(self._nodes[self._ranks.rank][0][0], self._nodes[self._ranks.rank][-1][1]):
                buffers.write(start)
                samples = 0
                for batch in islice(window.batches, counts[shard]):
                    yield batch
                    samples += len(batch.labels)
                leaves[shard, shard + 1] = buffers.moved(start, shard, samples)
            nodes = [add_up(node, leaves.get) for node in self._nodes[self._ranks.rank]]
            buffers.move(start, self._join(nodes), window.size)

    def _join(self, mine: list[Sums]) -> Sums:
        """The sums over the whole tree, from those of this rank's subtrees and the other ranks'."""
        if self._ranks.world_size == 1:
            return mine[0]
        most = max(map(len, self._nodes))
        total = mine[0]
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
            (added,) = add_up(self._tree, rows.get)
            for (index, start, stop), values in zip(piece, added.split(lengths), strict=True):
                total[index][start:stop] = values
        return total


class _Buffers:
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


def _strides(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(torch.empty_like(parameter, device="meta").stride())


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient as one dense dimension, in the memory order of its parameter; zero where nothing came."""
    gradient = parameter.grad
    parameter.grad = None
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    elif gradient.stride() != _strides(parameter):
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,))


def _pieces(tensors: Sums) -> Iterator[list[tuple[int, int, int]]]:
    """Stretches (tensor, from, to) of one type, at most PIECE numbers in all, which go through a gather at once."""
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
