"""What DistributedDataParallel costs and gives: two ranks against one process, the same global batch.

    python -m benchmarks.ddp_scaling [--models small,power,resnet18] [--rounds 5] [--out NAME]
    python -m benchmarks.ddp_scaling --models small:64,small:256,small:1024

On the CPU: two ranks of one thread against one process of two threads, and against two independent processes of one
thread with half the batch each, whose images per second add up. On GPUs (--device cuda): weak scaling, the same batch
per GPU on 1, 2, 4 ... of them; one GPU is the step without the wrapper. Each case is a start of `launch.py` with the
trainer's own step on synthetic images; the clock runs over the steps behind a warm-up, when the heap has grown. Rounds
that other processes disturbed are left out; what counts is the ratio within a round. NAME:N is a network at the global
batch N; without N it is at one that suits it. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.turns import Turns, take_turns

LIMIT_S = 600
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


def measure(model: Model, rounds: int, folder: Path) -> Turns:
    """Images per second by case, on the CPU."""
    start = Starter(model, folder)
    cases: dict[str, Callable[[], float]] = {
        ONE: lambda: start.together(1, model.batch),
        TWO: lambda: start.together(2, model.batch),
        APART: lambda: start.apart(2, model.batch // 2),
        AGAIN: lambda: start.together(1, model.batch),
    }
    return take_turns(cases, rounds, unit=f"images/s, {model.name} at {model.batch}")


class Starter:
    """Starts processes that measure their own steps."""

    def __init__(self, model: Model, folder: Path, device: str = "cpu") -> None:
        self._model, self._folder, self._device = model, folder, device
        self._numbers = itertools.count()

    def together(self, ranks: int, batch: int) -> float:
        """Images per second of one run on `ranks` ranks at the global batch `batch`."""
        process, out = self._start(ranks, batch)
        return _rate(process, out)

    def apart(self, count: int, batch: int) -> float:
        """The sum over `count` processes of one thread that know nothing of each other."""
        started = [self._start(1, batch, threads=1) for _ in range(count)]
        return sum(_rate(process, out) for process, out in started)

    def _start(self, ranks: int, batch: int, threads: int | None = None) -> tuple[subprocess.Popen[str], Path]:
        out = self._folder / f"rate-{next(self._numbers)}.json"
        where = ["--cpu"] if self._device == "cpu" else ["--auto"]
        worker = ["--worker", str(out), "--device", self._device, "--model", self._model.name, "--batch", str(batch)]
        command = [sys.executable, str(ROOT / "launch.py"), *where, "--nproc", str(ranks)]
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        env |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        program = ["-m", "benchmarks.ddp_scaling", *worker, f"--options={self._model.options}"]
        return subprocess.Popen(
            [*command, *program], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ), out


def _rate(process: subprocess.Popen[str], out: Path) -> float:
    _, errors = process.communicate(timeout=LIMIT_S)
    if process.returncode != 0:
        raise SystemExit(f"error: a measured run ended with status {process.returncode}: {errors[-800:]}")
    return float(json.loads(out.read_text())["images_per_second"])


def work(model: str, options: str, batch: int, device: str, out: Path) -> None:
    """What each rank does: the trainer's steps on synthetic images; rank 0 writes the rate."""
    import torch

    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_arithmetic
    from ddp_train.config.parse import parse
    from ddp_train.distributed import process_group

    ranks = process_group.Ranks.from_environment()
    where = process_group.choose_device(device, ranks)
    samples = batch * (WARM_UP + STEPS)
    words = f"--dataset synthetic --synthetic-samples {samples} --batch-size {batch} --model {model} --epochs 1 "
    words += f"--no-tensorboard --no-examine --optimizer sgd --lr 0.001 --out-dir {out.with_suffix('')} {options}"
    wanted = parse(words.split())
    set_arithmetic(wanted, ranks, where)
    process_group.start(ranks, where, timeout_s=300)
    trainer = build(wanted, ranks, where).trainer
    trainer.parts.model.train()
    windows = trainer.parts.pipeline.train(0)
    for window in itertools.islice(windows, WARM_UP):
        trainer.train_step(window)
    _grow_heap(where)
    _wait(where)
    started = time.perf_counter()
    for window in windows:
        trainer.train_step(window)
    _wait(where)
    rate = STEPS * batch / (time.perf_counter() - started)
    if ranks.is_first:
        out.write_text(json.dumps({"images_per_second": rate, "threads": torch.get_num_threads()}))
    process_group.leave(0)


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


def _on_gpus(model: Model, rounds: int, folder: Path, gpus: int) -> Turns:
    """Weak scaling: the same batch per GPU."""
    start = Starter(model, folder, "cuda")
    counts = [n for n in (1, 2, 4, 8, 16) if n <= gpus]
    cases = {f"{n} GPUs": partial(start.together, n, n * model.batch) for n in counts}
    return take_turns(cases, rounds, unit=f"images/s, {model.name}")


def _on_cpu_summary(turns: Turns) -> dict[str, object]:
    if not turns.enough:
        return {}
    return {
        "two_ranks_over_one_process": turns.ratio(TWO, ONE).rounded(3),
        "two_ranks_over_two_apart": turns.ratio(TWO, APART).rounded(3),
        "noise": turns.ratio(AGAIN, ONE).rounded(3),
    }


def _rows(name: str, turns: Turns) -> list[list[str]]:
    if not turns.enough:
        return [[name, case, "not measured", ""] for case in (turns.rounds[0] if turns.rounds else {})]
    base = next(iter(turns.rounds[0]))
    return [[name, case, f"{turns.values(case):,.0f}", f"{turns.ratio(case, base):.2f}"] for case in turns.rounds[0]]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ddp_scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="small,power,resnet18", help=f"of {', '.join(CPU_MODELS)}, or NAME:BATCH")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="undisturbed rounds (default 5)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    for name in ("--worker", "--model", "--batch", "--options"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        options = arguments.options or ""
        work(arguments.model, options, int(arguments.batch), arguments.device, Path(arguments.worker))
        return 0
    try:
        models = {name.strip(): find_model(name.strip()) for name in arguments.models.split(",")}
    except ValueError as error:
        parser.error(str(error))
    return _compare(models, arguments)


def _compare(models: Mapping[str, Model], arguments: argparse.Namespace) -> int:
    machine = describe_machine()
    gpus = len(machine["gpus"]) if isinstance(machine["gpus"], list) else 0
    found: dict[str, object] = {}
    rows: list[list[str]] = []
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            if arguments.device == "cuda":
                turns = _on_gpus(model, arguments.rounds, Path(folder), gpus)
            else:
                turns = measure(model, arguments.rounds, Path(folder))
        cpu = _on_cpu_summary(turns) if arguments.device == "cpu" else {}
        rates = [{case: round(rate) for case, rate in rates.items()} for rates in turns.rounds]
        found[name] = {"global_batch": model.batch, **turns.account(), **cpu, "rounds": rates}
        rows += _rows(name, turns)
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.ddp_scaling --models {','.join(models)} --rounds {arguments.rounds}"
        + (" --device cuda" if arguments.device == "cuda" else ""),
        "machine": machine,
        "models": found,
        "table": {"columns": ["model", "case", "images/s, median (quartiles)", "ratio to the first"], "rows": rows},
    }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
