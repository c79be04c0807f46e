"""What it costs a rank that the launcher can ask where it is (`--stall-report`).

An answer: medians of the CPU time of 100 answers of one rank with gloo whose flight recorder is full (2,000
collectives). An answer holds Python's lock. The launcher asks for the brief one twice a second, for the one with all
collectives every 15 seconds.

A collective: CPU time of an all-reduce of 8 numbers on one rank, all threads, with torch's flight recorder as the
launcher switches it on, and without it. The least of 200 times 100 each.

A step: a DistributedDataParallel program of two ranks with gloo under `launch.py --stall-report 120` and under
`--stall-report 0`, the second twice. All three run at once and take turns of 1,000 steps, in a new random order each
round; the others wait with their launchers stopped (SIGSTOP), so that these ask nothing. In each turn the first one is
asked for everything at least once. What counts is the ratio of the mean step within a round, by the clock and in CPU
time of rank 0.

Milliseconds an answer, microseconds that a record adds to a collective, what all answers take of a rank's time, what
both take of a 5 ms step with one collective, and the time of a step.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import psutil

from benchmarks.harness import Arguments, Figures, measurement, number, rounds
from benchmarks.programs import LAUNCH, command_of, start_worker, torchrun
from benchmarks.turns import take_figures
from ddp_launch.stall.watch import POLL_S, SAMPLE_S

ANSWERS, RECORDED = 100, 2000
CHUNKS, CHUNK = 200, 100
STEP_US = 5000.0
RECORDER = "TORCH_FR_BUFFER_SIZE"
WIDTH, LAYERS, BATCH, WARM_UP = 256, 4, 64, 100
WITH, WITHOUT, AGAIN = "asked", "not asked", "not asked, again"
CPU = ", CPU time"
SECONDS = {WITH: "120", WITHOUT: "0", AGAIN: "0"}


def work(folder: str = "") -> dict[str, float]:
    """What the ranks measure: with a `folder`, steps turn by turn; else answers, or collectives alone where no record
    is kept."""
    if folder:
        steps(Path(folder))
    return answers() if os.environ[RECORDER] != "0" else {"collective": collective_us()}


def collective_us() -> float:
    """Microseconds of CPU time of an all-reduce on this one rank; the process group stays."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    numbers, taken_s = torch.ones(8), []
    for _ in range(CHUNKS):
        began = time.process_time()
        for _ in range(CHUNK):
            dist.all_reduce(numbers)
        taken_s.append(time.process_time() - began)
    return 1e6 * min(taken_s) / CHUNK


def answers() -> dict[str, float]:
    """Milliseconds of a brief and a full answer, and both as a percentage of a rank's time."""
    import torch.distributed as dist

    from ddp_launch.stall.in_rank.torch_internals import Answers

    collective = collective_us()
    thread = Answers(dist.distributed_c10d, os.memfd_create("answers"), *os.pipe())
    times = {}
    for case, full in (("brief", False), ("full", True)):
        taken = []
        for _ in range(ANSWERS):
            started = time.thread_time()
            thread.answer(full)
            taken.append(1e3 * (time.thread_time() - started))
        times[case] = statistics.median(taken)
    dist.destroy_process_group()
    share = 0.1 * (times["brief"] / POLL_S + times["full"] / SAMPLE_S)
    return {**times, "collective": collective, "share": share}


def steps(folder: Path) -> NoReturn:
    """Repeatedly run as many steps as `folder`/go says, and write the milliseconds a step, by the clock and in CPU
    time, to `folder`/done."""
    import torch
    import torch.distributed as dist
    from torch import nn

    dist.init_process_group("gloo")
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    network = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    inputs, count = torch.randn(BATCH, WIDTH), torch.tensor(WARM_UP)
    while True:
        started, began = time.perf_counter(), time.process_time()
        for _ in range(int(count)):
            network(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        taken = time.perf_counter() - started, time.process_time() - began
        if dist.get_rank() == 0:
            (folder / "done").write_text(" ".join(str(1e3 * seconds / int(count)) for seconds in taken))
            count.fill_(int((folder / "go").read_text()))
        dist.broadcast(count, 0)


class Program:
    """The program with steps under the launcher, stopped except during its turns."""

    def __init__(self, case: str, folder: Path) -> None:
        self._folder = folder
        for name in ("go", "done"):
            os.mkfifo(folder / name)
        launcher = [*LAUNCH, "--cpu", "--nproc", "2", "--quiet", "--stall-report", SECONDS[case]]
        command, env = command_of("stall_cost", {"folder": str(folder), "answer": str(folder / "answer")}, launcher)
        self._process = subprocess.Popen(command, env=env | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        self._read()

    def turn(self, count: int) -> list[float]:
        """Milliseconds a step over `count` steps, by the clock and in rank 0's CPU time."""
        self._process.send_signal(signal.SIGCONT)
        (self._folder / "go").write_text(str(count))
        return self._read()

    def _read(self) -> list[float]:
        """The step times of a finished round, milliseconds; the program is stopped again."""
        taken_ms = [float(word) for word in (self._folder / "done").read_text().split()]
        self._process.send_signal(signal.SIGSTOP)
        return taken_ms

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the launcher and its ranks so far."""
        those = [top := psutil.Process(self._process.pid), *top.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in those)

    def end(self) -> None:
        """End the program, whatever it waits for."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait()


@contextmanager
def programs() -> Iterator[Mapping[str, Program]]:
    """The three programs, started."""
    with ExitStack() as stack:
        found = {}
        for case in SECONDS:
            found[case] = Program(case, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.callback(found[case].end)
        yield found


@measurement(
    rounds(5),
    number("--step-rounds", 30, "undisturbed rounds of steps"),
    number("--steps", 1000, "of a turn"),
    worker=work,
)
def main(arguments: Arguments) -> Figures:
    """Start the rank and measure its answers."""

    def of_one_rank() -> dict[str, float]:
        """Costs of answers and of a record, from new processes."""
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        found = [start_worker("stall_cost", {}, torchrun(1), env | {RECORDER: size})() for size in (str(RECORDED), "0")]
        record = found[0].pop("collective") - found[1]["collective"]
        of_step = found[0]["share"] + 100 * record / STEP_US
        return {**found[0], "bare": found[1]["collective"], "record": record, "of_step": of_step}

    turns = take_figures(of_one_rank, arguments.rounds, unit="ms")
    draw = random.Random(0)
    with programs() as started:

        def measure() -> dict[str, float]:
            """Milliseconds a step of each program, in a random order."""
            found = {case: started[case].turn(arguments.steps) for case in draw.sample(sorted(started), len(started))}
            clock = {case: found[case][0] for case in started}
            return clock | {f"{case}{CPU}": found[case][1] for case in started}

        cpu_s = lambda: sum(program.cpu_s for program in started.values())  # noqa: E731
        of_steps = take_figures(measure, arguments.step_rounds, unit="ms a step", ours=cpu_s)
    names = {"brief": "brief answer, ms", "full": "answer with 2,000 collectives, ms", "share": "of a rank's time, %"}
    names |= {"bare": "a collective without a record, µs", "record": "its record, µs", "of_step": "of a 5 ms step, %"}
    rows = [[names[case], f"{turns.values(case):.3f}"] for case in names if turns.enough]
    if of_steps.enough:
        rows += [[f"a step, {WITHOUT}, ms", f"{of_steps.values(WITHOUT):.2f}"]]
        for kind in ("", CPU):
            ratios = {case: of_steps.ratio(case + kind, WITHOUT + kind) for case in (WITH, AGAIN)}
            rows += [[f"a step, {case} / {WITHOUT}{kind}", f"{ratio:.4f}"] for case, ratio in ratios.items()]
    table = {"columns": ["cost", "median (quartiles)"], "rows": rows}
    each = {"rounds": turns.rounded(3), "step_rounds": of_steps.rounded(4)}
    return {**turns.account(), **of_steps.account(), **each, "table": table}
