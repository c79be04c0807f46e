"""Where the time of a step goes: torch.profiler over a few steps after warm-up (`--profile`).

Effect: `trace.json.gz` for chrome://tracing or ui.perfetto.dev, `profile.txt` with the operations that take most
time, also by the shapes of their inputs and with the memory that they take, and the first of them on the screen;
training is not touched. Cost: the profiled steps are slower; afterwards none. The first rank alone is profiled. It
combines with everything. Source: the manual of torch.profiler.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from ddp_core.files import write_text
from ddp_train.distributed.process_group import wait_for_device
from ddp_train.observers.records import Observer
from ddp_train.technique import Context, Moment, Technique

WARM_UP = 10
STEPS = 5
SHOWN, WRITTEN = 8, 40
"""Operations on the screen and in the file."""


class Operation(Protocol):
    """A row of torch.profiler's averages: times in microseconds, over all profiled steps."""

    key: str
    count: int
    self_cpu_time_total: float
    self_device_time_total: float


class ShapedOperation(Operation, Protocol):
    """A row of the averages by the shapes of the inputs; memory in bytes, taken less freed, over all profiled steps."""

    input_shapes: Sequence[object]
    self_cpu_memory_usage: int
    self_device_memory_usage: int


def create(context: Context) -> Technique:
    """`--profile`."""
    if not context.ranks.is_first:
        return Technique(name="profile")
    profiling = _Profiling(context.run_folder, context.device, context.steps_per_epoch, context.epochs)
    return Technique(name="profile", after_step=profiling.after_step, observer=profiling)


def steps_to_profile(steps_per_epoch: int, steps_left: int) -> tuple[int, int]:
    """(steps before, steps profiled): a third of an epoch, but 1 to 10 steps; then up to 5 of the epoch's other steps.

    They fit into one epoch unless it has a single step, since an evaluation between them would be profiled too.
    """
    room = steps_per_epoch if steps_per_epoch > 1 else steps_left
    before = min(WARM_UP, max(1, room // 3))
    return before, max(0, min(STEPS, room - before))


def table(operations: Sequence[Operation], steps: int, *, on_gpu: bool, limit: int) -> list[str]:
    """Lines of a table: operations sorted by their own time, without callees; share, ms a step and calls a step."""

    def took(operation: Operation) -> float:
        """The operation's own time in microseconds, on the GPU or the CPU."""
        return operation.self_device_time_total if on_gpu else operation.self_cpu_time_total

    total = sum(took(operation) for operation in operations) or 1.0
    lines = [f"{'share':>7}{'ms/step':>10}{'calls/step':>12}  operation"]
    for operation in sorted(operations, key=took, reverse=True)[:limit]:
        calls, name = operation.count / steps, operation.key
        name = name if len(name) <= 60 else f"{name[:57]}..."
        lines.append(f"{took(operation) / total:>7.1%}{took(operation) / steps / 1000:>10.2f}{calls:>12.4g}  {name}")
    return lines


def shapes_table(operations: Sequence[ShapedOperation], steps: int, *, on_gpu: bool, limit: int) -> list[str]:
    """Like `table`, but by input shapes: ms a step, and MiB a step that an operation itself allocates, less freed."""
    shaped = sorted(operations, key=lambda one: one.self_device_time_total if on_gpu else one.self_cpu_time_total)
    lines = [f"{'ms/step':>10}{'MiB/step':>10}  operation and shapes of its inputs"]
    for one in shaped[: -limit - 1 : -1]:
        took = one.self_device_time_total if on_gpu else one.self_cpu_time_total
        memory = one.self_device_memory_usage if on_gpu else one.self_cpu_memory_usage
        shapes = " ".join("x".join(map(str, shape)) for shape in one.input_shapes if isinstance(shape, list) and shape)
        lines.append(f"{took / steps / 1000:>10.2f}{memory / steps / 2**20:>10.2f}  {one.key[:60]}  {shapes}".rstrip())
    return lines


class _Profiling(Observer):
    def __init__(self, folder: Path, device: torch.device, steps_per_epoch: int, epochs: int) -> None:
        self._trace, self._text = folder / "trace.json.gz", folder / "profile.txt"
        self._device, self._steps_per_epoch, self._all_steps = device, steps_per_epoch, steps_per_epoch * epochs
        self._seen, self._before, self._steps = 0, 0, 0
        self._profiler: profile | None = None
        self._started = 0.0
        self._done = False

    def after_step(self, moment: Moment) -> None:
        """Count the steps; start and stop the profiler between two steps."""
        if self._done:
            return
        if self._seen == 0:
            left = self._all_steps - moment.step
            self._before, self._steps = steps_to_profile(self._steps_per_epoch, left)
        self._seen += 1
        if self._seen == self._before and self._steps:
            self._start()
        elif self._profiler is not None and self._seen == self._before + self._steps:
            self._finish(moment.step + 1, self._steps)

    def _start(self) -> None:
        """Start torch's profiler."""
        on_gpu = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        # Kineto prints its own lines on stderr, among them an error where there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._profiler = profile(
            activities=activities, record_shapes=True, profile_memory=True, acc_events=True
        )  # without acc_events some versions of torch warn
        wait_for_device(self._device)
        self._profiler.start()
        self._started = time.monotonic()

    def _finish(self, last: int, steps: int) -> None:
        """Write the files and print the short table. last: the last profiled step of the run, from 1."""
        profiler, self._profiler, self._done = self._profiler, None, True
        assert profiler is not None
        wait_for_device(self._device)
        milliseconds = (time.monotonic() - self._started) / steps * 1000
        profiler.stop()
        profiler.export_chrome_trace(str(self._trace))
        on_gpu = self._device.type == "cuda"
        operations: Sequence[Operation] = profiler.key_averages()
        head = (
            f"steps {last - steps + 1} to {last} on {'the GPU' if on_gpu else 'the CPU'}, {milliseconds:.1f} ms a step "
            "under the profiler; time of each operation itself, without those that it calls"
        )
        by_shape: Sequence[ShapedOperation] = profiler.key_averages(group_by_input_shape=True)
        written = [head, *table(operations, steps, on_gpu=on_gpu, limit=WRITTEN), ""]
        written += shapes_table(by_shape, steps, on_gpu=on_gpu, limit=WRITTEN)
        write_text(self._text, "\n".join(written) + "\n")
        short = table(operations, steps, on_gpu=on_gpu, limit=SHOWN)
        print("\n".join([head, *short, f"more in {self._text}; {self._trace} is for ui.perfetto.dev"]), file=sys.stderr)

    def close(self) -> None:
        """Stop the profiler; print a line if the run ended before its steps were profiled."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        if not self._done:
            self._done = True
            print("--profile: the run ended before there were steps to profile after the warm-up", file=sys.stderr)
