"""What the operators of a step are added up as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.limit import group_of


def event(*names: str) -> Any:
    """An operator inside of others, the innermost first."""
    found = None
    for name in reversed(names):
        found = SimpleNamespace(name=name, cpu_parent=found)
    return found


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("aten::mkldnn_convolution", "aten::convolution"), "convolutions"),
        (("aten::copy_", "aten::_to_copy", "aten::to"), "casts"),
        (("aten::copy_", "aten::clone", "aten::contiguous"), "changes of layout"),
        (("aten::fill_", "aten::zero_", "aten::max_pool2d_with_indices_backward"), "sums and factors"),
        (("aten::copy_", "aten::_foreach_add_", "Optimizer.step#SGD.step"), "optimizer"),
        (("aten::index", "aten::to", "data"), "data"),
        (("aten::copy_", "aten::convolution_backward", "ConvolutionBackward0"), "convolutions"),
        (("aten::empty",), "other operators"),
    ],
)
def test_an_operator_belongs_to_the_nearest_that_says_what_it_does(names: tuple[str, ...], group: str) -> None:
    assert group_of(event(*names)) == group
