"""--expandable-segments: one variable out of two, before torch is imported; and the heap of a training on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.process_setup import expand_segments, keep_heap
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
        "--expandable-segments: no GPU is used, so it has no effect",
        "--compile-mode reduce-overhead: no GPU is used, so it has no effect",
    ]


FAULTS = """
import os, resource
from ddp_train.process_setup import keep_heap
kept = keep_heap(os.environ)
block = bytearray(1 << 26)
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(1 << 26)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc's allocator")
@pytest.mark.parametrize("told", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_memory_that_was_freed_is_used_again_unless_the_user_has_settings(told: dict[str, str]) -> None:
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)} | told
    command = [sys.executable, "-c", FAULTS]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True, timeout=120)
    kept, faults = done.stdout.split()
    assert kept == str(not told)
    assert (int(faults) < 16) is not bool(told)  # pages that the kernel cleared anew


@pytest.mark.parametrize(
    "environ", [{"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}, {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}]
)
def test_another_allocator_or_setting_stays(environ: dict[str, str]) -> None:
    assert not keep_heap(environ)
