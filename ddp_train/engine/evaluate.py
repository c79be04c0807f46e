"""Exact evaluation: every test sample counts once, whatever the world size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_train.data.pipeline.window import Batch
from ddp_train.distributed.process_group import sum_over_ranks, to_host
from ddp_train.engine.eval_memory import agree, look_at_all, of_this_rank
from ddp_train.optim.losses import cross_entropy_sum, summable
from ddp_train.optim.precision import Precision

Views = Callable[[Tensor], Iterable[Tensor]]
"""Images [n, C, H, W] -> the same images, seen in one or more ways."""
CONFUSION_UP_TO = 1000
"""Classes up to which the confusion matrix is counted: it has as many entries as classes squared."""


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy (without label smoothing or class weights) and accuracy (fraction of 1) over `samples` images.

    balanced_accuracy: see the function; NaN where the classes were not counted. at_a_time: the most images per forward
    pass that fit into memory on all ranks, 0 where memory has not run out.
    """

    loss: float
    accuracy: float
    samples: int
    balanced_accuracy: float = math.nan
    at_a_time: int = 0


def balanced_accuracy(hits: Sequence[float], counts: Sequence[float]) -> float:
    """The mean recall of the classes (the share of their images that is correct), a fraction of 1.

    hits and counts: correct and all images of each class; a class without images is left out. NaN for no images.
    Source: Brodersen et al. 2010, "The balanced accuracy and its posterior distribution"; scikit-learn's.
    """
    recalls = [right / count for right, count in zip(hits, counts, strict=True) if count]
    return math.fsum(recalls) / len(recalls) if recalls else math.nan


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], precision: Precision, classes: int = 0) -> Scores:
    """Evaluate over the parts of all ranks; each rank passes its own share of the test set.

    `batches`: images [n, C, H, W], labels int64 [n]. `classes`: for the balanced accuracy, 0: without it. Sums are
    taken in float64 and divided once. Where memory runs out, batches are seen in parts (eval_memory.py).
    """
    loss_sum = cross_entropy_sum()
    was_training = model.training
    model.eval()
    totals = torch.zeros(3 + 2 * classes, dtype=torch.float64, device=precision.device)
    by_class = totals[3:].view(2, classes)  # correct and all images

    def look(batch: Batch) -> None:
        """Add a batch to the totals."""
        with precision.autocast():
            logits = model(batch.images)
        right = logits.argmax(1) == batch.labels
        loss, hits = summable(loss_sum(logits, batch.labels)), right.sum()
        images = torch.stack([right, torch.ones_like(right)]).double()
        # Nothing below allocates memory.
        totals[0] += loss
        totals[1] += hits
        totals[2] += len(batch.labels)
        if classes:
            by_class.index_add_(1, batch.labels, images)

    most = look_at_all(batches, look, precision.device)
    model.train(was_training)
    sums = sum_over_ranks(torch.cat([totals, of_this_rank(most, precision.device)]))
    loss, correct_count, samples, *found = to_host(sums)
    balanced = balanced_accuracy(found[:classes], found[classes : 2 * classes])
    at_a_time = agree(found[2 * classes :])
    return Scores(loss / max(1.0, samples), correct_count / max(1.0, samples), int(samples), balanced, at_a_time)


@dataclass(frozen=True)
class Mistake:
    """A test image (its index in the split) that was taken for another class, with that class's probability."""

    loss: float
    index: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Examination:
    """Exact figures over the test split. Fractions of 1.

    top5: None with five classes or fewer, where it would always be 1. hits and counts: correct and all images of each
    class. confusion: [true class][predicted class], images; None with more than 1000 classes. mistakes: the worst
    first. at_a_time: as in Scores.
    """

    samples: int
    loss: float
    top1: float
    top5: float | None
    hits: tuple[int, ...]
    counts: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    mistakes: tuple[Mistake, ...]
    at_a_time: int = 0

    @property
    def balanced_accuracy(self) -> float:
        """See the function."""
        return balanced_accuracy(self.hits, self.counts)


def _as_they_are(images: Tensor) -> Iterable[Tensor]:
    """The images themselves as the only view."""
    return (images,)


@torch.no_grad()
def examine(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    classes: int,
    *,
    views: Views = _as_they_are,
    below: float = math.inf,
    worst: int = 0,
) -> Examination:
    """Compute an Examination over the parts of all ranks; each rank passes its own share of the split. A collective.

    views: the class probabilities are averaged over them. below: only images whose highest probability is below this
    are seen in all `views`, the others only as they are. worst: how many mistakes to keep.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=precision.device)  # loss, top-1, top-5
    matrix = classes if classes <= CONFUSION_UP_TO else 1
    hits, counts, confusion = (
        torch.zeros(size, dtype=torch.int64, device=precision.device) for size in (classes, classes, matrix * matrix)
    )
    mistakes: list[Mistake] = []

    def look(batch: Batch) -> None:
        """Add a batch to the sums, and its mistakes to the worst ones."""
        log_probabilities, predicted = _seen(model, batch.images, precision, views, below)
        losses = -log_probabilities.gather(1, batch.labels[:, None])[:, 0]
        best = log_probabilities.topk(min(5, classes), dim=1).indices
        right = predicted == batch.labels
        found = torch.stack(
            [losses.double().sum(), right.sum().double(), (best == batch.labels[:, None]).sum().double()]
        )
        of_classes = [torch.bincount(labels, minlength=classes) for labels in (batch.labels[right], batch.labels)]
        pairs = batch.labels * classes + predicted
        pairs = torch.bincount(pairs, minlength=classes**2) if matrix == classes else torch.zeros_like(confusion)
        more = _mistakes(batch, losses, predicted, log_probabilities, worst) if worst else []
        # Nothing below allocates memory.
        for total, part in zip((sums, hits, counts, confusion), (found, *of_classes, pairs), strict=True):
            total += part
        mistakes[:] = _worst([*mistakes, *more], worst)

    most = look_at_all(batches, look, precision.device)
    model.train(was_training)
    sums = torch.cat([sums, of_this_rank(most, precision.device)])
    for tensor in (sums, hits, counts, confusion):
        sum_over_ranks(tensor)
    samples, *of_sums = to_host(torch.cat([counts.sum().view(1), sums]))
    loss, top1, top5 = (value / max(1.0, samples) for value in of_sums[:3])
    rows = confusion.view(matrix, matrix).tolist() if matrix == classes else None
    return Examination(
        samples=int(samples),
        loss=loss,
        top1=top1,
        top5=top5 if classes > 5 else None,
        hits=tuple(hits.tolist()),
        counts=tuple(counts.tolist()),
        confusion=None if rows is None else tuple(tuple(row) for row in rows),
        mistakes=tuple(_worst(_of_all_ranks(mistakes), worst)),
        at_a_time=agree(of_sums[3:]),
    )


def _seen(model: nn.Module, images: Tensor, precision: Precision, views: Views, below: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities float32 [n, classes] and predicted classes int64 [n] of images [n, C, H, W]."""
    if below <= 1:
        sure, predicted = _seen(model, images, precision, _as_they_are, math.inf)
        unsure = (sure.max(1).values.exp() < below).nonzero()[:, 0]
        if len(unsure):
            again, predicted[unsure] = _seen(model, images[unsure], precision, views, math.inf)
            sure[unsure] = again
        return sure, predicted
    with precision.autocast():
        logits = [model(view) for view in views(images)]
    log_probabilities = torch.stack([one.float().log_softmax(1) for one in logits]).logsumexp(0)
    log_probabilities -= math.log(len(logits))
    # Among equal logits, common in bf16, argmax takes the first, as in `evaluate`; topk would take any of them.
    return log_probabilities, (logits[0] if len(logits) == 1 else log_probabilities).argmax(1)


def _mistakes(batch: Batch, losses: Tensor, predicted: Tensor, log_probabilities: Tensor, worst: int) -> list[Mistake]:
    """The mistakes of a batch with the highest losses, at most `worst` of them."""
    order = losses.masked_fill(predicted == batch.labels, -1.0).topk(min(worst, len(losses))).indices
    order = order[predicted[order] != batch.labels[order]]
    sure = log_probabilities[order].max(1).values.exp() if len(order) else losses[:0]
    columns = (losses[order], batch.indices[order], batch.labels[order], predicted[order], sure)
    return [Mistake(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _worst(mistakes: list[Mistake], worst: int) -> list[Mistake]:
    """The mistakes with the highest losses, in a fixed order."""
    return sorted(mistakes, key=lambda mistake: (-mistake.loss, mistake.index))[:worst]


def _of_all_ranks(mistakes: list[Mistake]) -> list[Mistake]:
    """The mistakes of all ranks together."""
    if not dist.is_initialized():
        return mistakes
    gathered: list[list[Mistake]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mistakes)
    return [mistake for part in gathered for mistake in part]
