"""One training loop written with ddp_train.Run, torch alone, accelerate and Lightning Fabric, and what becomes of it.

The programs are in benchmarks/loops: a small network on 380 samples in global batches of 37, with a checkpoint every
four steps from which they continue as their library's guide has it. Each is run whole on 1, 2 and 3 ranks, killed and
started again, stopped by SIGTERM and started again, with a NaN in one sample of rank 1, and with a rank 1 that hangs.

The overhead is that of other loops, over batches that are ready: CPU time of rank 0, all threads, in an epoch of 1,500
steps of a network that computes almost nothing, in new processes for each round. Each loop goes through its library's
own loader. torch alone is DistributedDataParallel on two ranks and the bare network on one.

Lines are those of code. CPU time a step is over torch alone. Weights are compared after the last of four epochs.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Arguments, Figures, measurement, number, rounds
from benchmarks.machine import ROOT, version
from benchmarks.programs import start_worker, torchrun
from benchmarks.turns import Turns, take_turns

STEPS, BATCH = 1500, 16
PLAIN, OURS = "torch alone", "ddp_train.Run"
PROGRAMS = {OURS: "with_run", PLAIN: "with_torch", "accelerate": "with_accelerate", "Lightning Fabric": "with_fabric"}
NEEDS = {"accelerate": "accelerate", "Lightning Fabric": "lightning"}
WHOLE, FAULT_AT = 4 * 380, 601
"""Samples of a run; the one at which it is killed or stopped: in the second epoch, between two checkpoints."""


_TITLES = {
    "2 ranks": "weights on 2 ranks, against 1",
    "3 ranks": "on 3 ranks",
    "SIGKILL": "killed and started again",
    "SIGTERM": "SIGTERM, started again",
    "NaN": "NaN on rank 1",
    "hang": "rank 1 hangs",
}


def work(loop: str, folder: str) -> float:
    """Microseconds of CPU time a step, on this rank."""
    import torch

    torch.set_num_threads(1)
    loops: dict[str, Callable[..., Iterable[Callable[[], int]]]] = {
        OURS: _run,
        PLAIN: _plain,
        "accelerate": _accelerate,
        "Lightning Fabric": _fabric,
    }
    taken = 0.0
    for epoch in loops[loop](_network(), _Ready(), folder):
        started = time.process_time()
        steps = epoch()
        taken = 1e6 * (time.process_time() - started) / steps  # that of the last epoch counts
    return taken


class _Ready:
    """Batches in memory, as a dataset."""

    def __init__(self) -> None:
        import torch

        count = STEPS * int(os.environ["WORLD_SIZE"])
        self.batches = list(zip(torch.randn(count, BATCH, 3), torch.randint(10, (count, BATCH)), strict=True))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def _first(samples: list[Any]) -> Any:
    """Collate function that returns the only sample, which is a batch already."""
    return samples[0]


def _network() -> Any:
    from torch import nn

    return nn.Linear(3, 10)


def _sgd(network: Any) -> Any:
    import torch

    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


def _run(network: Any, ready: _Ready, folder: str) -> Iterable[Callable[[], int]]:
    import torch
    from torch.nn.functional import cross_entropy

    from ddp_train import Run

    with Run(folder, device="cpu") as run:
        torch.set_num_threads(1)  # under torchrun, Run takes one thread for torchrun's default, and uses all cores
        net = run.model(network)
        optimizer = _sgd(net)
        loader = run.loader(ready, batch_size=run.world_size, collate_fn=_first)
        run.keep(net=net, optimizer=optimizer)

        def epoch() -> int:
            """One epoch; returns its number of steps."""
            for inputs, labels in loader:
                run.backward(cross_entropy(net(inputs), labels), mean=True)
                run.step(optimizer)
            return STEPS

        for _ in run.epochs(2):
            yield epoch


def _plain(network: Any, ready: Any, folder: str) -> Iterable[Callable[[], int]]:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    sampler: Any = None
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
        network, sampler = DistributedDataParallel(network), DistributedSampler(ready)
    loader = DataLoader(ready, batch_size=1, collate_fn=_first, sampler=sampler, shuffle=sampler is None)
    yield from _twice(network, _sgd(network), loader, lambda loss: loss.backward())


def _accelerate(network: Any, ready: Any, folder: str) -> Iterable[Callable[[], int]]:
    from accelerate import Accelerator  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    loader = DataLoader(ready, batch_size=1, collate_fn=_first, shuffle=True)
    network, optimizer, loader = accelerator.prepare(network, _sgd(network), loader)
    yield from _twice(network, optimizer, loader, accelerator.backward)


def _fabric(network: Any, ready: Any, folder: str) -> Iterable[Callable[[], int]]:
    from lightning.fabric import Fabric  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    ranks = int(os.environ["WORLD_SIZE"])
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()
    network, optimizer = fabric.setup(network, _sgd(network))
    loader = fabric.setup_dataloaders(DataLoader(ready, batch_size=1, collate_fn=_first, shuffle=True))
    yield from _twice(network, optimizer, loader, fabric.backward)


def _twice(network: Any, optimizer: Any, loader: Any, backward: Callable[[Any], object]) -> Iterable[Callable[[], int]]:
    """Two epochs of the loop, which is the same for all but ours."""
    from torch.nn.functional import cross_entropy

    def epoch() -> int:
        """One epoch; returns its number of steps."""
        for inputs, labels in loader:
            optimizer.zero_grad()
            backward(cross_entropy(network(inputs), labels))
            optimizer.step()
        return STEPS

    yield epoch
    yield epoch


class Program:
    """One of the programs, run on several ranks in its own folders below `folder`."""

    def __init__(self, loop: str, folder: Path, limit_s: float) -> None:
        self._loop, self._folder, self._limit_s = loop, folder / PROGRAMS[loop], limit_s

    def run(self, name: str, ranks: int = 1, fault: str = "none -1 0") -> tuple[int | None, str]:
        """Run it in the folder `name`: its exit status, None where it had to be ended, and what it printed."""
        command = [*torchrun(ranks), "-m", f"benchmarks.loops.{PROGRAMS[self._loop]}", str(self._folder / name)]
        print(f"LOOP_FAULT={shlex.quote(fault)} {shlex.join(command[2:])}", file=sys.stderr, flush=True)
        env = os.environ | {"OMP_NUM_THREADS": "1", "LOOP_FAULT": fault}
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        try:
            printed = process.communicate(timeout=self._limit_s)[0]
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
            process.kill()
            return None, process.communicate()[0]

    def weights(self, name: str) -> Any:
        """The weights at the end of a run, as one tensor; None if the run saved none."""
        import torch

        file = self._folder / name / "weights.pth"
        if not file.exists():
            return None
        state = torch.load(file, weights_only=True)  # noqa: TID251 (written by the line before)
        return torch.cat([tensor.flatten() for tensor in state.values()])

    def samples(self, name: str) -> int:
        """How many samples rank 0 has read in its latest run."""
        return int((self._folder / name / "samples-0.txt").read_text())


def outcomes(program: Program) -> dict[str, str]:
    """What happens in each case, in words."""
    program.run("1")
    found = {f"{ranks} ranks": _difference(program, f"{ranks}", ranks) for ranks in (2, 3)}
    for signal_name in ("SIGKILL", "SIGTERM"):
        program.run(signal_name, 1, f"{signal_name} 0 {FAULT_AT}")
        before = program.samples(signal_name)
        program.run(signal_name)
        again = before + program.samples(signal_name) - WHOLE
        repeated = f"{again} samples read again" if again else "no sample read again"
        found[signal_name] = f"{_compared(program, signal_name)}, {repeated}"
    _, printed = program.run("nan", 2, "nan 1 100")
    weights = program.weights("nan")
    # The status does not count: gloo sometimes aborts while a finished program destroys its process group.
    found["NaN"] = (
        f"stops{_named(printed)}" if weights is None else f"trains on; finite weights: {bool(weights.isfinite().all())}"
    )
    started = time.monotonic()
    status, printed = program.run("hang", 2, "hang 1 100")
    found["hang"] = f"stops{_named(printed)}" if status else f"waits, ended after {time.monotonic() - started:.0f} s"
    return found


def _difference(program: Program, name: str, ranks: int) -> str:
    program.run(name, ranks)
    return _compared(program, name)


def _compared(program: Program, name: str) -> str:
    """How far the weights are from those of the run on one rank."""
    weights, reference = program.weights(name), program.weights("1")
    if weights is None or reference is None:
        return "did not end"
    difference = float((weights - reference).abs().max())
    return f"differs by {difference:.0e}" if difference else "same bits"


def _named(printed: str) -> str:
    return ", names rank 1" if "rank 1:" in printed or "rank 1 has" in printed else ""


def lines_of_code(text: str) -> int:
    """Lines that are not blank, no comment, and not the docstring."""
    docstring = ast.parse(text).body[0].end_lineno or 0
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines()[docstring:])


def _steps(loops: list[str], wanted: int, folder: str) -> Turns:
    """The CPU time of a step of every loop, on one rank and on two, in turns."""

    def once(loop: str, ranks: int) -> float:
        """Microseconds of CPU time a step, in new processes."""
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        task = {"loop": loop, "folder": tempfile.mkdtemp(dir=folder)}
        return float(start_worker("library_loops", task, torchrun(ranks), env)())

    names = [(loop, ranks) for ranks in (1, 2) for loop in (*loops, f"{PLAIN} again")]
    cases = {f"{loop}, {ranks}": partial(once, loop.removesuffix(" again"), ranks) for loop, ranks in names}
    return take_turns(cases, wanted, unit="us a step")


def _cells(outcome: dict[str, str]) -> list[str]:
    return [outcome[name] for name in _TITLES]


@measurement(
    rounds(7),
    number("--limit", 120.0, "seconds that a program may take before it counts as one that hangs", "S"),
    worker=work,
)
def main(arguments: Arguments) -> Figures:
    """Run the programs, then measure the steps."""
    loops = [loop for loop in PROGRAMS if loop not in NEEDS or version(NEEDS[loop])]
    with tempfile.TemporaryDirectory() as folder:
        found = {loop: outcomes(Program(loop, Path(folder), arguments.limit)) for loop in loops}
        turns = _steps(loops, arguments.rounds, folder)
    lines = {
        loop: lines_of_code((ROOT / "benchmarks" / "loops" / f"{PROGRAMS[loop]}.py").read_text()) for loop in loops
    }
    figures: Figures = {"lines": lines, "outcomes": found, "rounds": turns.rounded(1), **turns.account()}
    figures["versions"] = {name: version(name) for name in NEEDS.values()}
    if turns.enough:
        over = {case: turns.difference(case, f"{PLAIN}, {case[-1]}") for case in turns.cases}
        figures["over_plain_us"] = {case: spread.rounded(1) for case, spread in over.items()}
        columns = ["loop", "lines", "CPU µs a step over torch, 1 rank", "2 ranks", *_TITLES.values()]
        rows = [
            [loop, str(lines[loop]), *(f"{over[f'{loop}, {ranks}']:+.0f}" for ranks in (1, 2)), *_cells(found[loop])]
            for loop in loops
        ]
        again = [f"{over[f'{PLAIN} again, {ranks}']:+.0f}" for ranks in (1, 2)]
        rows.append([f"{PLAIN} again", "", *again, *[""] * len(_TITLES)])
        figures["table"] = {"columns": columns, "rows": rows}
    return figures
