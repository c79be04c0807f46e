"""Both pipelines: the same batches bit for bit, world-size independent, resumable, exact evaluation."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.loader import LoaderPipeline
from ddp_train.data.pipeline.resident import ResidentPipeline
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.data.sources.samples import Dataset, Split, channel_statistics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    train = Split(np.arange(45) % 3, random.integers(0, 256, (45, 8, 8, 3), dtype=np.uint8))
    test = Split(np.arange(10) % 3, random.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8))
    assert train.images is not None
    mean, std = channel_statistics(train.images)
    return Dataset("made up", ("a", "b", "c"), train, test, mean, std, (3, 8, 8))


def pipeline(dataset: Dataset, *, ranks: int = 1, rank: int = 0, **changes: object) -> Pipeline:
    build = {"global_batch": 8, "accumulate": 1, "seed": 5, "shares": None}
    build.update({key: changes.pop(key) for key in list(changes) if key in build})
    augment = AugmentOptions(augment=changes.pop("augment", "heavy"))  # type: ignore[arg-type]
    options = DataOptions(**({"pipeline": "resident", "num_workers": 0} | changes))  # type: ignore[arg-type]
    return data.build_pipeline(dataset, options, augment, world_size=ranks, rank=rank, device=CPU, **build)  # type: ignore[arg-type]


def epoch_of(pipe: Pipeline, epoch: int = 0, start_step: int = 0) -> list[tuple[int, list[data.Batch]]]:
    """(global size, micro-batches) of each window, after checking that the window says what it holds."""
    windows = []
    for window in pipe.train(epoch, start_step):
        batches = list(window.batches)
        assert window.count == len(batches) and window.samples == sum(len(batch.labels) for batch in batches)
        assert all(len(batch.labels) for batch in batches)
        windows.append((window.size, batches))
    return windows


def together(parts: list[list[tuple[int, list[data.Batch]]]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and indices of each global batch, from the ranks' windows."""
    steps = []
    for windows in zip(*parts, strict=True):
        batches = list(itertools.chain(*(batches for _, batches in windows)))
        steps.append(
            (
                torch.cat([batch.images for batch in batches]),
                torch.cat([batch.labels for batch in batches]),
                torch.cat([batch.indices for batch in batches]),
            )
        )
        assert {size for size, _ in windows} == {len(steps[-1][1])}
    return steps


def assert_equal_steps(first: list[tuple[Tensor, ...]], second: list[tuple[Tensor, ...]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["resident", "loader"])
@pytest.mark.parametrize(("ranks", "shares"), [(2, None), (3, None), (3, (4, 1, 0)), (5, (1, 2, 3, 4, 5))])
def test_ranks_together_see_what_one_rank_sees(
    dataset: Dataset, kind: str, ranks: int, shares: tuple[float, ...] | None
) -> None:
    alone = together([epoch_of(pipeline(dataset), 3)])
    parts = [epoch_of(pipeline(dataset, ranks=ranks, rank=r, shares=shares, pipeline=kind), 3) for r in range(ranks)]
    assert_equal_steps(together(parts), alone)


@pytest.mark.parametrize("level", ["none", "minimal", "balanced", "heavy"])
def test_both_pipelines_give_the_same_bits(dataset: Dataset, level: str) -> None:
    for accumulate in (1, 3):
        resident, loader = (
            epoch_of(pipeline(dataset, pipeline=kind, augment=level, accumulate=accumulate), 1)
            for kind in ("resident", "loader")
        )
        assert [len(batches) for _, batches in resident] == [len(batches) for _, batches in loader]
        assert_equal_steps(together([loader]), together([resident]))


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_labels_and_pixels_belong_to_the_indices(dataset: Dataset, kind: str) -> None:
    assert dataset.train.images is not None
    ((images, labels, indices),) = together(
        [epoch_of(pipeline(dataset, pipeline=kind, augment="none", global_batch=45))]
    )
    assert labels.tolist() == dataset.train.labels[indices.numpy()].tolist()
    raw = torch.from_numpy(dataset.train.images[indices.numpy()]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (dataset.mean, dataset.std))
    torch.testing.assert_close(images, (raw - mean) / std)


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_accumulation_cuts_evenly_and_drops_what_is_empty(dataset: Dataset, kind: str) -> None:
    pipe = pipeline(dataset, pipeline=kind, accumulate=3, ranks=2, rank=1)
    sizes = [[len(batch.labels) for batch in batches] for _, batches in epoch_of(pipe)]
    assert sizes == [[2, 1, 1]] * 5 + [[1, 1]]  # the last global batch has 5: 3 and 2


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_a_rank_without_samples_gets_an_empty_window(dataset: Dataset, kind: str) -> None:
    pipe = pipeline(dataset, pipeline=kind, global_batch=11, ranks=2, rank=1)  # 45 = 4 * 11 + 1
    size, batches = epoch_of(pipe)[-1]
    assert (size, batches) == (1, [])
    dummy = pipe.dummy_batch()
    assert dummy.images.shape == (1, 3, 8, 8) and dummy.labels.tolist() == [0]


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_a_resumed_epoch_continues(dataset: Dataset, kind: str) -> None:
    whole = together([epoch_of(pipeline(dataset), 2)])
    for step in (0, 2, 5, 6):
        resumed = epoch_of(pipeline(dataset, pipeline=kind), 2, step)
        assert_equal_steps(together([resumed]) if resumed else [], whole[step:])


@pytest.mark.parametrize("kind", ["resident", "loader"])
@pytest.mark.parametrize(("ranks", "shares"), [(1, None), (2, None), (3, (1, 0, 5)), (12, None)])
def test_evaluation_counts_each_test_sample_once(
    dataset: Dataset, kind: str, ranks: int, shares: tuple[float, ...] | None
) -> None:
    batches = list(
        itertools.chain(
            *(pipeline(dataset, pipeline=kind, ranks=ranks, rank=r, shares=shares).evaluate() for r in range(ranks))
        )
    )
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.test.labels.tolist()
    expected = torch.cat([batch.images for batch in pipeline(dataset, augment="none").evaluate()])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_evaluation_follows_shares_that_change(dataset: Dataset, kind: str) -> None:
    ranks = [pipeline(dataset, pipeline=kind, ranks=3, rank=rank) for rank in range(3)]
    expected = torch.cat([batch.images for batch in pipeline(dataset, augment="none").evaluate()])
    for shares, samples in [(None, [4, 3, 3]), ((5, 4, 1), [5, 4, 1]), ((0, 2, 8), [0, 2, 8]), ((1, 0, 0), [10, 0, 0])]:
        for rank in ranks if shares is not None else ():
            rank.sampler.share(shares)
        parts = [list(rank.evaluate()) for rank in ranks]
        assert [sum(len(batch.labels) for batch in part) for part in parts] == samples
        batches = list(itertools.chain(*parts))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(10))
        assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.test.labels.tolist()
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


def test_evaluation_can_be_repeated(dataset: Dataset) -> None:
    for kind in ("resident", "loader"):
        pipe = pipeline(dataset, pipeline=kind)
        assert (
            [len(batch.labels) for batch in pipe.evaluate()] == [len(batch.labels) for batch in pipe.evaluate()] == [10]
        )


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_an_abandoned_epoch_or_window_leaves_no_trace(dataset: Dataset, kind: str) -> None:
    fresh = together([epoch_of(pipeline(dataset), 1)])
    pipe = pipeline(dataset, pipeline=kind, accumulate=2)
    next(iter(pipe.train(0)))
    assert_equal_steps(together([epoch_of(pipe, 1)]), fresh)
    windows = pipe.train(1)
    next(windows)  # of which not a single batch is taken
    second = torch.cat([batch.indices for batch in next(windows).batches])
    assert torch.equal(second, fresh[1][2])


def test_drop_last_and_steps(dataset: Dataset) -> None:
    assert pipeline(dataset).steps_per_epoch == 6
    assert len(epoch_of(pipeline(dataset, drop_last=True))) == pipeline(dataset, drop_last=True).steps_per_epoch == 5


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_the_global_generator_is_left_alone(dataset: Dataset, kind: str) -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    pipe = pipeline(dataset, pipeline=kind)
    epoch_of(pipe)
    list(pipe.evaluate())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_auto_keeps_small_data_resident_and_large_data_not(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(pipeline(dataset, pipeline="auto"), ResidentPipeline)
    needed = 45 * 10 * 10 * 3 + 10 * 8 * 8 * 3
    monkeypatch.setattr("ddp_train.data.pipeline.build.available_memory", lambda: int(needed / 0.4) + 1)
    assert isinstance(pipeline(dataset, pipeline="auto"), ResidentPipeline)
    assert isinstance(pipeline(dataset, pipeline="auto", ranks=2), LoaderPipeline)
    assert isinstance(pipeline(dataset, pipeline="auto", augment="minimal", ranks=2), LoaderPipeline)
    assert isinstance(pipeline(dataset, pipeline="resident", ranks=2), ResidentPipeline)


def test_files_go_through_the_loader(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(train=20, size=(8, 8))
    decoded = data.load("folder", DataOptions(data_dir=str(folder)))
    splits = {
        part: Split(split.labels, None, tuple(sorted(map(str, (folder / part).rglob("*.png")))))
        for part, split in (("train", decoded.train), ("test", decoded.test))
    }
    files = replace(decoded, **splits)  # type: ignore[arg-type]
    loaded = pipeline(files, pipeline="auto")
    assert isinstance(loaded, LoaderPipeline)
    assert_equal_steps(together([epoch_of(loaded, 4)]), together([epoch_of(pipeline(decoded), 4)]))
    with pytest.raises(UserError, match="--pipeline resident"):
        pipeline(files, pipeline="resident")
