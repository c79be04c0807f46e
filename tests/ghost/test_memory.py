"""Memory of a ghost GPU: what runs out is recovered from in anybody's words, and the batch finder finds the limit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_core.errors import SharedError
from ddp_train.data.pipeline.window import Window
from ddp_train.engine.evaluate import Examination, Scores, evaluate, examine
from ddp_train.tune.batch_size import find_batch_size
from ddp_train.tune.memory import GpuMemory
from tests.ddp_train.techniques.runs import PLAIN
from tests.ghost import Ghost, Gpu, cuda
from tests.ghost.runs import GPU, STEPS, make

MIB = 2**20
WORDS: dict[str, Callable[[str], Exception | None]] = {
    "torch": lambda operation: None,
    "cuDNN": lambda operation: (
        RuntimeError("GET was unable to find an engine to execute this computation")
        if operation.startswith("convolution")
        else None
    ),
    "cuBLAS": lambda operation: (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        if "mm" in operation
        else None
    ),
}


def train_with_room(ghost: Ghost, folder: Path, room: int | None, options: str = "") -> tuple[list[float], int, int]:
    """Sums of the weights, micro-batches of a step at the end, and bytes that steps took; room: that they may take."""
    run = make(options, folder, PLAIN)
    step, before, taken = run.trainer.train_step, ghost.gpu.allocated, [0]

    def limited(window: Window) -> None:
        gpu = ghost.gpu
        gpu.used_by_others = 0 if room is None else gpu.total - before - room
        torch.cuda.reset_peak_memory_stats()
        try:
            step(window)
        finally:
            gpu.used_by_others = 0
            taken.append(gpu.peak - before)

    run.trainer.train_step = limited  # type: ignore[method-assign]
    run.trainer.fit()
    assert run.trainer.progress.step == STEPS
    weights = [float(p.detach().double().sum()) for p in run.trainer.components.network.parameters()]
    return weights, run.trainer.components.pipeline.accumulate, max(taken)


@pytest.mark.parametrize("whose", WORDS)
def test_a_step_without_memory_is_retried(whose: str, ghost: Ghost, tmp_path: Path) -> None:
    ghost.gpu.words.append(WORDS[whose])
    weights, accumulate, taken = train_with_room(ghost, tmp_path / "plain", None)
    assert accumulate == 1
    again, accumulate, less = train_with_room(ghost, tmp_path / "little", taken - 512)
    assert accumulate >= 2 and less < taken
    assert again == pytest.approx(weights, rel=1e-4)


def test_one_image_that_does_not_fit_ends_the_run_in_one_line(ghost: Ghost, tmp_path: Path) -> None:
    with pytest.raises(SharedError, match="micro-batches of one image"):
        train_with_room(ghost, tmp_path / "run", 2048)


def test_words_of_a_library_are_no_memory_while_there_is_room(ghost: Ghost) -> None:
    """Kind: an error taken for another by its words alone."""
    from ddp_train.engine.oom_retry import is_out_of_memory

    error = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    assert not is_out_of_memory(error, GPU)
    ghost.gpu.used_by_others = int(0.95 * ghost.gpu.total)
    assert is_out_of_memory(error, GPU)


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """The collector, which the finder calls before each trial, passes over what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_the_batch_finder_agrees_with_an_exhaustive_search(little_garbage: None) -> None:
    torch.set_num_threads(1)
    with cuda(Gpu(total=6 * MIB)):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).to(GPU)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

        def step(batch: int) -> None:
            network(torch.ones(batch, 3, 8, 8, device=GPU)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        found = find_batch_size(step, device=GPU, keep=[network, optimizer])
        memory = GpuMemory(GPU)

        def fits(batch: int) -> bool:
            memory.reset()
            try:
                step(batch)
            except torch.OutOfMemoryError:
                return False
            return memory.peak() <= 0.9 * found.limit

        largest = max(
            size for size in range(found.largest // 2, 2 * found.largest, max(1, found.largest // 12)) if fits(size)
        )
    assert abs(found.largest - largest) <= largest / 8


def evaluated(ghost: Ghost, folder: Path, room: int | None) -> tuple[Scores, Examination, int, int]:
    """Both sorts of evaluation, with so many bytes that they may take; images at a time at the end, and bytes taken."""
    run = make("--batch-size 32", folder, "small")  # which takes more than its images
    parts, gpu, before = run.trainer.components, ghost.gpu, ghost.gpu.allocated
    gpu.used_by_others = 0 if room is None else gpu.total - before - room
    torch.cuda.reset_peak_memory_stats()
    try:
        scores = evaluate(parts.evaluated, parts.pipeline.evaluate(), parts.precision, parts.classes)
        examined = examine(parts.evaluated, parts.pipeline.evaluate(), parts.precision, parts.classes, worst=5)
    finally:
        gpu.used_by_others = 0
    return scores, examined, scores.at_a_time, gpu.peak - before


@pytest.mark.parametrize("whose", WORDS)
def test_an_evaluation_without_memory_takes_fewer_images_at_a_time(
    whose: str, ghost: Ghost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ghost.gpu.words.append(WORDS[whose])
    scores, examined, most, taken = evaluated(ghost, tmp_path / "plain", None)
    assert most == examined.at_a_time == 0 and capsys.readouterr().err == ""
    again, looked_at, most, less = evaluated(ghost, tmp_path / "little", taken // 2)
    assert 0 < most < 64 and less <= taken // 2
    assert capsys.readouterr().err.splitlines() == 2 * [
        f"memory ran out on rank 0 in evaluation: from now on {most} images at a time, each counted once"
    ]
    assert (again.samples, again.accuracy) == (scores.samples, scores.accuracy)
    assert again.loss == pytest.approx(scores.loss, rel=1e-6)
    assert (looked_at.confusion, looked_at.hits, looked_at.counts) == (
        examined.confusion,
        examined.hits,
        examined.counts,
    )
    assert [one.index for one in looked_at.mistakes] == [one.index for one in examined.mistakes]


def test_the_epochs_after_it_begin_with_as_few(ghost: Ghost, tmp_path: Path) -> None:
    run = make("--epochs 2 --batch-size 32", tmp_path / "run", PLAIN)
    parts, asked = run.trainer.components, []

    def short(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if not module.training:
            asked.append(len(inputs[0]))
            if len(inputs[0]) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")

    parts.network.register_forward_pre_hook(short)
    run.trainer.fit()
    images = len(run.dataset.test.labels)
    assert parts.pipeline.test_batch == 8 and max(asked[-images // 8 :]) == 8
    assert sum(size for size in asked if size <= 8) == 2 * images


def test_an_image_for_which_there_is_no_memory_is_an_error(ghost: Ghost, tmp_path: Path) -> None:
    parts, asked = make("--batch-size 32", tmp_path / "run", PLAIN).trainer.components, []

    def never(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        asked.append(len(inputs[0]))
        assert len(asked) < 20
        raise torch.OutOfMemoryError("CUDA out of memory")

    parts.network.register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(parts.evaluated, parts.pipeline.evaluate(), parts.precision)
    assert asked[-1] == 1
