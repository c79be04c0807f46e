"""Averages the gradients that DistributedDataParallel leaves different on each rank, before an optimizer uses them.

DistributedDataParallel averages the gradients of one backward pass after each forward pass of the network. A further
backward pass (two losses of one output, or two forward passes and then two backward passes) adds this rank's own part.
The version numbers of the gradients show it; such gradients are averaged in the step. That is exact: the part that is
the same on all ranks already is its own mean. Parameters that were frozen when their network was joined, and are
trained later, are unknown to DistributedDataParallel: all of their gradients are late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from ddp_train.distributed.process_group import Ranks, average
from ddp_train.library.model import Joined

Marks = list[tuple[Joined | None, list[nn.Parameter], list[int]]]


class LateGradients:
    """The parameters whose gradients have a part that was not averaged over the ranks.

    joined: the wrapped networks; networks: all, without wrappers.
    """

    def __init__(self, joined: Sequence[Joined], networks: Iterable[nn.Module], ranks: Ranks) -> None:
        self._ranks = ranks
        self._networks = [(one, [p for p in one.reduced if p.requires_grad]) for one in joined]
        reduced = {id(p) for one in joined for p in one.reduced}
        everything = [p for network in networks for p in network.parameters()] if ranks.world_size > 1 else []
        self._frozen = [p for p in everything if id(p) not in reduced]
        self._late: set[int] = set()

    def before(self) -> Marks:
        """Call before a backward pass; what it returns is for `after`."""
        trained = [p for p in self._frozen if p.requires_grad]
        marks: Marks = [(None, trained, versions(trained))] if trained else []
        for network, parameters in self._networks:
            if network.require_backward_grad_sync:
                # Its gradients are averaged only after a pass has reached all of them: one shows it.
                one_is_enough = network.averages and not network.find_unused_parameters and not network.static_graph
                watched = parameters[:1] if one_is_enough else parameters
                marks.append((network, watched, versions(watched)))
        return marks

    def after(self, marks: Marks) -> None:
        """Call after the backward pass: find what it has added to gradients without averaging it."""
        for network, parameters, before in marks:
            pairs = zip(parameters, before, versions(parameters), strict=True)
            changed = [id(parameter) for parameter, old, new in pairs if old != new]
            if network is None or not network.averages:
                self._late.update(changed)
            elif changed:
                network.averages = False

    def average(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Average the late gradients among those of `parameters`; returns whether there were any. On all ranks."""
        late = [p for p in parameters if id(p) in self._late] if self._late else []
        average([p.grad for p in late if p.grad is not None], self._ranks)
        self._late.difference_update(map(id, late))
        return bool(late)

    def clear(self) -> None:
        """All gradients were cleared."""
        self._late.clear()


def versions(parameters: Sequence[nn.Parameter]) -> list[int]:
    """The version numbers of the gradients, which change with every addition; -1 without a gradient."""
    return [-1 if (gradient := parameter.grad) is None else gradient._version for parameter in parameters]
