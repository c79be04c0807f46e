"""--expandable-segments: one variable out of two, before torch is imported."""

from __future__ import annotations

import pytest

from ddp_train import config
from ddp_train.allocator import expand_segments
from ddp_train.options import UserError


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native,expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
        (
            {"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "a:2,b:[1:2,3:4]"},
            "a:1,b:[1:2,3:4],expandable_segments:True",
        ),
    ],
)
def test_the_environment_is_kept(before: dict[str, str], after: str) -> None:
    environ = dict(before)
    expand_segments(environ)
    assert environ == {"PYTORCH_ALLOC_CONF": after}


@pytest.mark.parametrize("value", ["expandable_segments:False", "nonsense"])
def test_an_environment_that_says_otherwise_is_no_guess(value: str) -> None:
    environ = {"PYTORCH_CUDA_ALLOC_CONF": value}
    with pytest.raises(UserError, match="--expandable-segments: PYTORCH_ALLOC_CONF or"):
        expand_segments(environ)
    assert environ == {"PYTORCH_CUDA_ALLOC_CONF": value}


def test_it_is_for_gpus() -> None:
    with pytest.raises(UserError, match="--expandable-segments is for the memory of GPUs"):
        config.parse(["--device", "cpu", "--expandable-segments"])
