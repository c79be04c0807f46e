"""`--reproducible`: the same bits on any number of ranks, and through any change of their number.

Each global batch is cut into V logical shards, by a rule that depends on the batch alone. A shard is computed alone,
with its own dropout draws, from the weights and buffers that the step began with. The shards' results are added up in a
binary tree over the shards' numbers, which does not depend on the ranks:

    shards   0   1   2   3   4   5   6   7
              \\ /     \\ /     \\ /     \\ /
               +       +       +       +          a rank has consecutive shards and adds up the whole
                \\     /         \\     /           subtrees among them; these sums are gathered, and
                   +               +              every rank adds up the rest of the tree
                    \\             /
                           +

So each sum has the same operands, in the same order, on whichever rank. Batch statistics are those of a shard, and
running estimates move by the mean of the shards' moves, weighted by their samples. `pin` fixes what else affects the
bits: the number of threads and the choice of kernels.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.gradient_sync import Compute, seed_shard
from ddp_train.engine.shard_reduce import Buffers, ShardTree, Sums
from ddp_train.models.trial import refuse_order_of_chance
from ddp_train.technique import Moment


def pin(threads: int, device: torch.device) -> None:
    """Let torch choose kernels by shape alone, never by timing, by the machine's load, or by the number of ranks.

    threads: of a rank on the CPU, where sums are split over them. Call this before the first kernel runs on a GPU.
    Errors: UserError for a CUBLAS_WORKSPACE_CONFIG that does not allow it.
    """
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda" and workspace not in (":4096:8", ":16:8"):
        raise UserError(f"--reproducible: CUBLAS_WORKSPACE_CONFIG is {workspace}; it takes :4096:8 or :16:8, or unset")
    torch.use_deterministic_algorithms(True)
    # Uninitialized memory is never read here, and to fill it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if device.type == "cpu":
        torch.set_num_threads(threads)


class Sharded:
    """See the module, and gradient_sync.GradientSync. shards: at least as many as ranks."""

    def __init__(self, network: nn.Module, ranks: Ranks, device: torch.device, shards: int) -> None:
        self._network, self._device = network, device
        self._tree = ShardTree(ranks, shards)
        self._buffers = {id(network): Buffers(network)}

    def gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, compute: Compute, *, communicate: bool
    ) -> None:
        """See GradientSync. Always summed over the ranks: one rank's sum would depend on the number of ranks."""
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        buffers, counts, rest = self._buffers[id(self._network)], Counter(window.shards), iter(batches)
        start = buffers.read()

        def leaf(shard: int) -> Sums:
            """The gradients of one shard, and its moves of the buffers."""
            for parameter in parameters:
                parameter.grad = None
            buffers.write(start)
            mine = moment._replace(shard=shard)
            seed_shard(self._device, mine)
            samples = 0
            for batch in islice(rest, counts[shard]):
                with _refusing_other_kernels():
                    compute(batch, mine, 1 / window.weight)
                samples += len(batch.labels)
            return [*map(_gradient, parameters), *buffers.moved(start, shard, samples)]

        total = self._tree.add_up(leaf)
        assert next(rest, None) is None, "a batch belongs to none of the shards"
        with torch.no_grad():
            for parameter, earlier, flat in zip(parameters, before, total, strict=False):
                gradient = flat.as_strided(parameter.shape, _strides(parameter))
                parameter.grad = gradient if earlier is None else earlier.add_(gradient)
        buffers.move(start, total[len(parameters) :], window.size)

    def unify(self, network: nn.Module) -> None:
        """See GradientSync. Does nothing: the buffers are the same on all ranks after every step."""

    def again(self, network: nn.Module, windows: Iterable[Window]) -> Iterator[Batch]:
        """See GradientSync. As in training, each shard begins with the buffers from the start of the window."""
        buffers = self._buffers.setdefault(id(network), Buffers(network))
        for window in windows:
            start, counts = buffers.read(), Counter(window.shards)
            leaves: dict[int, Sums] = {}
            for shard in self._tree.shards:
                buffers.write(start)
                samples = 0
                for batch in islice(window.batches, counts[shard]):
                    yield batch
                    samples += len(batch.labels)
                leaves[shard] = buffers.moved(start, shard, samples)
            buffers.move(start, self._tree.add_up(leaves.__getitem__), window.size)


@contextlib.contextmanager
def _refusing_other_kernels() -> Iterator[None]:
    """Turn torch's error for a layer without a deterministic kernel into a UserError, on all ranks."""
    try:
        yield
    except RuntimeError as error:
        refuse_order_of_chance(error)
        raise


def _strides(parameter: nn.Parameter) -> tuple[int, ...]:
    """The strides that a gradient of this parameter gets."""
    return tuple(torch.empty_like(parameter, device="meta").stride())


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Take the gradient off `parameter`: dense, one dimension, in the parameter's memory order; zeros if None."""
    gradient = parameter.grad
    parameter.grad = None
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    elif gradient.stride() != _strides(parameter):
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,))
