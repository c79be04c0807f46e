"""Every technique of the one table on a ghost GPU: it runs, waits in no step, and trains what the CPU trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ddp_train.techniques import runs
from tests.ddp_train.techniques.table import TABLE, Row
from tests.ghost import cuda
from tests.ghost.runs import make

LOOKS_AT_EACH_STEP = {"watch_numbers": "to_host: tolist", "hard_samples and accumulate": ": nonzero"}
"""What has to read a number of the GPU in each step, and where."""
ROUNDED = 2e-3
"""Relative: fused steps round otherwise, and what is normalised or orthogonalised follows that."""
NO_GRADIENT = "branch.0.bias"
"""Before batch norm, which takes it out again: it gets rounding, which some optimizers make steps of full length of."""


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_technique_on_a_gpu(row: Row, tmp_path: Path) -> None:
    network = row.network or runs.STATEFUL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        on_cpu = make(row.on, tmp_path / "cpu", network, device=torch.device("cpu"))
        on_cpu.trainer.fit()
        with cuda() as ghost:
            run = make(row.on, tmp_path / "gpu", network)
            ghost.waits.forget()
            run.trainer.fit()
            places = ghost.waits.places(at_least=run.trainer.progress.step - 1)
            weights = {name: value.cpu() for name, value in runs.weights(run).items()}
    finally:
        torch.set_num_threads(threads)
    expected = LOOKS_AT_EACH_STEP.get(row.name)
    assert len(places) == (expected is not None) and all(place.endswith(str(expected)) for place in places)
    for name, value in runs.weights(on_cpu).items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(weights[name], value, rtol=ROUNDED, atol=ROUNDED)
