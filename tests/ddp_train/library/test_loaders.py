"""Loops over loaders as users write them, on one rank: in step, one in another, left early, over very many samples."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_train import Run
from ddp_train.library.reading import BatchReader


class Numbers:
    """The whole numbers below `count`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def test_an_epoch_of_very_many_samples_is_not_listed(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        loader = run.loader(Numbers(3_000_000), 100)
        for _ in run.epochs(1):
            tracemalloc.start()
            first = list(itertools.islice(loader, 3))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert len(set(torch.cat(first).tolist())) == 300 and peak < 2_000_000


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_length_of_a_loader_is_its_number_of_batches(tmp_path: Path, accumulate: int) -> None:
    with Run(tmp_path, device="cpu") as run:
        loader = run.loader(Numbers(22), 5, accumulate=accumulate)
        for _ in run.epochs(1):
            assert len(loader) == len(list(loader)) == (5 if accumulate == 1 else 14)


def test_a_loop_that_is_left_begins_anew_in_the_next_epoch(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        loader, seen = run.loader(Numbers(10), 4), []
        look = next(iter(loader))
        for _ in run.epochs(2):
            seen.append(next(batch for batch, _ in zip(loader, range(2), strict=False)))
            seen.append(torch.cat(list(loader)))
    assert torch.equal(look, seen[0]) and torch.equal(seen[0], seen[1][:4]), "the same order within an epoch"
    assert not torch.equal(seen[1], seen[3]) and sorted(seen[3].tolist()) == [*range(10)]


def test_an_order_of_the_users_own_may_repeat_samples_and_leave_some_out(tmp_path: Path) -> None:
    orders = [[3, 3, 0], range(4), np.array([1, 2]), torch.tensor([0, 0, 0, 1])]
    with Run(tmp_path, device="cpu") as run:
        loader = run.loader(Numbers(4), 2, sampler=lambda epoch: orders[epoch])
        seen = [torch.cat(list(loader)).tolist() for _ in run.epochs(4)]
    assert seen == [list(order) for order in orders]


class Stop(Exception):
    """What a test ends a loop with."""


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def in_step(run: Run, step: Callable[[], None]) -> Tensor:
    """Two loaders in step, of different sizes; the shorter one begins anew; beside the first an evaluation."""
    generator = torch.Generator().manual_seed(0)
    one = TensorDataset(torch.randn(25, 3, generator=generator))
    other = TensorDataset(torch.randn(12, 3, generator=generator))
    net = run.model(nn.Linear(3, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    first, second, held_out = run.loader(one, 6), run.loader(other, 4), run.loader(other, 5, shuffle=False)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(2):
        rest = iter(second)
        for (inputs,) in first:
            step()
            try:
                (others,) = next(rest)
            except StopIteration:
                rest = iter(second)
                (others,) = next(rest)
            run.backward(net(inputs).square().sum(), of=first)
            run.backward(net(others).exp().sum(), of=second)
            run.step(optimizer)
            with torch.no_grad():
                assert sum(len(batch) for (batch,) in held_out) == 12
    return weights(net)


def nested(run: Run, step: Callable[[], None]) -> Tensor:
    """A training loop within another, and after it a second pass over the outer loader in the same epoch."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 3, generator=generator))
    net = run.model(nn.Linear(3, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    outer, inner = run.loader(data, 4), run.loader(data, 5)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(2):
        assert len(list(outer)) == 3, "an evaluation is repeated after a resume"
        for _ in outer:
            step()
            for (inputs,) in inner:
                run.backward(net(inputs).square().sum(), of=inner)
                run.step(optimizer)
        for (inputs,) in outer:
            step()
            run.backward(net(inputs).exp().sum())
            run.step(optimizer)
            if run.step_number % 6 == 4:
                break
    return weights(net)


def drawing(run: Run, step: Callable[[], None]) -> Tensor:
    """Draws from generators of one's own and from those of the modules, within the loop and before it."""
    net = run.model(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loader = run.loader(TensorDataset(torch.ones(9, 3)), 3)
    own, old, python = np.random.default_rng(3), np.random.RandomState(4), random.Random(5)
    torchs = torch.Generator().manual_seed(6)
    kept = run.keep(net=net, optimizer=optimizer, own=own, old=old, python=python, torchs=torchs, drawn=[])
    for _ in run.epochs(3):
        before = torch.rand(1).item()
        for (inputs,) in loader:
            step()
            drawn = [own.random(), old.rand(), python.random(), np.random.rand(), random.random()]
            drawn += [torch.rand(1, generator=torchs).item(), torch.rand(1).item()]
            kept.drawn = [*kept.drawn, *drawn]
            run.backward(net(inputs).sum() * sum(drawn))
            run.step(optimizer)
        assert before >= 0
    return torch.tensor(kept.drawn, dtype=torch.float64)


def noisy(samples: list[Any]) -> Tensor:
    """Collates with draws from all three generators."""
    return torch.tensor(samples) + torch.rand(1) + float(np.random.normal()) + random.random()


def collating(run: Run, step: Callable[[], None]) -> Tensor:
    """Draws in the function that collates."""
    net = run.model(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loader = run.loader(Numbers(12), 3, collate_fn=noisy)
    kept = run.keep(net=net, optimizer=optimizer, drawn=[])
    for _ in run.epochs(2):
        for inputs in loader:
            run._saver.finish()  # each step's checkpoint is on the disk: the run resumes within an epoch
            step()
            kept.drawn = [*kept.drawn, *inputs.tolist(), float(np.random.rand())]
            run.backward(net(inputs).sum())
            run.step(optimizer)
    return torch.tensor(kept.drawn, dtype=torch.float64)


def test_draws_while_collating_depend_on_the_batch_alone() -> None:
    first, later = (BatchReader(Numbers(9), noisy, 5) for _ in range(2))
    before = np.random.get_state(legacy=False)["state"]["key"]
    batches = [first[0, [0, 1]][0], first[0, [2, 3]][0], first[1, [2, 3]][0]]
    torch.manual_seed(1)
    assert torch.equal(later[0, [2, 3]][0], batches[1]) and not torch.equal(batches[1], batches[2])
    assert len({float(batch[0]) % 1 for batch in batches}) == 3
    assert later[0, []][0].shape == (0,)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before), "the generators are the user's"


@pytest.mark.parametrize("loop", [in_step, nested, drawing, collating])
def test_a_loop_that_was_broken_off_anywhere_ends_as_if_it_had_not(
    loop: Callable[[Run, Callable[[], None]], Tensor], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def train(folder: Path, stop_at: int = -1) -> tuple[Any, int]:
        steps = itertools.count()

        def step() -> None:
            if next(steps) == stop_at:
                raise Stop

        try:
            with Run(folder, device="cpu", save_every=1, seed=2) as run:
                return loop(run, step), next(steps)
        except Stop:
            return None, stop_at

    whole, count = train(tmp_path / "whole")
    every = 1 if request.config.getoption("--whole") else 5
    for stop_at in range(1, count, every):
        assert train(tmp_path / str(stop_at), stop_at) == (None, stop_at)
        found, _ = train(tmp_path / str(stop_at))
        assert torch.equal(found, whole), stop_at


def test_the_best_is_kept_over_a_resume_with_the_weights_of_its_moment(tmp_path: Path) -> None:
    def train(epochs: int) -> list[bool]:
        found = []
        with Run(tmp_path, device="cpu") as run:
            net = run.model(nn.Linear(3, 1, bias=False))
            optimizer = torch.optim.SGD(net.parameters(), 1.0)
            loader = run.loader(TensorDataset(torch.ones(4, 3)), 4)
            run.keep(net=net, optimizer=optimizer)
            for epoch in run.epochs(epochs):
                nn.init.constant_(net.weight, epoch)
                found.append(run.best([5.0, 2.0, 3.0, 1.0][epoch], net, lowest=True))
                for (inputs,) in loader:
                    run.backward(net(inputs).sum())
                    run.step(optimizer)
        return found

    def best() -> float:
        return float(torch.load(tmp_path / "best_model.pth", weights_only=True)["weight"].mean())

    assert train(2) == [True, True] and best() == 1.0
    assert train(3) == [False] and best() == 1.0
    assert json.loads((tmp_path / "done.json").read_text())["best"] == {"epoch": 2, "metric": 2.0}
    assert train(4) == [True] and best() == 3.0


def test_the_epoch_in_which_a_loop_is_left_counts_as_the_best(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        net = run.model(nn.Linear(3, 1, bias=False))
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        loader = run.loader(TensorDataset(torch.ones(4, 3)), 4)
        run.keep(net=net, optimizer=optimizer)
        for epoch in run.epochs(9):
            for (inputs,) in loader:
                run.backward(net(inputs).sum())
                run.step(optimizer)
            run.log(accuracy=epoch / 2)
            if run.best(epoch / 2, net) and epoch == 2:
                break
    best = torch.load(tmp_path / "best_model.pth", weights_only=True)
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert torch.equal(best["weight"], net.weight) and [epoch["accuracy"] for epoch in history["epochs"]] == [0, 0.5, 1]
    assert json.loads((tmp_path / "done.json").read_text())["best"] == {"epoch": 3, "metric": 1.0}


def test_each_batch_without_a_step_has_draws_of_its_own(tmp_path: Path) -> None:
    def train(folder: Path, stop_at: int = -1) -> list[list[float]]:
        """The draws of each pass: two steps an epoch, of three batches each; then an evaluation."""
        draws: list[list[float]] = []
        with suppress(Stop), Run(folder, device="cpu", save_every=1) as run:
            net = run.model(nn.Linear(3, 1))
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            loader = run.loader(TensorDataset(torch.ones(12, 3)), 2)
            run.keep(net=net, optimizer=optimizer)
            for _ in run.epochs(2):
                for training in (True, False):
                    draws.append([])
                    for number, (inputs,) in enumerate(loader):
                        draws[-1].append(torch.rand(()).item())
                        if training and sum(map(len, draws[::2])) == stop_at:
                            raise Stop
                        if training:
                            run.backward(net(inputs).sum())
                        if training and number % 3 == 2:
                            run.step(optimizer)
        return draws

    whole = train(tmp_path / "whole")
    assert [len(draws) for draws in whole] == [6] * 4 and all(len({*draws}) == 6 for draws in whole)
    assert len({*whole[0], *whole[2]}) == 12
    train(tmp_path / "stopped", stop_at=11)
    flat, again = (list(itertools.chain(*draws)) for draws in (whole, train(tmp_path / "stopped")))
    assert len(again) in range(3, 24, 3) and again == flat[-len(again) :], "a window is trained again as a whole"


def test_several_optimizers_of_a_batch_have_one_loss_scale(tmp_path: Path) -> None:
    def train(folder: Path, *, scaled: bool) -> Tensor:
        with Run(folder, device="cpu") as run:
            nets = [run.model(nn.Linear(3, 1)) for _ in range(2)]
            optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
            loader = run.loader(TensorDataset(torch.ones(8, 3)), 4)
            if scaled:  # a scale that changes in every step, on the CPU, where training does not offer it
                precision = run._used.precision
                precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
            for _ in run.epochs(2):
                for (inputs,) in loader:
                    for net in nets:
                        run.backward(net(inputs).sum())
                    for optimizer in optimizers:
                        run.step(optimizer)
                    run.backward(nets[0](inputs).sum())
                    run.step(optimizers[0])
            return torch.cat([weights(net) for net in nets])

    assert torch.equal(train(tmp_path / "scaled", scaled=True), train(tmp_path / "plain", scaled=False))
