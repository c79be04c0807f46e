"""Loops of a user's own, for tests: `loops.py CASES.json RESULT.pt` runs each case on the ranks of the environment.

A case: {"name", "loop", "out_dir"} and what the loop takes. "die": the step in which this process kills itself.
Rank 0 writes {name: what the loop returns}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ddp_train import Run
from ddp_train.distributed import process_group

SAMPLES, FEATURES, CLASSES = 53, 6, 3
OPTIONS = ("accumulate", "num_workers", "drop_last", "multiprocessing_context")


def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(SAMPLES, FEATURES, generator=generator), torch.randint(
        0, CLASSES, (SAMPLES,), generator=generator
    )


class Listed(Dataset[Any]):
    """Samples as a dict, with noise from all three generators, as augmentation has it."""

    def __init__(self, noise: bool) -> None:
        self.inputs, self.labels = tensors()
        self.noise, self.read = noise, list[int]()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        inputs = self.inputs[index]
        if self.noise:
            inputs = inputs + torch.randn(FEATURES) + random.random() + float(np.random.rand())
        return {"inputs": inputs, "label": int(self.labels[index]), "index": index, "name": f"sample {index}"}


class Stream(IterableDataset[Any]):
    """The same samples in their order, as a stream that knows its place."""

    def __init__(self) -> None:
        self.inputs, self.labels = tensors()
        self.at = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.at < SAMPLES:
            self.at += 1
            yield {"inputs": self.inputs[self.at - 1], "label": int(self.labels[self.at - 1]), "index": self.at - 1}
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Net(nn.Module):
    """Reshapes by -1, which a batch without samples does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs.view(inputs.shape[0], -1))))


def weights(*networks: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for network in networks for p in network.parameters()])


def die_at(run: Run, case: dict[str, Any]) -> None:
    if run.step_number + 1 == case.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "die_after_s" in case:  # from the first step of this process on
        threading.Timer(case.pop("die_after_s"), os.kill, (os.getpid(), signal.SIGKILL)).start()


def plain(case: dict[str, Any]) -> dict[str, Any]:
    """Classification: every kind of loader, of loss, and what is kept."""
    with Run(case["out_dir"], seed=5, save_every=case.get("save_every", "5m")) as run:
        net = run.model(Net())
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7)
        data = {"listed": Listed(False), "noise": Listed(True), "stream": Stream()}[case.get("data", "listed")]
        options = {
            name: case[name]
            for name in ("accumulate", "num_workers", "drop_last", "multiprocessing_context")
            if name in case
        }
        loader = run.loader(data, batch_size=case.get("batch", 9), **options)
        kept = run.keep(net=net, optimizer=optimizer, schedule=schedule, seen=[], marks=torch.zeros(2))
        for epoch in run.epochs(case.get("epochs", 4)):
            for batch in loader:
                die_at(run, case)
                loss = F.cross_entropy(net(batch["inputs"]), batch["label"], reduction=case.get("loss", "sum"))
                run.backward(loss, mean=case.get("loss") == "mean")
                if run.step(optimizer):
                    schedule.step()
                kept.marks[0] += 1
                kept.seen = [*kept.seen, epoch]
            run.log(epoch_length=len(kept.seen))
            reads = run.gather(data.read) if isinstance(data, Listed) else []
        return {"weights": weights(net), "seen": kept.seen, "marks": kept.marks, "reads": sorted(chain(*reads))}


def gan(case: dict[str, Any]) -> dict[str, Any]:
    """Two networks, two optimizers, three losses a step; the noise is drawn with the sample."""
    with Run(case["out_dir"], seed=7, save_every=case.get("save_every", "5m")) as run:
        maker, judge = run.model(nn.Linear(FEATURES, FEATURES)), run.model(nn.Linear(FEATURES, 1))
        of_maker, of_judge = torch.optim.SGD(maker.parameters(), 0.1), torch.optim.Adam(judge.parameters(), 0.01)
        loader = run.loader(Pairs(), batch_size=case.get("batch", 9))
        run.keep(maker=maker, judge=judge, of_maker=of_maker, of_judge=of_judge)
        for _ in run.epochs(case.get("epochs", 4)):
            for real, noise in loader:
                die_at(run, case)
                fake = maker(noise)
                run.backward(F.softplus(-judge(real)).sum())
                run.backward(F.softplus(judge(fake.detach())).sum())
                run.step(of_judge)
                run.backward(F.softplus(-judge(fake)).sum())
                run.step(of_maker)
        return {"weights": weights(maker, judge)}


def zipped(case: dict[str, Any]) -> dict[str, Any]:
    """Two loaders in step whose batches have other sizes, an evaluation of fewer samples than ranks within, an order of
    the user's own, and dropout that an empty batch must not turn off for the other one."""
    with Run(case["out_dir"], seed=9, save_every=case.get("save_every", "5m")) as run:
        net = run.model(Net())
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        inputs, labels = tensors()
        order = run.loader(TensorDataset(inputs, labels), 8, sampler=lambda epoch: np.roll(np.arange(SAMPLES), epoch))
        others, held_out = (
            run.loader(TensorDataset(inputs[:20], labels[:20]), 3),
            run.loader(range(2), 2, shuffle=False),
        )
        run.keep(net=net, optimizer=optimizer)
        for _ in run.epochs(case.get("epochs", 4)):
            for (first, of_first), (second, of_second) in zip(order, others, strict=True):
                die_at(run, case)
                run.backward(F.cross_entropy(net(first), of_first, reduction="sum"), of=order)
                run.backward(net(second).square().sum() + of_second.sum(), of=others)
                run.step(optimizer)
                assert run.sum(sum(int(batch.sum()) for batch in held_out)) == 1
        return {"weights": weights(net)}


def late(case: dict[str, Any]) -> dict[str, Any]:
    """More backward passes than forward passes: two losses of one output, a penalty on a part of the weights, and two
    forward passes before two backward passes."""
    with Run(case["out_dir"], seed=4) as run:
        net, judge = run.model(Net(), **case.get("options", {})), run.model(nn.Linear(CLASSES, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
        of_judge = torch.optim.SGD(judge.parameters(), 0.2)
        loader = run.loader(TensorDataset(*tensors()), 9, accumulate=case.get("accumulate", 1))
        for _ in run.epochs(4):
            for inputs, labels in loader:
                scores = net(inputs)
                real, fake = judge(scores.detach()), judge(scores.detach() * 0.5 + 1.0)
                run.backward(F.softplus(-real).sum())
                run.backward(F.softplus(fake).sum())
                run.step(of_judge)
                run.backward(F.cross_entropy(scores, labels, reduction="sum"), retain_graph=True)
                run.backward(scores.square().sum())
                run.backward(0.01 * net.second.weight.square().sum(), mean=True)
                run.step(optimizer)
        return {"weights": weights(net, judge)}


class Pairs(Dataset[Any]):
    """A sample and noise of its own, from torch's generator."""

    def __init__(self) -> None:
        self.inputs, _ = tensors()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], torch.randn(FEATURES)


def table(case: dict[str, Any]) -> dict[str, Any]:
    """A TensorDataset, and a layer that the rank with an empty batch has to leave alone: batch norm."""
    with Run(case["out_dir"], seed=1) as run:
        net = run.model(nn.Sequential(nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(6, CLASSES)))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = run.loader(TensorDataset(*tensors()), batch_size=17)
        empties = 0
        for _ in run.epochs(2):
            hits = count = 0
            for inputs, labels in loader:
                output = net(inputs)
                empties += run.samples == 0
                run.backward(F.cross_entropy(output, labels, reduction="sum"))
                run.step(optimizer)
                hits, count = hits + int((output.argmax(1) == labels).sum()), count + len(labels)
            run.log(accuracy=run.mean(hits, count), samples=run.sum(count))
            run.best(run.mean(hits, count), net)
        buffers = run.gather(torch.cat([b.flatten().double() for b in net.buffers()])[None])
        return {"buffers": buffers, "empties": run.sum(empties)}


def ends(case: dict[str, Any]) -> dict[str, Any]:
    """On one rank something happens in the fourth step."""
    with Run(case["out_dir"], seed=1, step_timeout=case.get("step_timeout")) as run:
        net = run.model(nn.Linear(FEATURES, CLASSES))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = run.loader(TensorDataset(*tensors()), batch_size=8)
        run.keep(net=net, optimizer=optimizer)
        for _ in run.epochs(3):
            for inputs, labels in loader:
                happens = case.get("happens") if run.step_number == 3 and run.rank == case["rank"] else None
                if happens == "signal":
                    os.kill(os.getpid(), signal.SIGTERM)
                if happens == "hang":
                    time.sleep(600)
                if happens == "memory" and run.samples > 2:
                    raise MemoryError
                if happens == "error":
                    raise ValueError("of the user's own")
                loss = F.cross_entropy(net(inputs), labels, reduction="sum")
                run.backward(loss * float("nan") if happens == "nan" else loss)
                run.step(optimizer)
        return {"weights": weights(net)}


def used(case: dict[str, Any]) -> dict[str, Any]:
    """What run.use() gives, one after another in a case of its own."""
    with Run(case["out_dir"], seed=3, save_every=1) as run:
        run.use(**case["use"])
        net = run.model(Net())
        optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
        loader = run.loader(TensorDataset(*tensors()), batch_size=9)
        run.keep(net=net, optimizer=optimizer)
        for _ in run.epochs(2):
            for inputs, labels in loader:
                die_at(run, case)

                def loss(inputs: Tensor = inputs, labels: Tensor = labels) -> None:
                    with run.autocast():
                        scores = net(inputs)
                    run.backward(F.cross_entropy(scores.float(), labels, reduction="sum"))

                if "sam" in case["use"]:
                    run.step(optimizer, loss)
                else:
                    loss()
                    run.step(optimizer)
        averaged = run.averaged(net) if "ema" in case["use"] else net
        return {"weights": weights(net), "averaged": weights(averaged)}


class Text(NamedTuple):
    """A padded batch. ids: int64 [samples, letters], 0 is padding; lengths: [samples]."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor


def padded(samples: list[tuple[Tensor, int]]) -> Text:
    texts, labels = zip(*samples, strict=True)
    return Text(pad_sequence(texts, batch_first=True), torch.tensor([*map(len, texts)]), torch.tensor(labels))


class Mean(nn.Module):
    """The mean over the letters that are there: 0 / 0 for a text of padding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.head = nn.Embedding(9, 4), nn.Linear(4, CLASSES)

    def forward(self, text: Text) -> Tensor:
        there = (text.ids != 0).float()[..., None]
        return self.head((self.letters(text.ids) * there).sum(1) / there.sum(1))


class Packed(nn.Module):
    """Takes no text without letters, and has a second output in training."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.rnn, self.head = nn.Embedding(9, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, text: Text) -> Any:
        letters = self.letters(text.ids)
        last = self.rnn(pack_padded_sequence(letters, text.lengths, batch_first=True, enforce_sorted=False))[1][0][-1]
        return (self.head(last), last) if self.training else self.head(last)


def texts(case: dict[str, Any]) -> dict[str, Any]:
    """Texts of different lengths, the last one alone in its batch."""
    with Run(case["out_dir"], seed=6) as run:
        mean, packed = run.model(Mean()), run.model(Packed())
        optimizer = torch.optim.SGD([*mean.parameters(), *packed.parameters()], 0.1)
        letters = torch.randint(1, 9, (SAMPLES, 5), generator=torch.Generator().manual_seed(1))
        data = [(letters[index, : 1 + index % 5], index % CLASSES) for index in range(SAMPLES)]
        loader = run.loader(data, 4, collate_fn=padded)
        for _ in run.epochs(2):
            for text in loader:
                scores, last = packed(text)
                run.backward(F.cross_entropy(scores, text.labels, reduction="sum") + last.square().sum())
                run.backward(F.cross_entropy(mean(text), text.labels, reduction="sum"))
                run.step(optimizer)
        return {"weights": weights(mean, packed)}


def thawed(case: dict[str, Any]) -> dict[str, Any]:
    """Parameters that are frozen at first, a layer and a whole network; names and a copy are those of one rank."""
    with Run(case["out_dir"], seed=8) as run:
        net, other = Net(), Net()
        frozen = [net.first, other]
        for module in frozen:
            module.requires_grad_(False)
        net, other = run.model(net), run.model(other)
        assert [name for name, _ in net.named_parameters()] == [*net.state_dict()]
        average = torch.optim.swa_utils.AveragedModel(net)
        optimizer = torch.optim.SGD([*net.parameters(), *other.parameters()], 0.2, momentum=0.9)
        loader = run.loader(TensorDataset(*tensors()), 9, accumulate=2)
        for epoch in run.epochs(3):
            for module in frozen:
                module.requires_grad_(epoch > 0)
            for inputs, labels in loader:
                run.backward(F.cross_entropy(net(inputs) + other(inputs), labels, reduction="sum"))
                run.step(optimizer)
            average.update_parameters(net)
        return {"weights": weights(net, other, average)}


LOOPS = {
    "used": used,
    "plain": plain,
    "gan": gan,
    "zipped": zipped,
    "late": late,
    "table": table,
    "texts": texts,
    "thawed": thawed,
    "ends": ends,
}


def main(cases: str, result: str) -> None:
    torch.set_num_threads(1)
    multiprocessing.current_process()._config["daemon"] = False  # the tests' ranks are; they may have no workers then
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, torch.device("cpu"), timeout_s=120)  # a group of the user's own, which a Run takes
    try:
        found = {case["name"]: LOOPS[case["loop"]](case) for case in json.loads(Path(cases).read_text())}
    except SystemExit as error:
        print(f"status {error.code}", flush=True)
        raise
    if ranks.is_first:
        torch.save(found, result)
    process_group.leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
