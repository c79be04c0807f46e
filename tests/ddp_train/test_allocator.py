"""--expandable-segments: one variable out of two, before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_train.allocator import expand_segments
from ddp_train.options import UserError
from tests.ddp_train.techniques import runs


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


def test_without_a_gpu_a_line_says_that_it_does_nothing(tmp_path: Path) -> None:
    run = runs.make("--expandable-segments --compile --compile-mode reduce-overhead", tmp_path / "run", runs.PLAIN)
    assert [note for note in run.facts.notes if "no GPU is used" in note] == [
        "--expandable-segments: no GPU is used, so it does nothing",
        "--compile-mode reduce-overhead: no GPU is used, so it does nothing",
    ]
