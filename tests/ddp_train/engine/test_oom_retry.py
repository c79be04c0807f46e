"""A step for which memory runs out is put back and retried with smaller micro-batches; other errors are raised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddp_core.errors import SharedError
from ddp_train.assemble.build import Run
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.oom_retry import OomRetry, OutOfMemoryOnSomeRank, is_out_of_memory
from ddp_train.engine.step_boundary import StepBoundary
from tests.ddp_train.techniques import runs

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Made:
    """The retry of a real run of one rank, with the collaborators that it works on."""

    def __init__(self, folder: Path, options: str = "") -> None:
        self.run: Run = runs.make(options, folder / "run", runs.STATEFUL)
        self.components = self.run.trainer.components
        self.metrics = Metrics(runs.CPU)
        self.boundary = StepBoundary(self.components, self.metrics)
        self.retry = OomRetry(self.components, self.metrics, self.boundary, lambda: None)

    def spoil(self) -> None:
        """Change what a forward and backward pass changes."""
        self.metrics.begin_step()
        self.metrics.add(torch.tensor(3.0), torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64))
        for buffer in self.components.network.buffers():
            buffer.add_(1)
        for parameter in self.components.network.parameters():
            parameter.grad = torch.ones_like(parameter)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NO_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    "words", ["GET was unable to find an engine to execute this computation", "CUBLAS_STATUS_NOT_INITIALIZED"]
)
def test_words_of_libraries_count_where_the_memory_is_nearly_full(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, device = RuntimeError(words), torch.device("cuda", 0)
    assert not is_out_of_memory(error) and not is_out_of_memory(error, runs.CPU)
    for free, expected in ((40, False), (3, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80))
        assert is_out_of_memory(error, device) is expected


def test_cuda_graphs_are_never_cut_into_micro_batches(made: Made) -> None:
    graphs = replace(made.components, cuda_graphs=True)
    retry = OomRetry(graphs, made.metrics, made.boundary, lambda: None)

    def step() -> None:
        raise NO_MEMORY

    with pytest.raises(SharedError, match="CUDA graphs allow no micro-batches"):
        retry.run(step)
    assert made.components.pipeline.accumulate == 1


def test_everything_is_as_before_but_for_the_micro_batches(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: value.clone() for name, value in made.components.network.state_dict().items()}

    def step() -> None:
        made.spoil()
        raise NO_MEMORY

    assert made.retry.run(step) is False
    assert made.components.pipeline.accumulate == made.components.progress.accumulate == 2
    after = made.components.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert made.metrics.total().tolist() == [0, 0, 0]
    assert all(parameter.grad is None for parameter in made.components.network.parameters())
    assert "memory ran out on rank 0 in step 1" in (said := capsys.readouterr().err) and "of 8 images" in said


def test_a_buffer_that_the_step_replaced_is_put_back(made: Made) -> None:
    norm = next(module for module in made.components.network.modules() if hasattr(module, "running_mean"))

    def good() -> None:
        norm.running_mean = norm.running_mean + 1

    def bad() -> None:
        good()
        raise NO_MEMORY

    assert made.retry.run(good) is True
    before = norm.running_mean.clone()
    assert made.retry.run(bad) is False
    assert torch.equal(norm.running_mean, before)


def test_a_step_that_succeeds_stays(made: Made) -> None:
    assert made.retry.run(made.spoil) is True
    assert made.metrics.total().tolist()[0] == 3.0 and made.components.pipeline.accumulate == 1


def test_another_rank_ran_out_of_memory(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    def step() -> None:
        raise OutOfMemoryOnSomeRank(3)

    assert made.retry.run(step) is False
    assert "memory ran out on rank 3" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["another error", "weights changed", "flags exchanged"])
def test_what_cannot_be_retried_is_raised(made: Made, how: str) -> None:
    error = RuntimeError("shapes cannot be multiplied") if how == "another error" else NO_MEMORY

    def step() -> None:
        if how == "weights changed":
            made.retry.commit()
        if how == "flags exchanged":
            made.boundary.exchange_flags_in_backward()
        raise error

    with pytest.raises(type(error)) as raised:
        made.retry.run(step)
    assert raised.value is error and made.components.pipeline.accumulate == 1
    made.boundary.begin_step()
    assert how == "another error" or made.retry.run(lambda: (_ for _ in ()).throw(NO_MEMORY)) is False, "the next step"


def test_micro_batches_of_one_image_cannot_be_halved(made: Made) -> None:
    made.components.pipeline.accumulate = 16
    with pytest.raises(SharedError, match="memory ran out on rank 0 in step 1, with micro-batches of one image"):
        made.retry.run(lambda: (_ for _ in ()).throw(NO_MEMORY))


def test_a_resumed_run_keeps_its_smaller_micro_batches(made: Made) -> None:
    made.components.progress.accumulate = 4
    OomRetry(made.components, made.metrics, made.boundary, lambda: None)
    assert made.components.pipeline.accumulate == 4
