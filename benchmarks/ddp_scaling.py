"""What DistributedDataParallel costs and gives: two ranks against one process, the same global batch.

    python -m benchmarks.ddp_scaling [--models small,power,resnet18] [--rounds 5] [--out NAME]
    python -m benchmarks.ddp_scaling --models small:64,small:256,small:1024

On the CPU: two ranks of one thread against one process of two threads, and against two independent processes of one
thread with half the batch each, whose images per second add up. On GPUs (--device cuda): weak scaling, the same batch
per GPU on 1, 2, 4 ... of them; one GPU is the step without the wrapper. Each case is a start of `launch.py` with the
trainer's own step on synthetic images; the clock runs over the steps after a warm-up, when the heap has grown. Rounds
that other processes disturbed are left out; what counts is the ratio within a round. NAME:N is a network at the global
batch N; without N it is at one that suits it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.harness import DEVICE, Figures, Measurement, models, rounds
from benchmarks.machine import describe_machine
from benchmarks.programs import LAUNCH, Worker
from benchmarks.turns import Turns, take_turns
from ddp_core.errors import UserError

WARM_UP, STEPS = 12, 24
RESERVE = 256 << 20
"""Bytes."""


@dataclass(frozen=True)
class Model:
    """A network and the global batch that it is measured at."""

    name: str
    batch: int
    options: str = ""


CPU_MODELS = {
    "small": Model("small", 512),
    "power": Model("power", 128),
    "wideresnet": Model("wideresnet", 64, "--width-mult 1"),
    "resnet18": Model("resnet18", 64),
    "speedrun": Model("speedrun", 512),
}
ONE, TWO, APART, AGAIN = "1 process, 2 threads", "2 ranks, 1 thread", "2 processes apart", "1 process, 2 threads, again"


def find_model(text: str) -> Model:
    """The network of NAME or NAME:BATCH. Errors: ValueError."""
    name, colon, batch = text.partition(":")
    if name not in CPU_MODELS:
        raise ValueError(f"--models {text}: known are {', '.join(CPU_MODELS)}, each also as NAME:BATCH")
    if colon and not (batch.isdecimal() and int(batch) > 1):
        raise ValueError(f"--models {text}: {batch!r} is no global batch of at least 2 images")
    return replace(CPU_MODELS[name], batch=int(batch)) if colon else CPU_MODELS[name]


def measure(model: Model, count: int) -> Turns:
    """Images per second by case, on the CPU."""
    start = Starter(model)
    cases: dict[str, Callable[[], float]] = {
        ONE: lambda: start.together(1, model.batch),
        TWO: lambda: start.together(2, model.batch),
        APART: lambda: start.apart(2, model.batch // 2),
        AGAIN: lambda: start.together(1, model.batch),
    }
    return take_turns(cases, count, unit=f"images/s, {model.name} at {model.batch}")


class Starter:
    """Starts processes that measure their own steps."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self._model, self._device = model, device

    def together(self, ranks: int, batch: int) -> float:
        """Images per second of one run on `ranks` ranks at the global batch `batch`."""
        return float(self._start(ranks, batch).answer())

    def apart(self, count: int, batch: int) -> float:
        """Images per second of `count` independent processes of one thread, at `batch` images a step each."""
        workers = [self._start(1, batch, threads=1) for _ in range(count)]
        return sum(float(worker.answer()) for worker in workers)

    def _start(self, ranks: int, batch: int, threads: int | None = None) -> Worker:
        where = ["--cpu"] if self._device == "cpu" else ["--auto"]
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        env |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        task = {"model": self._model.name, "options": self._model.options, "batch": batch, "device": self._device}
        return Worker("ddp_scaling", task, [*LAUNCH, *where, "--nproc", str(ranks)], env)


def work(model: str, options: str, batch: int, device: str) -> float:
    """What each rank does: the trainer's steps on synthetic images. Returns images per second of all ranks."""
    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_arithmetic
    from ddp_train.config.parse import parse
    from ddp_train.distributed import process_group

    ranks = process_group.Ranks.from_environment()
    where = process_group.choose_device(device, ranks)
    samples = batch * (WARM_UP + STEPS)
    folder = tempfile.TemporaryDirectory()
    words = f"--dataset synthetic --synthetic-samples {samples} --batch-size {batch} --model {model} --epochs 1 "
    words += f"--no-tensorboard --no-examine --optimizer sgd --lr 0.001 --out-dir {folder.name}/run {options}"
    wanted = parse(words.split())
    set_arithmetic(wanted, ranks, where)
    process_group.start(ranks, where, timeout_s=300)
    trainer = build(wanted, ranks, where).trainer
    trainer.components.model.train()
    windows = trainer.components.pipeline.train(0)
    for window in itertools.islice(windows, WARM_UP):
        trainer.train_step(window)
    _grow_heap(where)
    _wait(where)
    started = time.perf_counter()
    for window in windows:
        trainer.train_step(window)
    _wait(where)
    return STEPS * batch / (time.perf_counter() - started)


def _grow_heap(device: object) -> None:
    """Have pages enough: in its first hundred steps a process asks for some more now and then.

    A machine that must first find them, a virtual one above all, is late by tens of milliseconds then.
    """
    import torch

    if str(device) == "cpu":
        torch.zeros(RESERVE // 4)


def _wait(device: object) -> None:
    """Until the device has finished and every rank has come here."""
    import torch

    from ddp_train.distributed.process_group import wait_for_all

    if str(device) != "cpu":
        torch.cuda.synchronize(device)  # type: ignore[arg-type]
    wait_for_all()


def _on_gpus(model: Model, count: int) -> Turns:
    """Weak scaling: the same batch per GPU."""
    start = Starter(model, "cuda")
    counts = [n for n in (1, 2, 4, 8, 16) if n <= len(describe_machine()["gpus"])]
    cases = {f"{n} GPUs": partial(start.together, n, n * model.batch) for n in counts}
    return take_turns(cases, count, unit=f"images/s, {model.name}")


def _on_cpu_summary(turns: Turns) -> Figures:
    if not turns.enough:
        return {}
    return {
        "two_ranks_over_one_process": turns.ratio(TWO, ONE).rounded(3),
        "two_ranks_over_two_apart": turns.ratio(TWO, APART).rounded(3),
        "noise": turns.ratio(AGAIN, ONE).rounded(3),
    }


def _rows(name: str, turns: Turns) -> list[list[str]]:
    if not turns.enough:
        return [[name, case, "not measured", ""] for case in turns.cases]
    return [[name, *row] for row in turns.rows(turns.cases[0], ",.0f", turns.ratio, ".2f")]


def compare(arguments: argparse.Namespace) -> Figures:
    """All networks, on the CPU or on GPUs. Errors: UserError."""
    try:
        chosen = {name.strip(): find_model(name.strip()) for name in arguments.models.split(",")}
    except ValueError as error:
        raise UserError(str(error)) from None
    found, rows = {}, []
    for name, model in chosen.items():
        if arguments.device == "cuda":
            turns, summary = _on_gpus(model, arguments.rounds), {}
        else:
            turns = measure(model, arguments.rounds)
            summary = _on_cpu_summary(turns)
        found[name] = {"global_batch": model.batch, **turns.account(), **summary, "rounds": turns.rounded()}
        rows += _rows(name, turns)
    columns = ["model", "case", "images/s, median (quartiles)", "ratio to the first"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}


OPTIONS = (models("small,power,resnet18", [*CPU_MODELS, "NAME:BATCH"]), DEVICE, rounds(5))
main = Measurement("ddp_scaling", __doc__, compare, OPTIONS, worker=work)

if __name__ == "__main__":
    sys.exit(main())
