"""Which measurements there are: name, what each measures, what its table shows, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """One measurement: `python -m benchmarks NAME` calls `main` of `benchmarks.NAME`. table: how to read its table."""

    name: str
    question: str
    table: str
    needs: str = ""

    @property
    def module(self) -> str:
        """Where its `main(argv)` is."""
        return f"benchmarks.{self.name}"


CATALOGUE: tuple[Benchmark, ...] = (
    Benchmark(
        "input_pipeline",
        "training images per second that the input delivers, beside torchvision's DataLoader",
        "Images per second without any training. `resident` is the pipeline here; `again` shows the noise. `erasing`: "
        "with random erasing of half of the images.",
    ),
    Benchmark(
        "augmentation",
        "each augmentation on whole batches, beside torchvision's transforms",
        "Augmented images per second of CPU time on one thread.",
    ),
    Benchmark(
        "cpu_speed",
        "training on a CPU by memory layout, allocator and spinning, beside a naive loop",
        "Images per second of the same training loop with each setting. "
        "With `benchmarks.cpu_speed --beside 1` another process keeps a core "
        "busy meanwhile.",
    ),
    Benchmark(
        "step_overhead",
        "CPU time that the trainer, accelerate and Lightning add to a step of a bare loop",
        "CPU time of a step of a network that computes almost nothing: what remains is the cost of the loop.",
    ),
    Benchmark(
        "control_cost",
        "what the ranks' agreement and the watch over loss and gradients cost a step",
        "`exchange`: all ranks agree on whether to stop, save or continue. `watch`: one look for gradients that are "
        "not finite.",
    ),
    Benchmark(
        "ddp_scaling",
        "two ranks against one process of two threads, and against two independent processes",
        "Images per second at the same global batch (`small:64`: a global batch of 64). `2 processes apart` train "
        "independently: an upper bound.",
    ),
    Benchmark(
        "mixed_ranks",
        "two ranks of unequal speed: shares by measured speed against equal ones",
        "One of two ranks is slowed. The bound is what arithmetic allows measured shares to gain.",
    ),
    Benchmark(
        "reproducible_cost",
        "steps with and without --reproducible, on one rank and on two",
        "Images per second of training, and how many times as long a step takes with the option.",
    ),
    Benchmark(
        "collectives",
        "all-reduce, all-gather and broadcast over sizes: algorithm and bus bandwidth",
        "Time of one call, and bandwidth as nccl-tests defines it. The size is that of the largest buffer.",
    ),
    Benchmark(
        "checkpoint_cost",
        "what a checkpoint takes of the training at the default interval, and of an epoch",
        "Seconds that training loses to one checkpoint, and their share of the time between two. The call is what the "
        "training thread waits for; writing continues beside the training.",
    ),
    Benchmark(
        "optimizers",
        "the time of a step with each optimizer and weight technique",
        "Time of a whole training step, and how many times that of SGD it is.",
    ),
    Benchmark(
        "launch_overhead",
        "from the command to a worker's first line, beside torchrun, accelerate and fabric",
        "Seconds from the command to the first line of rank 0's program. `torchrun again` shows the noise.",
    ),
    Benchmark(
        "start_up",
        "from the command to the first training step, and what importing takes",
        "Seconds from the command to the first batch of rank 0; for bare torchrun, to the first barrier.",
    ),
    Benchmark(
        "restart_recovery",
        "kills of a rank that a run recovers from, and how soon",
        "Each run loses one rank to SIGKILL at a random moment and may restart once. Times run from the start to the "
        "end of a run.",
    ),
    Benchmark(
        "training_run",
        "one whole training run: wall time and accuracy",
        "The wall time runs from the command to its end; epochs include evaluation.",
        "data",
    ),
    Benchmark(
        "time_to_accuracy",
        "how soon an accuracy on CIFAR-10 is reached, beside a Lightning program",
        "Mean and standard deviation over the seeds. The wall time runs from the command to the model on disk; epochs "
        "include evaluation.",
        "data",
    ),
    Benchmark(
        "topology_report",
        "report, select and env over the stand-in driver, beside its calls by themselves",
        "Eight GPUs of the stand-in driver, which takes a set time for each call. The bound is 1.5 times the driver's "
        "time and 0.15 s of start-up.",
    ),
    Benchmark(
        "topology_peers",
        "report beside nvitop and gpustat, on the same stand-in driver",
        "Wall time of the whole command.",
    ),
    Benchmark(
        "monitor_overhead",
        "what watching GPUs costs the machine, beside nvitop",
        "CPU time of each monitor, with one sample of eight GPUs a second; start-up is counted apart.",
    ),
    Benchmark(
        "subset_search",
        "the search for the best-connected subset of many GPUs",
        "Processor time of the search in 16 GPUs, for matrices that leave it no shortcut.",
    ),
)


def find(name: str) -> Benchmark | None:
    """The benchmark of that name; a hyphen counts as an underscore."""
    return next((entry for entry in CATALOGUE if entry.name == name.replace("-", "_")), None)


def made_by(result: Mapping[str, Any]) -> str | None:
    """The name of the measurement that a result comes from, by its command."""
    command = result.get("command", "")
    if found := re.match(r"python -m benchmarks\.(\w+)", command):
        return found[1]
    return "training_run" if command.startswith("python launch.py") else None
