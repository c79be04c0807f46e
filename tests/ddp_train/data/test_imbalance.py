"""Classes of different sizes: weights in the loss, balanced sampling, and the balanced accuracy of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.data.pipeline.window import Batch, Pipeline
from ddp_train.data.sources.class_weights import weigh_classes
from ddp_train.data.sources.samples import Dataset, Split, channel_statistics
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.gradient_sync import Averaged
from ddp_train.engine.reproducible import Sharded
from ddp_train.evaluation.saved_model import load_split, open_saved_model
from ddp_train.evaluation.saved_model import test_batches as batches_of
from ddp_train.main import main
from ddp_train.observers.records import read_history
from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.technique import Moment
from tests.ddp_train.techniques import runs

CPU = torch.device("cpu")
LABELS = np.array([0] * 31 + [1] * 9 + [2] * 3 + [3] * 2)[np.random.default_rng(4).permutation(45)]


def skewed(weights: str | None = None, **changes: object) -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(LABELS), 8, 8, 3), dtype=np.uint8)
    train = Split(LABELS, images)
    made = Dataset("made up", ("a", "b", "c", "d"), train, train, *channel_statistics(images), (3, 8, 8))
    made = replace(made, **changes)  # type: ignore[arg-type]
    return made if weights is None else weigh_classes(made, weights)


def pipelines(dataset: Dataset, ranks: int, kind: str = "resident", **further: object) -> list[Pipeline]:
    options = DataOptions(pipeline=kind, num_workers=0, balanced_sampling=further.pop("balanced", False))  # type: ignore[arg-type]
    build = {"global_batch": 16, "accumulate": 1, "seed": 5} | further
    augment = AugmentOptions(augment="heavy")
    return [
        data.build_pipeline(dataset, options, augment, world_size=ranks, rank=rank, device=CPU, **build)  # type: ignore[arg-type]
        for rank in range(ranks)
    ]


# Weights in the loss


@pytest.mark.parametrize("kind", ["resident", "loader"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("further", [{}, {"accumulate": 3}, {"shards": 4}], ids=["whole", "accumulate", "sharded"])
def test_the_gradient_is_that_of_the_weighted_mean_of_the_global_batch(
    kind: str, ranks: int, further: dict[str, int]
) -> None:
    if "shards" in further and ranks > 1:
        return  # needs processes: the table of techniques has it
    dataset = skewed("balanced")
    weights = torch.tensor(dataset.class_weights)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    right, ours = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1), cross_entropy_sum(0.1, weights)
    seen = []
    for windows in zip(*(pipe.train(1) for pipe in pipelines(dataset, ranks, kind, **further)), strict=True):
        everything: list[Batch] = []
        network.zero_grad()
        for rank, window in enumerate(windows):
            batches = list(window.batches)
            everything += batches

            def compute(batch: Batch, moment: Moment, weight: float) -> None:
                (ours(network(batch.images), batch.labels) * weight).backward()

            if "shards" in further:
                way: Averaged | Sharded = Sharded(network, Ranks(), CPU, further["shards"])
            else:
                way = Averaged(Ranks(rank=rank, world_size=ranks), CPU, None, lambda: None)
            way.gradients(window, batches, Moment(0, 0, 0, rank), compute, communicate=True)
        found = [p.grad.clone() / ranks for p in network.parameters() if p.grad is not None]
        network.zero_grad()
        images, labels = (torch.cat([getattr(batch, name) for batch in everything]) for name in ("images", "labels"))
        right(network(images), labels).backward()
        for one, parameter in zip(found, network.parameters(), strict=True):
            assert torch.allclose(one, parameter.grad, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
        seen.append(len(labels))
    assert seen == [16, 16, 13]


def test_a_run_is_plain_torch_with_a_weighted_loss(tmp_path: Path) -> None:
    weights = "tests/ddp_train/techniques/class_weights.yaml"
    options = f"--class-weights {weights} --synthetic-samples 150 --scheduler constant --warmup-epochs 0 --accumulate 3"
    run = runs.make(f"{options} --weight-decay 0 --label-smoothing 0.1", tmp_path / "run", runs.PLAIN)
    network = runs.make(options, tmp_path / "plain", runs.PLAIN).trainer.components.network
    assert run.dataset.class_weights is not None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loss = nn.CrossEntropyLoss(weight=torch.tensor(run.dataset.class_weights), label_smoothing=0.1)
    for epoch in range(2):
        for window in run.trainer.components.pipeline.train(epoch):
            batches = list(window.batches)
            images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()
    for observer in run.observers:
        observer.on_start(run.facts)
    assert run.trainer.fit().step == 20
    rows = runs.rows_of_history(run)
    for ours, theirs in zip(run.trainer.components.network.parameters(), network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    network.eval()
    with torch.no_grad():
        batches = list(run.trainer.components.pipeline.evaluate())
        plain = sum(nn.functional.cross_entropy(network(b.images), b.labels, reduction="sum") for b in batches)
    last = rows[-1]["test_loss"]
    assert float(plain) / sum(len(b.labels) for b in batches) == pytest.approx(
        last, rel=1e-3
    )  # each image counts alike


def test_balanced_weights_are_scikit_learns_and_a_files_ratios_are_kept(tmp_path: Path) -> None:
    found = skewed("balanced").class_weights
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=LABELS).tolist())
    file = tmp_path / "weights.json"
    file.write_text('{"a": 1, "b": 2.5, "d": 1e-1, "c": 40}')
    weights = skewed(str(file)).class_weights
    assert weights is not None
    assert [w / weights[0] for w in weights] == pytest.approx([1, 2.5, 40, 0.1])
    assert np.mean(np.array(weights)[LABELS]) == pytest.approx(1)
    absent = skewed("balanced", classes=("a", "b", "c", "d", "none")).class_weights
    assert absent is not None and absent[:4] == pytest.approx(found)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: 1\nb: 1\nc: 1\n", "no weight for the class 'd'"),
        ("a: 1\nb: 1\nc: 1\nd: 1\ne: 2\n", "no class 'e'"),
        *((f"a: 1\nb: 1\nc: 1\nd: {bad}\n", "'d' needs a weight") for bad in ("0", "-1", ".nan", "yes", "much", "[1]")),
        ("[1, 2, 3, 4]", "'CLASS: 2.5'"),
        ("a: [", "not YAML"),
        ("\0\1", "not YAML"),
    ],
)
def test_a_file_of_weights_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "weights.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=named) as error:
        skewed(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


# Balanced sampling


def order(sampler: GlobalBatchSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_a_balanced_epoch_has_each_class_equally_often_and_its_images_in_turn() -> None:
    sampler = GlobalBatchSampler(LABELS, global_batch=16, seed=3, balanced=LABELS)
    epochs = [order(sampler, epoch) for epoch in range(4)]
    for visited in epochs:
        assert len(visited) == len(LABELS)
        classes = Counter(LABELS[visited].tolist())
        assert set(classes) == {0, 1, 2, 3} and max(classes.values()) - min(classes.values()) <= 1
        for label in range(4):
            times = [visited.count(sample) for sample in np.flatnonzero(label == LABELS)]
            assert max(times) - min(times) <= 1
    assert len({tuple(visited) for visited in epochs}) == 4
    assert len({frozenset(visited) for visited in epochs}) == 4  # the large class shows other images each time
    assert order(sampler, 2) == epochs[2]


def visits(windows: Iterable[data.Window]) -> list[tuple[int, list[int], list[np.ndarray]]]:
    found = []
    for window in windows:
        batches = list(window.batches)
        indices = [index for batch in batches for index in batch.indices.tolist()]
        found.append((window.size, indices, [image.numpy() for batch in batches for image in batch.images]))
    return found


def test_balanced_batches_do_not_depend_on_ranks_pipeline_or_the_step_of_a_resume() -> None:
    dataset = skewed()
    whole = visits(pipelines(dataset, 1, balanced=True)[0].train(3))
    for ranks, kind, start in ((2, "resident", 0), (3, "loader", 1), (1, "loader", 0), (2, "resident", 2)):
        parts = [visits(pipe.train(3, start)) for pipe in pipelines(dataset, ranks, kind, balanced=True)]
        for expected, *windows in zip(whole[start:], *parts, strict=True):
            assert {size for size, _, _ in windows} == {expected[0]}
            assert [index for _, indices, _ in windows for index in indices] == expected[1]
            images = [image for _, _, some in windows for image in some]
            assert all(np.array_equal(a, b) for a, b in zip(images, expected[2], strict=True))


def test_an_image_that_comes_twice_is_augmented_anew() -> None:
    seen: dict[int, list[np.ndarray]] = {}
    for _, indices, images in visits(pipelines(skewed(), 1, balanced=True)[0].train(0)):
        for index, image in zip(indices, images, strict=True):
            assert 0 <= index < len(LABELS)
            seen.setdefault(index, []).append(image)
    rare = max(seen.values(), key=len)
    assert len(rare) >= 5 and len({image.tobytes() for image in rare}) > 1


# A run


def test_a_run_on_unequal_classes_records_the_balanced_accuracy(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(train=4, test=2, classes=("cat", "dog", "owl"))
    for number in range(10, 40):  # cats are many
        for part in ("train", "test"):
            (folder / part / "cat" / f"{number:04d}.png").write_bytes((folder / part / "cat" / "0000.png").read_bytes())
    common = (
        f"--dataset folder --data-dir {folder} --model tests.ddp_train.techniques.tiny:pooled --epochs 2 --device cpu"
    )
    common = f"{common} --batch-size 8 --no-tensorboard"
    assert main([*common.split(), "--class-weights", "balanced", "--out-dir", str(tmp_path / "run")]) == 0
    history = read_history(tmp_path / "run" / "training_history.json")
    assert history["best"].keys() == {"epoch", "test_accuracy"}
    best = history["epochs"][history["best"]["epoch"] - 1]
    saved = open_saved_model(str(tmp_path / "run" / "best_model.pth"), CPU)
    with torch.no_grad():
        batches = list(batches_of(load_split(saved, None, Ranks()), saved, Ranks(), 64))
        predicted = torch.cat([saved.network(batch.images).argmax(1) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    right = balanced_accuracy_score(labels, predicted)
    assert best["test_balanced_accuracy"] == pytest.approx(right) != best["test_accuracy"]
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert (
        f"| balanced accuracy (mean over the classes) | {right:.2%} |" in card
        and "| class-weights | balanced |" in card
    )
    assert f"(balanced {right:.2%}) in epoch {best['epoch']}" in capsys.readouterr().err
    assert main([*common.split(), "--class-weights", "balanced", "--balanced-sampling"]) == 2
    assert main([*common.split(), "--class-weights", str(tmp_path / "none.yaml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: --") for line in errors)


def test_images_that_cannot_be_read_have_no_weight(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    files = (str(tmp_path / "good.png"),) * 999 + (str(tmp_path / "bad.png"),)
    (tmp_path / "bad.png").write_bytes(b"broken")
    train = Split(np.array([0] * 980 + [1] * 20), files=files)
    dataset = skewed("balanced", train=train, classes=("a", "b"), on_bad_sample="skip")
    assert dataset.class_weights == pytest.approx((1000 / 2 / 980, 1000 / 2 / 20))
    windows = list(pipelines(dataset, 1, "loader", global_batch=100)[0].train(0))
    for window in windows:
        weights = [dataset.class_weights[label] for batch in window.batches for label in batch.labels.tolist()]  # type: ignore[index]
        assert len(weights) == window.size and window.weight == pytest.approx(sum(weights))
    assert sum(window.skipped for window in windows) == 1
