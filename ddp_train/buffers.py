"""The buffers of a network as they are now.

A module may replace the tensor of a buffer (`self.center = 0.9 * self.center + ...`): a tensor that was looked up
before then keeps its value for ever, and a value that is written into it has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class CurrentBuffers:
    """The buffers of a network in the order of `network.buffers()`. `tensors`: as they were at the last look."""

    def __init__(self, network: nn.Module) -> None:
        places: dict[int, tuple[nn.Module, str]] = {}
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                places.setdefault(id(buffer), (module, name))
        self._places = list(places.values())
        self.tensors = self._look()

    def _look(self) -> list[Tensor]:
        return [getattr(module, name) for module, name in self._places]

    def replaced(self) -> bool:
        """Look at the buffers again: whether a module has replaced a tensor since the last look."""
        now = self._look()
        if all(one is before for one, before in zip(now, self.tensors, strict=True)):
            return False
        self.tensors = now
        return True

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Make these tensors the buffers, where they are not yet."""
        for (module, name), now, tensor in zip(self._places, self._look(), tensors, strict=True):
            if now is not tensor:
                setattr(module, name, tensor)
        self.tensors = list(tensors)
