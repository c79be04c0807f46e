"""Training steps as a share of what this machine can compute: its own matrix rate, measured in the same process.

The rate is that of the faster of a large product of matrices and a large convolution, forward, in the step's number
format; memory bandwidth is that of a copy, read and written bytes. A step is the trainer's own, as in ddp_scaling: its
floating-point operations are those of the products and convolutions of forward and backward (torch.utils.flop_counter;
a multiplication and an addition are two), by the clock. Each round starts a new process for each network. With
--threads 1 all times are CPU times of that thread, so that other programs may run. With --profile the operators of a
step are added up by what they do (torch.profiler, by the clock, whose own cost is in the figures).

Share of the machine's matrix rate that a training step reaches, and where the rest of the step goes.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.harness import DEVICE, Arguments, Figures, Option, measurement, number, rounds, text
from benchmarks.programs import LAUNCH, start_worker, trainer_environment
from benchmarks.turns import FEWEST, Spread, Turns, take_figures
from ddp_core.errors import UserError

MODELS = {
    "small": ("--model small", 512),
    "speedrun": ("--model speedrun", 512),
    "resnet18": ("--model resnet18", 64),
    "vit": ("--model vit --hidden-dim 64 --n-layers 3", 64),
}
"""Name -> options and global batch."""
WARM_UP, STEPS, PROFILED = 4, 6, 3
SIZE, CHANNELS, SIDE, BATCH, BYTES = 2048, 256, 16, 128, 256 << 20
LEAST_S, TRIES = 0.1, 3
GROUPS = (
    (("aten::_foreach", "aten::_fused_sgd", "aten::_fused_adam"), "optimizer"),
    (
        ("aten::mkldnn_convolution", "aten::_convolution", "aten::convolution_backward", "aten::cudnn_conv"),
        "convolutions",
    ),
    (("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"), "products of matrices"),
    (("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::native_layer_norm", "aten::_batch_norm"), "norms"),
    (("aten::max_pool2d", "aten::avg_pool2d", "aten::adaptive_avg_pool2d", "aten::_adaptive_avg_pool2d"), "pooling"),
    (("aten::silu", "aten::relu", "aten::threshold_backward", "aten::gelu"), "activations"),
    (("aten::_log_softmax", "aten::nll_loss", "aten::cross_entropy", "aten::argmax"), "loss and metrics"),
    (("aten::_to_copy", "aten::to"), "casts"),
    (("aten::clone", "aten::contiguous"), "changes of layout"),
    (
        ("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::sum", "aten::zero_", "aten::fill_"),
        "sums and factors",
    ),
)
"""Prefixes of operator names, and what these operators do. An operator without one counts as the one around it."""


def peaks(device: Any, dtype: Any) -> dict[str, float]:
    """FLOP/s of a large product and a large convolution in a number format."""
    import torch

    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=dtype) for _ in range(2))
    layout = torch.channels_last
    images = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype).to(memory_format=layout)
    product = 2 * SIZE**3
    convolution = 2 * BATCH * SIDE**2 * CHANNELS**2 * 9
    with torch.no_grad():
        return {
            "product": product / _seconds(lambda: a @ b, device),
            "convolution": convolution
            / _seconds(lambda: torch.nn.functional.conv2d(images, weight, padding=1), device),
        }


def bandwidth(device: Any) -> float:
    """Bytes per second that a copy reads and writes."""
    import torch

    source, target = (torch.ones(BYTES // 4, device=device) for _ in range(2))
    return 2 * BYTES / _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: Any) -> float:
    """The time of a call, the best of some tries."""
    import torch

    synchronize = torch.get_device_module(device).synchronize
    best, clock = float("inf"), _clock(device)
    call()
    for _ in range(TRIES):
        synchronize(device)
        begin, calls = clock(), 0
        while clock() - begin < LEAST_S:
            call()
            calls += 1
        synchronize(device)
        best = min(best, (clock() - begin) / calls)
    return best


def _clock(device: Any) -> Callable[[], float]:
    """The CPU time of the thread, where one thread does all the work; else the clock."""
    import torch

    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def work(name: str, device: str, profile: bool) -> dict[str, Any]:
    """The work of a network's process: measures the machine's rates, then the steps of its trainer."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_arithmetic
    from ddp_train.config.parse import parse
    from ddp_train.distributed import process_group

    options, batch = MODELS[name]
    ranks = process_group.Ranks.from_environment()
    where = process_group.choose_device(device, ranks)
    with tempfile.TemporaryDirectory() as folder:
        words = (
            f"--dataset synthetic --synthetic-samples {batch * (WARM_UP + STEPS + PROFILED + 1)} --epochs 1 {options} "
        )
        words += f"--batch-size {batch} --no-tensorboard --no-examine --lr 0.001 --out-dir {folder}/run"
        wanted = parse(words.split())
        set_arithmetic(wanted, ranks, where)
        trainer = build(wanted, ranks, where).trainer
        mode = trainer.components.precision.mode
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode, torch.float32)
        rates = peaks(where, dtype)
        trainer.components.model.train()
        windows = trainer.components.pipeline.train(0)
        for window in itertools.islice(windows, WARM_UP):
            trainer.train_step(window)
        counter = FlopCounterMode(display=False)
        with counter:
            trainer.train_step(next(windows))
        torch.get_device_module(where).synchronize(where)
        seconds = [_timed(trainer, window, where) for window in itertools.islice(windows, STEPS)]
        found = {
            "format": mode,
            "batch": batch,
            "flops": counter.get_total_flops(),
            "step_s": statistics.median(seconds),
            "bytes_s": bandwidth(where),
            **rates,
        }
        return found | ({"profile": _profile(trainer, windows)} if profile else {})


def _timed(trainer: Any, window: Any, device: Any) -> float:
    """Seconds of one training step."""
    import torch

    clock = _clock(device)
    begin = clock()
    trainer.train_step(window)
    torch.get_device_module(device).synchronize(device)
    return clock() - begin


def _profile(trainer: Any, windows: Iterator[Any]) -> dict[str, float]:
    """Seconds of a step by what its operators do; "Python and the rest": what no operator accounts for."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        begin = time.perf_counter()
        for _ in range(PROFILED):
            with record_function("data"):
                window = next(windows)
                window = replace(window, batches=iter(list(window.batches)))
            trainer.train_step(window)
        whole = time.perf_counter() - begin
    spent: Counter[str] = Counter()
    for event in seen.events():
        spent[group_of(event)] += event.self_cpu_time_total / 1e6
    spent["Python and the rest"] = max(0.0, whole - sum(spent.values()))  # type: ignore[assignment]
    return {name: seconds / PROFILED for name, seconds in spent.most_common()}


def group_of(event: Any) -> str:
    """The group of a profiler event: its own, or that of the nearest event around it that has a group."""
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    # All events inside of these belong to their groups.
    for kind, group in (("data", "data"), ("Optimizer.step", "optimizer")):
        if any(name.startswith(kind) for name in names):
            return group
    for name in names:
        for beginnings, group in GROUPS:
            if name.startswith(beginnings):
                return group
    return "other operators"


def _measure(name: str, arguments: Arguments, answers: list[dict[str, Any]]) -> dict[str, float]:
    """A round: one process. Adds its answer to `answers`."""
    where = ["--cpu"] if arguments.device == "cpu" else ["--auto"]
    task = {"name": name, "device": arguments.device, "profile": arguments.profile}
    env = trainer_environment(arguments.device, arguments.threads)
    answer = start_worker("limit", task, [*LAUNCH, *where, "--nproc", "1"], env)()
    answers.append(answer)
    rate = max(answer["product"], answer["convolution"])
    share = answer["flops"] / answer["step_s"] / rate
    return {"share": share, "rate": rate / 1e9, "step_s": answer["step_s"], "copy": answer["bytes_s"] / 1e9}


def _facts(answer: dict[str, Any]) -> Figures:
    """Number format, batch and work of a step."""
    return {"format": answer["format"], "global_batch": answer["batch"], "gflop_a_step": answer["flops"] / 1e9}


def _row(name: str, turns: Turns, answer: dict[str, Any]) -> list[str]:
    """A network's row of the table."""
    if not turns.enough:
        return [name, answer["format"], f"{answer['flops'] / 1e9:.0f}", *["not measured"] * 4]
    step = Spread.of(1000 * found["step_s"] for found in turns.rounds)
    shown = [
        f"{step:.1f}",
        f"{turns.values('rate'):,.0f}",
        f"{turns.values('copy'):.1f}",
        f"{turns.values('share'):.0%}",
    ]
    return [name, answer["format"], f"{answer['flops'] / 1e9:.0f}", *shown]


def _median_profile(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of a step by what it does, most first."""
    names = dict.fromkeys(name for answer in answers for name in answer["profile"])
    found = {name: 1000 * statistics.median(answer["profile"].get(name, 0.0) for answer in answers) for name in names}
    return {name: round(ms, 2) for name, ms in sorted(found.items(), key=lambda item: -item[1])}


def _shown(profiles: dict[str, dict[str, float]], whole: list[list[str]]) -> list[list[str]]:
    """Rows of the profile of each network, after one with its share of the machine's rate. `whole`: rows of `_row`."""
    rows = []
    for (name, spent), (*_, step, rate, _, share) in zip(profiles.items(), whole, strict=True):
        rows.append([name, f"a step without the profiler: {share} of {rate} GFLOP/s", step, ""])
        rows += [[name, what, f"{ms:.1f}", f"{ms / sum(spent.values()):.0%}"] for what, ms in spent.items()]
    return rows


@measurement(
    text("--models", "small,speedrun,resnet18,vit", f"of {', '.join(MODELS)}"),
    DEVICE,
    rounds(5),
    number("--threads", None, "of the CPU [all cores]"),
    Option("--profile", action="store_true", help="add up the operators of a step by what they do"),
    worker=work,
)
def main(arguments: Arguments) -> Figures:
    """Every network in turn, with the machine's rates beside it."""
    names = [name.strip() for name in arguments.models.split(",")]
    if unknown := [name for name in names if name not in MODELS]:
        raise UserError(f"--models {unknown[0]}: known are {', '.join(MODELS)}")
    found, rows, profiles = {}, [], {}
    for name in names:
        answers: list[dict[str, Any]] = []
        measure = partial(_measure, name, arguments, answers)
        if arguments.threads == 1:
            turns = Turns([measure() for _ in range(max(FEWEST, arguments.rounds))], 0)
        else:
            turns = take_figures(measure, arguments.rounds, unit="share, GFLOP/s, s, GB/s")
        found[name] = {**turns.account(), "rounds": turns.rounded(4), **_facts(answers[-1])}
        if turns.enough:
            found[name]["share"] = turns.values("share").rounded(3)
        rows.append(_row(name, turns, answers[-1]))
        if arguments.profile:
            profiles[name] = _median_profile(answers)
    columns = [
        "network",
        "format",
        "GFLOP a step",
        "step ms",
        "matrix rate, GFLOP/s",
        "copy, GB/s",
        "share of the rate",
    ]
    table = {"columns": columns, "rows": rows}
    if arguments.profile:
        table = {"columns": ["network", "where a step's time goes", "ms", "% of it"], "rows": _shown(profiles, rows)}
    return {"models": found, **({"profiles": profiles} if profiles else {}), "table": table}
