"""How soon an accuracy on CIFAR-10 is reached, compared with a Lightning program.

    python -m benchmarks.time_to_accuracy --data-dir DIR --targets 0.8 --seeds 3 --out NAME
    python -m benchmarks.time_to_accuracy --data-dir DIR --targets --seeds 3 --peer small:15:0.8 --out NAME

--targets: runs of `python launch.py --auto --preset speedrun --target T`. --peer MODEL:EPOCHS:UNTIL: a Lightning
program (lightning_program.py), which ends at the test accuracy UNTIL. The images are decoded before the first run. Runs
during which other processes took more than a tenth of the CPUs are marked as disturbed and count neither in means nor
as seeds.

Mean and standard deviation over the seeds. The wall time runs from the command to the model on disk; epochs include
evaluation.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.harness import Arguments, Figures, Option, measurement, number
from benchmarks.programs import run, train
from benchmarks.turns import LIMIT, watched
from ddp_core.errors import UserError

COLUMNS = ["run", "clean runs", "s in epochs", "wall s", "accuracy, last epoch", "with test-time augmentation"]
LIMIT_S = 4 * 3600


def speedrun(target: float, data_dir: str, seed: int) -> Figures:
    """One run of the preset. Errors: SystemExit where it fails."""
    options = ["--preset", "speedrun", "--target", f"{target:g}", "--seed", str(seed), "--data-dir", data_dir]
    with watched() as window:
        history, wall = train(["--auto", *options])
    epochs, environment = history["epochs"], history["environment"]
    more = {
        "test_accuracy_tta": history["examination"].get("top1_tta"),
        "world_size": environment["world_size"],
        "precision": environment["precision"],
        "images_per_second": round(statistics.fmean(epoch["images_per_second"] for epoch in epochs)),
    }
    times = [(epoch["seconds"], epoch["test_accuracy"]) for epoch in epochs]
    return {"seed": seed, **_figures(times, wall, window.others), **more}


def lightning(model: str, epochs: int, until: float, data_dir: str, seed: int) -> Figures:
    """One run of the Lightning program. Errors: SystemExit where it fails."""
    command = [sys.executable, "-m", "benchmarks.lightning_program", "--data-dir", data_dir, "--model", model]
    command += ["--epochs", str(epochs), "--target", str(until), "--seed", str(seed)]
    print(shlex.join(command), file=sys.stderr, flush=True)
    with watched() as window:
        started = time.monotonic()
        output = run(command, limit_s=LIMIT_S).stdout
        wall = time.monotonic() - started
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    ends = [0.0, *(line["seconds"] for line in found)]
    times = [(line["seconds"] - before, line["accuracy"]) for line, before in zip(found, ends, strict=False)]
    return {"seed": seed, **_figures(times, wall, window.others), "test_accuracy_tta": None}


def _figures(epochs: list[tuple[float, float]], wall: float, others: float) -> Figures:
    """The figures of a run. epochs: seconds and test accuracy of each; others: share of the CPUs that others took."""
    return {
        "disturbed": others > LIMIT,
        "others_share_of_cpus": round(others, 3),
        "wall_seconds": round(wall, 1),
        "epoch_seconds": round(sum(seconds for seconds, _ in epochs), 1),
        "test_accuracy": epochs[-1][1],
        "best_test_accuracy": max(accuracy for _, accuracy in epochs),
        "epochs": [{"seconds": round(seconds, 2), "test_accuracy": accuracy} for seconds, accuracy in epochs],
    }


def _row(name: str, runs: list[Figures]) -> list[str]:
    """Means and standard deviations of a kind of run over its clean seeds."""
    clean = [run for run in runs if not run["disturbed"]]
    if len(clean) < len(runs) or len(runs) < 2:
        name += " (not a measurement: " + (f"{len(runs) - len(clean)} disturbed)" if len(runs) > 1 else "one run)")
    cells = []
    for key in ("epoch_seconds", "wall_seconds", "test_accuracy", "test_accuracy_tta"):
        values = [run[key] for run in clean or runs if run[key] is not None]
        form = ".1f" if key.endswith("_seconds") else ".2%"
        mean = format(statistics.fmean(values), form) if values else ""
        cells.append(f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean)
    return [name, str(len(clean)), *cells]


def _peer(text: str, data_dir: str) -> tuple[str, Callable[[int], Figures]]:
    """The name of a peer's runs, and one of them by seed."""
    try:
        model, epochs, until = text.split(":")
        name = f"Lightning, {model}, one cycle of {int(epochs)} epochs, to {float(until):.0%}"
        return name, partial(lightning, model, int(epochs), float(until), data_dir)
    except ValueError:
        raise UserError(f"--peer {text}: MODEL:EPOCHS:UNTIL is accepted, as in small:15:0.8") from None


@measurement(
    Option("--data-dir", required=True, metavar="DIR", help="CIFAR-10: train/CLASS/* and test/CLASS/*"),
    Option("--targets", type=float, nargs="*", default=[0.8], metavar="T", help="of --preset speedrun [0.8]"),
    number("--seeds", 3, "runs of each kind"),
    number("--first-seed", 1, "the others follow", least=0),
    Option("--peer", action="append", default=[], metavar="MODEL:EPOCHS:UNTIL", help="a Lightning program"),
)
def main(arguments: Arguments) -> Figures:
    """Every kind of run with every seed."""
    from ddp_train import data
    from ddp_train.config.options import DataOptions

    data_dir = arguments.data_dir
    cases: dict[str, Callable[[int], Figures]] = {
        f"--preset speedrun --target {target:g}": partial(speedrun, target, data_dir) for target in arguments.targets
    }
    cases |= dict(_peer(text, data_dir) for text in arguments.peer)
    data.load("cifar10", DataOptions(data_dir=data_dir))  # fills the cache of decoded images
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, one in cases.items():
            runs[name].append(one(seed))
            last = {key: value for key, value in runs[name][-1].items() if key != "epochs"}
            print(f"{name}: {json.dumps(last)}", file=sys.stderr, flush=True)
    return {"table": {"columns": COLUMNS, "rows": [_row(name, found) for name, found in runs.items()]}, "runs": runs}
