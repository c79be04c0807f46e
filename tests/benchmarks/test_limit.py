"""What the operators of a step are added up as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.limit import _shown, group_of


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


def test_a_profile_stands_below_the_share_of_its_network() -> None:
    whole = [
        ["small", "bf16", "34", "165.0 (160.0 to 170.0)", "530 (520 to 540)", "38.0 (37.0 to 39.0)", "38% (37% to 39%)"]
    ]
    rows = _shown({"small": {"convolutions": 75.0, "pooling": 25.0}}, whole)
    first = "a step without the profiler: 38% (37% to 39%) of 530 (520 to 540) GFLOP/s"
    assert rows[0] == ["small", first, "165.0 (160.0 to 170.0)", ""]
    assert rows[1:] == [["small", "convolutions", "75.0", "75%"], ["small", "pooling", "25.0", "25%"]]
