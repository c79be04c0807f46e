"""A user's mistake in a loop of their own: one line that names what is wrong and where, and status 2."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections import Counter, UserDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import IterableDataset, SequentialSampler, TensorDataset

from ddp_core.errors import UserError
from ddp_train import Run
from ddp_train.distributed.process_group import Ranks
from ddp_train.library.loader import to_device
from ddp_train.library.model import _made_up, _same, join
from ddp_train.library.reading import CannotBeEmpty, emptied


class Endless(IterableDataset[int]):
    """Nobody can find a place in it again."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


class Stateless:
    """Neither state_dict nor load_state_dict."""


def data(samples: int = 10) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 3), torch.randn(samples))


def step_outside(run: Run) -> None:
    run.step(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))


def stranger(run: Run) -> None:
    net = run.model(nn.Linear(3, 1))
    loader = run.loader(data(), 5)
    for _ in run.epochs(1):
        for inputs, _ in loader:
            run.backward(net(inputs).sum())
            run.step(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))


def not_one_number(run: Run) -> None:
    net = run.model(nn.Linear(3, 1))
    loader = run.loader(data(), 5)
    for _ in run.epochs(1):
        for inputs, _ in loader:
            run.backward(net(inputs))


def best_within(run: Run) -> None:
    net, loader = run.model(nn.Linear(3, 1)), run.loader(data(), 5)
    for _ in run.epochs(1):
        for _ in loader:
            run.best(1.0, net)


def two_sizes(run: Run) -> None:
    net = run.model(nn.Linear(3, 1))
    one, other = run.loader(data(), 5), run.loader(data(), 2)
    for _ in run.epochs(1):
        for (inputs, _), _ in zip(one, other, strict=False):
            run.backward(net(inputs).sum())


def loop_in_loop(run: Run) -> None:
    loader = run.loader(data(), 5)
    for _ in run.epochs(1):
        for _ in loader:
            list(loader)


def endless_loop(run: Run) -> None:
    loader, batches = run.loader(data(), 5), None
    for _ in run.epochs(2):
        batches = batches or iter(loader)
        next(batches)


MISTAKES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "an object without state": (lambda run: run.keep(thing=Stateless()), "run.keep(thing=...): a "),
    "a number of NumPy's in a list": (
        lambda run: setattr(run.keep(scores=[]), "scores", [np.float64(1)]),
        "kept.scores = ...: kept['scores'][0] is a numpy.float64",
    ),
    "a Counter": (lambda run: setattr(run.keep(seen={}), "seen", Counter()), "kept.seen = ...: kept['seen'] is a "),
    "a list of networks": (
        lambda run: run.keep(nets=[nn.Linear(1, 1)]),
        "run.keep(nets=...): run.keep['nets'][0] is a ",
    ),
    "a stream without a place": (lambda run: run.loader(Endless(), 4), "without state_dict and load_state_dict"),
    "no dataset": (lambda run: run.loader(5, 4), "run.loader(int): no dataset"),
    "an empty dataset": (lambda run: run.loader([], 4), "the dataset is empty"),
    "a batch of none": (lambda run: run.loader(data(), 0), "run.loader(batch_size=0)"),
    "more micro-batches than samples": (lambda run: run.loader(data(), 2, accumulate=3), "accumulate=3) is larger"),
    "nothing but a partial batch": (lambda run: run.loader(data(3), 4, drop_last=True), "drop_last leaves no step"),
    "an order of other samples": (lambda run: run.loader(data(), 4, sampler=lambda epoch: [0, 99]), "from 0 to 9"),
    "a sampler of torch's": (
        lambda run: run.loader(data(), 4, sampler=SequentialSampler(data())),
        "a SequentialSampler is no function: it takes one of the epoch",
    ),
    "an order of truth values": (
        lambda run: run.loader(data(), 4, sampler=lambda epoch: torch.ones(10, dtype=torch.bool)),
        "returned values of torch.bool, shape [10]",
    ),
    "an order of texts": (lambda run: run.loader(data(), 4, sampler=lambda epoch: ["a"]), "and returned a list ("),
    "an order of nothing": (
        lambda run: run.loader(data(), 4, sampler=lambda epoch: []),
        "returned none for epoch 0",
    ),
    "an option that DataLoader has not": (lambda run: run.loader(data(), 4, num_worker=2), "did you mean num_workers?"),
    "an option with a value that DataLoader refuses": (
        lambda run: run.loader(data(), 4, num_workers=1, prefetch_factor=-1),
        "prefetch_factor",
    ),
    "batches in any order": (
        lambda run: run.loader(data(), 4, num_workers=2, in_order=False),
        "run.loader(in_order=False): batches are matched with their samples by their order",
    ),
    "the best within the loop": (best_within, "run.best() within a loop over a run.loader(...)"),
    "two batches of different sizes": (two_sizes, "run.backward(loss, of=loader)"),
    "a loop over a loader within one over the same": (
        loop_in_loop,
        "make a loader for each loop that runs beside another",
    ),
    "a loop that goes over several epochs": (endless_loop, "begin each loop within an epoch"),
    "a technique that is not there": (lambda run: run.use(clip_gard=1.0), "did you mean clip_grad?"),
    "a decay above 1": (lambda run: run.use(ema=2), "run.use(ema=2): it takes a decay between 0 and 1"),
    "a text as a number": (lambda run: run.log(accuracy="high"), "run.log(accuracy=...)"),
    "a column of the record's own": (lambda run: run.log(seconds=1), "run.log(seconds=...)"),
    "no network": (lambda run: run.model(3), "run.model() takes a torch.nn.Module"),
    "a step outside the loop": (step_outside, "run.step() belongs into a loop"),
    "an optimizer of another network": (stranger, "belong to no network of run.model(...)"),
    "a loss for each sample": (not_one_number, "one number, the sum over this rank's part of the batch, not [5, 1]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    make, words = MISTAKES[mistake]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, Run(tmp_path / "run", device="cpu") as run:
        make(run)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("error: ") and words in line and "test_mistakes.py:" in line
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_run_in_the_folder_is_refused_and_a_finished_one_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(epochs: int, **options: Any) -> int:
        steps = 0
        with Run(tmp_path, device="cpu", **options) as run:
            net = run.model(nn.Linear(3, 1))
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            loader = run.loader(data(), 5)
            kept = run.keep(net=net, optimizer=optimizer, best=0.5)
            for _ in run.epochs(epochs):
                for inputs, _ in loader:
                    run.backward(net(inputs).sum())
                    steps += run.step(optimizer)
                kept.best += 1.0
            run.log(best=kept.best)
        return steps

    assert train(2) == 4 and train(2) == 0
    assert "is finished: epoch 2; for more" in capsys.readouterr().err
    assert train(3) == 2, "more epochs continue it"
    assert train(1, resume=None) == 2 and (tmp_path / "earlier-1" / "done.json").is_file()


def test_the_batch_of_no_samples_has_the_form_of_the_others() -> None:
    one = {"x": torch.ones(1, 4), "n": 1, "names": ["a"], "pair": (np.ones((3, 1)), True), "constant": torch.ones(2)}
    two = {
        "x": torch.ones(2, 4),
        "n": 2,
        "names": ["a", "a"],
        "pair": (np.ones((3, 2)), True),
        "constant": one["constant"],
    }
    found = emptied(one, two)
    assert found["x"].shape == (0, 4) and found["n"] == 0 and found["names"] == []
    assert found["pair"][0].shape == (3, 0) and found["constant"].shape == (2,)
    with pytest.raises(CannotBeEmpty):
        emptied(Stateless(), Stateless())
    with pytest.raises(CannotBeEmpty):  # images of different sizes: a network of detection needs one
        emptied(([torch.ones(3, 5, 5)], [4]), ([torch.ones(3, 5, 5)] * 2, [4, 4]))
    with pytest.raises(CannotBeEmpty):  # its fields belong together
        emptied(pack_sequence([torch.ones(3, 1)]), pack_sequence([torch.ones(3, 1)] * 2))


class Encoding(UserDict[str, Any]):
    """A batch as Hugging Face's tokenizers give it: its values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Pair:
    """A batch of a class of the user's own."""

    x: torch.Tensor
    names: list[str]


def test_a_batch_stays_of_its_class() -> None:
    one, two = (Encoding(ids=torch.ones(samples, 4), names=["a"] * samples) for samples in (1, 2))
    empty = emptied(one, two)
    assert empty.ids.shape == (0, 4) and empty.names == [] and one.ids.shape == (1, 4)
    assert not _same(empty) and _made_up(empty, 2).ids.shape == (2, 4)
    moved = to_device({"batch": one, "fixed": MappingProxyType({"x": torch.ones(1)})}, torch.device("meta"))
    assert moved["batch"].ids.device.type == "meta" and one.ids.device.type == "cpu"
    assert moved["fixed"]["x"].device.type == "meta"
    pair = to_device(Pair(torch.ones(1), ["a"]), torch.device("meta"))
    assert pair.x.device.type == "meta" and pair.names == ["a"]
    counts = defaultdict(int, x=torch.ones(1))  # type: ignore[arg-type]
    assert to_device(counts, torch.device("meta"))["y"] == 0


def test_packed_sequences_keep_their_batch_sizes_on_the_cpu() -> None:
    packed = to_device(pack_sequence([torch.ones(3, 1)]), torch.device("meta"))
    assert isinstance(packed, PackedSequence) and packed.data.device.type == "meta"
    assert packed.batch_sizes.device.type == "cpu"


def test_sparse_gradients_are_trained_with_on_one_rank_and_refused_on_several(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        net = run.model(nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Flatten()))
        optimizer = torch.optim.SparseAdam(net.parameters(), 0.1)
        loader = run.loader(TensorDataset(torch.arange(4)), 2)
        before = net[0].weight.detach().clone()
        for _ in run.epochs(1):
            for (inputs,) in loader:
                run.backward(net(inputs).square().sum())
                run.step(optimizer)
    assert (net[0].weight != before).any(1).tolist() == [True] * 4 + [False]
    with pytest.raises(UserError, match=r"run.model\(\): 0 is an Embedding with sparse=True.*use sparse=False"):
        join(net, Ranks(world_size=2), torch.device("cpu"), lambda: (1, 1), {})


def test_complex_weights_are_trained(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        net = run.model(nn.Linear(3, 1, dtype=torch.cfloat))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = run.loader(TensorDataset(torch.randn(4, 3, dtype=torch.cfloat)), 2)
        before = net.weight.detach().clone()
        for _ in run.epochs(1):
            for (inputs,) in loader:
                run.backward(net(inputs).abs().sum())
                run.step(optimizer)
    assert bool((net.weight != before).all())


def test_micro_batches_after_memory_ran_out_are_not_more_than_the_samples_of_a_smaller_batch(tmp_path: Path) -> None:
    with Run(tmp_path, device="cpu") as run:
        run._halved = [4, 4, 2]
        made = [run.loader(data(), 2), run.loader(data(), 5), run.loader(data(), 5, accumulate=3)]
    assert [loader.accumulate for loader in made] == [2, 4, 3]


def test_micro_batches_whose_gradients_are_cleared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"), Run(tmp_path, device="cpu") as run:
        net = run.model(nn.Linear(3, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = run.loader(data(), 4, accumulate=2)
        for _ in run.epochs(1):
            for inputs, _ in loader:
                optimizer.zero_grad()
                run.backward(net(inputs).sum())
                run.step(optimizer)
    assert "earlier micro-batches were cleared: leave out zero_grad()" in capsys.readouterr().err


def test_a_loss_that_reaches_an_optimizer_that_waits_for_its_step_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GAN's second loss leaves a gradient in the judge; a second network without one is fine."""
    for name, accumulate, reaches, refused in (("a", 2, True, True), ("b", 1, True, False), ("c", 2, False, False)):
        with contextlib.ExitStack() as stack:
            if refused:
                stack.enter_context(pytest.raises(SystemExit, match="2"))
            run = stack.enter_context(Run(tmp_path / name, device="cpu"))
            maker, judge = run.model(nn.Linear(3, 3)), run.model(nn.Linear(3, 1))
            both = [torch.optim.SGD(net.parameters(), 0.1) for net in (judge, maker)]
            loader = run.loader(data(), 4, accumulate=accumulate)
            for _ in run.epochs(1):
                for inputs, _ in loader:
                    run.backward(judge(inputs).sum())
                    run.step(both[0])
                    made = maker(inputs)
                    run.backward((judge(made) if reaches else made).sum())
                    run.step(both[1])
    assert capsys.readouterr().err.count("as in a GAN, and the step would include that: accumulate=1") == 1
