"""torch.compile: a compiled run is the plain one, with micro-batches, two ranks and a rank without samples.

By default with a backend that traces and differentiates the graph and then runs torch's own kernels: seconds. With
COMPILE_BACKEND=inductor in the environment the graph becomes C++: minutes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.parse import parse
from tests.ddp_train.techniques import runs
from tests.ranks import run_ranks

BACKEND = os.environ.get("COMPILE_BACKEND", "aot_eager")
WORKER = Path(__file__).with_name("compiled_run.py")
OPTIONS = "--accumulate 3 --synthetic-samples 33 --epochs 1"
"""Three steps, the last one with a single sample: the second rank has none of it."""


def test_a_compiled_run_on_two_ranks_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*f"{runs.COMMON} {OPTIONS} --compile --model {runs.PLAIN}".split(), "--out-dir", str(tmp_path / "run")]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    run_ranks(2, WORKER, BACKEND, *options, folder=tmp_path, timeout_s=280)
    for rank in range(2):
        output = (tmp_path / f"output-of-rank-{rank}.txt").read_text()
        (graphs,) = re.findall(r"compiled: (\d+)", output)
        assert int(graphs) > 0, output
    compiled = checkpoint_format.load(tmp_path / "run" / "checkpoint-latest.pt")["model"]
    for name, value in runs.train(OPTIONS, runs.PLAIN).items():
        part, _, name = name.partition(".")
        if part == "network":
            torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--compile-mode", "default"], "--compile-mode needs --compile"),
        (["--compile", "--compile-mode", "reduce-overhead", "--accumulate", "2"], "record CUDA graphs"),
        (["--compile", "--compile-mode", "max-autotune", "--accumulate", "2"], "record CUDA graphs"),
        (["--compile", "--compile-mode", "fast"], "one of default, reduce-overhead, max-autotune"),
    ],
)
def test_modes_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        parse(argv)
    assert "\n" not in str(refused.value)
