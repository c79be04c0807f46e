"""Which measurements there are: a table of (name, module, what it tells, whether it needs data or a GPU)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One measurement: `python -m benchmarks run NAME` calls main of `benchmarks.MODULE`; most take --out NAME."""

    name: str
    question: str
    needs: str = ""

    @property
    def module(self) -> str:
        """Where its `main(argv)` is."""
        return f"benchmarks.{self.name}"


CATALOGUE: tuple[Benchmark, ...] = (
    Benchmark("input_pipeline", "training images per second that the input delivers, beside torchvision's DataLoader"),
    Benchmark("augmentation", "each augmentation on whole batches, beside torchvision's transforms"),
    Benchmark("cpu_speed", "training on a CPU by memory layout, allocator and spinning, beside a naive loop"),
    Benchmark("step_overhead", "CPU time that the trainer, accelerate and Lightning add to a step of a bare loop"),
    Benchmark("control_cost", "what the ranks' agreement and the watch over loss and gradients cost a step"),
    Benchmark("ddp_scaling", "two ranks against one process of two threads, and against two independent processes"),
    Benchmark("mixed_ranks", "two ranks of unequal speed: shares by measured speed against equal ones"),
    Benchmark("reproducible_cost", "steps with and without --reproducible, on one rank and on two"),
    Benchmark("collectives", "all-reduce, all-gather and broadcast over sizes: algorithm and bus bandwidth"),
    Benchmark("checkpoint_cost", "what a checkpoint takes of the training at the default interval, and of an epoch"),
    Benchmark("optimizers", "the time of a step with each optimizer and weight technique"),
    Benchmark("launch_overhead", "from the command to a worker's first line, beside torchrun, accelerate and fabric"),
    Benchmark("start_up", "from the command to the first training step, and what importing takes"),
    Benchmark("restart_recovery", "kills of a rank that a run recovers from, and how soon"),
    Benchmark("training_run", "one whole training run: wall time and accuracy", "data"),
    Benchmark("time_to_accuracy", "how soon an accuracy on CIFAR-10 is reached, beside a Lightning program", "data"),
    Benchmark("topology_report", "report, select and env over the stand-in driver, beside its calls by themselves"),
    Benchmark("topology_peers", "report beside nvitop and gpustat, on the same stand-in driver"),
    Benchmark("monitor_overhead", "what watching GPUs costs the machine, beside nvitop"),
    Benchmark("subset_search", "the search for the best-connected subset of many GPUs"),
)


def find(name: str) -> Benchmark | None:
    """The benchmark of that name; a hyphen counts as an underscore."""
    return next((entry for entry in CATALOGUE if entry.name == name.replace("-", "_")), None)
