"""Exact figures of an examination, against scikit-learn and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from ddp_train.data.pipeline.window import Batch
from ddp_train.engine.evaluate import Mistake, evaluate, examine
from ddp_train.evaluation.metrics import as_json, as_text
from ddp_train.evaluation.tta import views
from ddp_train.optim.precision import Precision

OFF = Precision("off", torch.device("cpu"))


def split(images: torch.Tensor, labels: torch.Tensor, size: int) -> list[Batch]:
    at = torch.arange(len(labels))
    return [Batch(images[i : i + size], labels[i : i + size], at[i : i + size]) for i in range(0, len(labels), size)]


@pytest.fixture
def drawn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), torch.randn(101, 3, 4, 4), torch.randint(8, (101,))


def test_the_figures_are_scikit_learns(drawn: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    network, images, labels = drawn
    found = examine(network, split(images, labels, 17), OFF, 8, worst=5)
    with torch.no_grad():
        probabilities = network(images).double().softmax(1).numpy()
    predicted, classes = probabilities.argmax(1), np.arange(8)
    assert found.samples == 101
    assert found.loss == pytest.approx(log_loss(labels, probabilities, labels=classes), rel=1e-5)
    assert found.top1 == pytest.approx((predicted == labels.numpy()).mean())
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=classes))
    assert found.confusion is not None
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=classes))
    assert found.counts == tuple(np.bincount(labels, minlength=8))
    assert found.hits == tuple(np.diag(found.confusion))
    losses = -np.log(probabilities[np.arange(101), labels])
    wrong = np.flatnonzero(predicted != labels.numpy())
    order = wrong[np.argsort(-losses[wrong])][:5]
    assert [mistake.index for mistake in found.mistakes] == list(order)
    for mistake, at in zip(found.mistakes, order, strict=True):
        assert (mistake.label, mistake.predicted) == (labels[at], predicted[at])
        assert mistake.loss == pytest.approx(losses[at], rel=1e-4)
        assert mistake.probability == pytest.approx(probabilities[at].max(), rel=1e-4)


def test_it_agrees_with_the_trainers_own_evaluation(drawn: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    network, images, labels = drawn
    scores = evaluate(network, split(images, labels, 20), OFF)
    found = examine(network, split(images, labels, 33), OFF, 8)
    assert (found.samples, found.top1) == (scores.samples, scores.accuracy)
    assert found.loss == pytest.approx(scores.loss, rel=1e-6)


def test_of_equal_logits_the_first_counts_as_in_the_trainers_evaluation() -> None:
    labels = torch.arange(4).repeat(50)
    logits = torch.randint(2, (200, 8), generator=torch.Generator().manual_seed(0)).bfloat16()
    scores, found = (
        evaluate(nn.Identity(), split(logits, labels, 64), OFF),
        examine(nn.Identity(), split(logits, labels, 64), OFF, 8),
    )
    assert found.top1 == scores.accuracy


def test_few_classes_have_no_top5_and_all_right_no_mistakes() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    found = examine(nn.Identity(), split(nn.functional.one_hot(labels, 3).float() * 9, labels, 3), OFF, 3, worst=4)
    assert (found.top5, found.top1, found.mistakes) == (None, 1.0, ())
    assert as_json(found, "abc")["top5"] is None and not any("top-5" in line for line in as_text(found, "abc"))


def test_views_average_probabilities_over_mirrored_and_moved_images() -> None:
    torch.manual_seed(1)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 6)), torch.randn(5, 3, 64, 64)
    flipped, shifted = list(views("flip")(images)), list(views("flip+shifts")(images))
    assert [len(flipped), len(shifted)] == [2, 10]
    assert torch.equal(flipped[1], torch.from_numpy(images.numpy()[..., ::-1].copy()))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")  # two pixels of 64
    corners = [padded[:, :, t : t + 64, left : left + 64] for t, left in ((2, 2), (4, 4), (4, 0), (0, 4), (0, 0))]
    assert all(np.array_equal(one, other) for one, other in zip(shifted[::2], corners, strict=True))
    labels = torch.randint(6, (5,))
    for name, seen in (("flip", flipped), ("flip+shifts", shifted)):
        mean = torch.stack([network(view).softmax(1) for view in seen]).mean(0)
        found = examine(network, split(images, labels, 2), OFF, 6, views=views(name))  # type: ignore[arg-type]
        assert found.loss == pytest.approx(nn.functional.nll_loss(mean.log(), labels).item(), rel=1e-5)
        assert found.top1 == pytest.approx((mean.argmax(1) == labels).float().mean().item())


def test_the_worst_of_all_ranks_come_first() -> None:
    from ddp_train.engine.evaluate import _worst

    mistakes = [Mistake(loss, index, 0, 1, 0.9) for index, loss in enumerate((1.0, 3.0, 2.0, 3.0))]
    assert [mistake.index for mistake in _worst(mistakes, 3)] == [1, 3, 2]


def test_only_unsure_images_are_seen_again() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 8, 8), torch.arange(64) % 6
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6)).eval()
    with torch.no_grad():
        plain = network(images).softmax(1)
        both = (plain + network(images.flip(3)).softmax(1)) / 2
    sure = plain.max(1).values
    limit = float(sure.sort().values[31:33].mean())
    assert (plain.argmax(1) != both.argmax(1))[sure < limit].any()
    expected = torch.where((sure < limit)[:, None], both, plain)
    found = examine(network, split(images, labels, 2), OFF, 6, views=views("flip"), below=limit)
    assert found.top1 == float((expected.argmax(1) == labels).double().mean())
    assert found.loss == pytest.approx(float(-expected.log()[torch.arange(64), labels].mean()), rel=1e-5)
    none = examine(network, split(images, labels, 2), OFF, 6, views=views("flip"), below=1e-9)
    assert none == examine(network, split(images, labels, 2), OFF, 6)
