"""The program of the ranks of test_exact_gradients.py: trains as each case of a JSON file says.

It keeps losses, gradients and weights.

    python tests/integration/run_steps.py CASES.json RESULT.pt

A case: {"name", "steps", "batch", "samples", and optionally "shares", "moved" (the shares from the evaluation on),
"accumulate", "double", "lr", "augment", "clip", "scale" (a factor of the loss, as GradScaler's), "batch_norm" (counted
over the ranks), "rows" (by rank: the rows of its part of a global batch that make up each micro-batch)}. Rank 0 writes
{name: {"losses": float64 [steps], "gradients": [steps, parameters], "scores": [loss, accuracy, samples] on the test
split, "buffers": [ranks, numbers]}}.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.data.sources.dataset import load
from ddp_train.distributed import process_group
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.shm_allreduce import SharedGradients, share
from ddp_train.engine.components import Components
from ddp_train.engine.evaluate import evaluate
from ddp_train.engine.trainer import Trainer
from ddp_train.models.sync_batch_norm import synchronise
from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.optim.precision import Precision
from ddp_train.techniques import clipping
from tests.ddp_train.contexts import make_context

CPU = torch.device("cpu")


class PlainNet(nn.Module):
    """A small network without batch statistics; computes in the precision of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.GroupNorm(2, 8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.to(self.layers[0].weight.dtype))


class BatchNormNet(nn.Module):
    """Two layers of batch statistics, the second of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * 64, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU(), nn.Linear(16, 10)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.to(self.layers[0].weight.dtype))


def recut(window: Window, rows: list[list[int]]) -> Window:
    """The same part of a global batch in other micro-batches."""
    parts = list(window.batches)
    whole = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "indices")]
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(window.samples))
    batches = [Batch(*(tensor[some] for tensor in whole)) for some in rows]
    return Window(iter(batches), len(batches), window.samples, window.size)


def gathered_buffers(network: nn.Module, ranks: process_group.Ranks) -> torch.Tensor:
    """Every rank's buffers in a row each."""
    mine = torch.cat([torch.zeros(1), *(b.detach().double().flatten() for b in network.buffers())])
    everyone = torch.zeros(ranks.world_size, len(mine), dtype=torch.float64)
    everyone[ranks.rank] = mine
    return process_group.sum_over_ranks(everyone)


def double_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The trainer's loss is float32; this is the same in float64, to see the mathematics without rounding."""
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def memory_of(ddp: DistributedDataParallel, ranks: process_group.Ranks) -> SharedGradients:
    """What the trainer takes on one host."""
    shared = share(ddp.module, ranks, CPU, torch.distributed.barrier)
    assert shared is not None
    return shared


def run(case: dict[str, Any], ranks: process_group.Ranks) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = BatchNormNet() if case.get("batch_norm") else PlainNet()
    network = network.double() if case.get("double") else network
    if case.get("batch_norm"):
        assert synchronise(network) == 2
    ddp = DistributedDataParallel(network, gradient_as_bucket_view=True) if ranks.world_size > 1 else None
    options = DataOptions(dataset="synthetic", synthetic_samples=case["samples"])
    pipeline = build_pipeline(
        load("synthetic", options),
        options,
        AugmentOptions(augment=case.get("augment", "heavy")),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=CPU,
        global_batch=case["batch"],
        accumulate=case.get("accumulate", 1),
        seed=3,
        shares=case.get("shares"),
        equal_passes=bool(case.get("batch_norm")),
    )
    base_loss = double_cross_entropy if case.get("double") else cross_entropy_sum(0.1)
    sums: list[torch.Tensor] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = base_loss(logits, labels)
        sums.append(value.detach().double())
        return value

    optimizer = torch.optim.SGD(network.parameters(), lr=case.get("lr", 0.1), momentum=0.9, nesterov=True)
    optimizer.param_groups[0]["initial_lr"] = case.get("lr", 0.1)
    precision = Precision("off", CPU)
    if "scale" in case:
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=case["scale"])
    gradients: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    )
    trainer = Trainer(
        Components(
            ranks=ranks,
            device=CPU,
            network=network,
            model=ddp or network,
            ddp=ddp,
            flag_exchange=FlagExchange(ranks),
            allreduce_hook=None if ddp is None or case.get("batch_norm") else AllreduceHook(ddp, memory_of(ddp, ranks)),
            pipeline=pipeline,
            loss=loss,
            optimizer=optimizer,
            schedule=lambda step: 1.0,
            precision=precision,
            epochs=1,
            global_batch=case["batch"],
            techniques=(clipping.create(make_context(network, clip_grad=case["clip"])),) if "clip" in case else (),
        )
    )
    windows = itertools.chain.from_iterable(pipeline.train(epoch) for epoch in itertools.count())
    losses = []
    for window in itertools.islice(windows, case["steps"]):
        sums.clear()
        if "rows" in case:
            window = recut(window, case["rows"][ranks.rank])
        trainer.train_step(window)
        mine = sum(sums, torch.zeros((), dtype=torch.float64)) if window.count else torch.zeros((), dtype=torch.float64)
        losses.append(process_group.sum_over_ranks(mine) / window.size)
    if "moved" in case:
        pipeline.sampler.share(case["moved"])
    scores = evaluate(network, pipeline.evaluate(), Precision("off", CPU))
    return {
        "losses": torch.stack(losses),
        "gradients": torch.stack(gradients),
        "buffers": gathered_buffers(network, ranks),
        "scores": torch.tensor([scores.loss, scores.accuracy, scores.samples], dtype=torch.float64),
    }


def main() -> None:
    cases, result = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, CPU, timeout_s=120)
    found = {case["name"]: run(case, ranks) for case in json.loads(cases.read_text())}
    if ranks.is_first:
        torch.save(found, result)
    process_group.leave(0)


if __name__ == "__main__":
    main()
