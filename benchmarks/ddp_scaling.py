"""Two ranks compared with one process of two threads, and with two independent processes.

On the CPU: two ranks of one thread, one process of two threads, and two independent processes of one thread with half
the batch each, whose images per second add up. On GPUs (--device cuda): weak scaling, the same batch per GPU on 1, 2, 4
... of them; one GPU is the step without the wrapper. Each case is a start of `launch.py` with the trainer's own step on
synthetic images; the clock runs over the steps after a warm-up, when the heap has grown. NAME:N is a network at the
global batch N; without N it is at one that suits it.

Images per second at the same global batch (`small:64`: a global batch of 64). `2 processes apart` train independently:
an upper bound.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.harness import DEVICE, Arguments, Figures, measurement, rounds, text
from benchmarks.machine import describe_machine
from benchmarks.programs import LAUNCH, start_worker, trainer_environment
from benchmarks.turns import take_turns
from ddp_core.errors import UserError

WARM_UP, STEPS = 12, 24
RESERVE = 256 << 20
"""Bytes that are added to the heap before the clock starts."""


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
KNOWN = f"{', '.join(CPU_MODELS)}, each also as NAME:BATCH"
ONE, TWO, APART, AGAIN = "1 process, 2 threads", "2 ranks, 1 thread", "2 processes apart", "1 process, 2 threads, again"


def find_model(text: str) -> Model:
    """The network of NAME or NAME:BATCH. Errors: ValueError."""
    name, colon, batch = text.partition(":")
    if name not in CPU_MODELS:
        raise ValueError(f"--models {text}: known are {KNOWN}")
    if colon and not (batch.isdecimal() and int(batch) > 1):
        raise ValueError(f"--models {text}: {batch!r} is no global batch of at least 2 images")
    return replace(CPU_MODELS[name], batch=int(batch)) if colon else CPU_MODELS[name]


def find_models(text: str) -> dict[str, Model]:
    """The networks of a list, by the names in it. Errors: UserError."""
    try:
        return {name.strip(): find_model(name.strip()) for name in text.split(",")}
    except ValueError as error:
        raise UserError(str(error)) from None


def together(ranks: int, model: Model, device: str = "cpu") -> float:
    """Images per second of one run on `ranks` ranks."""
    return float(_start(ranks, model, device)())


def _apart(count: int, model: Model) -> float:
    """Images per second of `count` independent processes of one thread."""
    answers = [_start(1, model, "cpu", threads=1) for _ in range(count)]
    return sum(float(answer()) for answer in answers)


def _start(ranks: int, model: Model, device: str, threads: int | None = None) -> Callable[[], Any]:
    """Start a run of the trainer's own steps; returns a function that waits for its images per second."""
    where = ["--cpu"] if device == "cpu" else ["--auto"]
    task = {"model": model.name, "options": model.options, "batch": model.batch, "device": device}
    return start_worker(
        "ddp_scaling", task, [*LAUNCH, *where, "--nproc", str(ranks)], trainer_environment(device, threads)
    )


def work(model: str, options: str, batch: int, device: str) -> float:
    """The work of each rank: the trainer's steps on synthetic images. Returns images per second of all ranks."""
    import torch

    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_arithmetic
    from ddp_train.config.parse import parse
    from ddp_train.distributed import process_group

    ranks = process_group.Ranks.from_environment()
    where = process_group.choose_device(device, ranks)
    folder = tempfile.TemporaryDirectory()
    words = f"--dataset synthetic --synthetic-samples {batch * (WARM_UP + STEPS)} --batch-size {batch} --epochs 1 "
    words += f"--model {model} --no-tensorboard --no-examine --optimizer sgd --lr 0.001 --out-dir {folder.name}/run "
    wanted = parse((words + options).split())
    set_arithmetic(wanted, ranks, where)
    process_group.start(ranks, where, timeout_s=300)
    trainer = build(wanted, ranks, where).trainer
    trainer.components.model.train()
    windows = trainer.components.pipeline.train(0)
    for window in itertools.islice(windows, WARM_UP):
        trainer.train_step(window)
    if device == "cpu":
        # In its first hundred steps a process still requests pages at times, which takes tens of milliseconds on a
        # machine that must find them first, such as a virtual one: request them now.
        torch.zeros(RESERVE // 4)
    torch.get_device_module(where).synchronize(where)
    process_group.wait_for_all()
    started = time.perf_counter()
    for window in windows:
        trainer.train_step(window)
    torch.get_device_module(where).synchronize(where)
    process_group.wait_for_all()
    return STEPS * batch / (time.perf_counter() - started)


def _cases(model: Model, device: str) -> dict[str, Callable[[], float]]:
    """The ways of using the devices, by name."""
    if device == "cpu":
        one = partial(together, 1, model)
        apart = partial(_apart, 2, replace(model, batch=model.batch // 2))
        return {ONE: one, TWO: partial(together, 2, model), APART: apart, AGAIN: one}
    gpus = len(describe_machine()["gpus"])
    if not gpus:
        raise UserError("--device cuda: this machine has no GPU that the driver reports")
    counts = [count for count in (1, 2, 4, 8, 16) if count <= gpus]
    return {f"{n} GPUs": partial(together, n, replace(model, batch=n * model.batch), device) for n in counts}


@measurement(text("--models", "small,power,resnet18", KNOWN), DEVICE, rounds(5), worker=work)
def main(arguments: Arguments) -> Figures:
    """Every network in every case, in turns."""
    found: Figures = {}
    rows = []
    for name, model in find_models(arguments.models).items():
        unit = f"images/s, {model.name} at {model.batch}"
        turns = take_turns(_cases(model, arguments.device), arguments.rounds, unit=unit)
        found[name] = {"global_batch": model.batch, **turns.account()}
        if turns.enough and arguments.device == "cpu":
            found[name]["two_ranks_over_one_process"] = turns.ratio(TWO, ONE).rounded(3)
            found[name]["two_ranks_over_two_apart"] = turns.ratio(TWO, APART).rounded(3)
            found[name]["noise"] = turns.ratio(AGAIN, ONE).rounded(3)
        found[name]["rounds"] = turns.rounded()
        if turns.enough:
            rows += [[name, *row] for row in turns.rows(turns.cases[0], ",.0f", turns.ratio, ".2f")]
        else:
            rows += [[name, case, "not measured", ""] for case in turns.cases]
    columns = ["model", "case", "images/s, median (quartiles)", "ratio to the first"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}
