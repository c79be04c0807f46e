"""The hard part of each batch: against plain torch, and what is left of micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.optim.lr_schedule import set_learning_rate
from ddp_train.technique import Moment
from ddp_train.techniques.hard_samples import HardSamples, proxy_network
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import runs
from tests.ddp_train.techniques.tiny import plain


def test_a_run_is_plain_torch_on_the_largest_losses(tmp_path: Path) -> None:
    parts = runs.make("", tmp_path / "run", runs.PLAIN).trainer.components
    torch.manual_seed(0)
    proxy, step = proxy_network(3, 10), 0
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(2):
        for window in parts.pipeline.train(epoch):
            (batch,) = window.batches
            with torch.no_grad():
                losses = cross_entropy(proxy(batch.images), batch.labels, reduction="none").numpy()
            hard = torch.from_numpy(np.sort(np.argsort(-losses, kind="stable")[: len(losses) // 2]))
            images, labels = batch.images[hard], batch.labels[hard]
            cross_entropy(parts.network(images), labels).backward()
            set_learning_rate(parts.optimizer, parts.schedule(step))
            parts.optimizer.step()
            parts.optimizer.zero_grad()
            if step % 4 == 0:
                sgd.zero_grad()
                cross_entropy(proxy(images), labels).backward()
                sgd.step()
            step += 1
    found = runs.train("--hard-samples 0.5", runs.PLAIN)
    for name, value in parts.network.state_dict().items():
        torch.testing.assert_close(found[f"network.{name}"], value, rtol=1e-4, atol=1e-5)


def hard_samples(share: float, **options: object) -> HardSamples:
    network = plain(10, (3, 32, 32))
    return HardSamples(make_context(network, hard_samples=share, **options), share)


def window_of(sizes: list[int]) -> Window:
    batches = [
        Batch(torch.zeros(n, 3, 32, 32), torch.zeros(n, dtype=torch.int64), torch.arange(10 * k, 10 * k + n))
        for k, n in enumerate(sizes)
    ]
    return Window(iter(batches), len(sizes), sum(sizes), sum(sizes), tuple(range(len(sizes))))


def test_of_equal_losses_the_first_count_and_an_empty_micro_batch_is_left_out() -> None:
    chosen = hard_samples(0.5).choose(window_of([4, 3, 1]), Moment(0, 1, 0, 0))
    batches = list(chosen.batches)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3]]
    assert (chosen.count, chosen.samples, chosen.size, chosen.shards) == (1, 4, 4, (0,))


def test_where_all_ranks_pass_equally_often_an_empty_micro_batch_stays() -> None:
    chosen = hard_samples(0.5, sync_batch_norm=True).choose(window_of([4, 4]), Moment(0, 1, 0, 0))
    assert [len(batch.labels) for batch in chosen.batches] == [4, 0] and chosen.count == 2


def test_a_step_that_is_retried_trains_the_proxy_once() -> None:
    twice, once = hard_samples(0.5), hard_samples(0.5)
    moment = Moment(0, 0, 0, 0)
    twice.choose(window_of([4, 4]), moment)
    for hard, ends in ((twice, 2), (once, 1)):
        hard.choose(window_of([8]), moment)
        for _ in range(ends):
            hard.after_step(moment)
    for one, other in zip(twice.state_dict()["weights"], once.state_dict()["weights"], strict=True):
        assert torch.equal(one, other)


def test_what_excludes_it() -> None:
    with pytest.raises(UserError, match="--hard-samples with --class-weights"):
        parse(["--hard-samples", "0.5", "--class-weights", "balanced"])
    other = hard_samples(0.5).state_dict()
    other["weights"][0] = torch.zeros(2)
    with pytest.raises(ValueError, match="other images or classes"):
        hard_samples(0.5).load_state_dict(other)
