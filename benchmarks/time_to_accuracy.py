"""How soon a run reaches an accuracy on CIFAR-10: the preset speedrun, and a Lightning program of the usual shape.

    python -m benchmarks.time_to_accuracy --data-dir DIR --targets 0.8 --seeds 3 --out NAME
    python -m benchmarks.time_to_accuracy --data-dir DIR --targets --seeds 3 --peer small:15:0.8 --out NAME

--targets: runs of `python launch.py --auto --preset speedrun --target T`, of as many seeds. --peer MODEL:EPOCHS:UNTIL:
a Lightning program (benchmarks/lightning_program.py), which ends at the test accuracy UNTIL. The images are decoded
before. Of each run: the time of its epochs (training and evaluation, what other clocks count after loading and
compilation), the wall time from the command to the model on disk, the accuracy of the last epoch, and that with
test-time augmentation. Runs during which other processes took more than a tenth of the CPUs are marked as disturbed and
count neither in means nor as seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Figures, Measurement, Option
from benchmarks.programs import LAUNCH, run
from benchmarks.turns import LIMIT, watched
from ddp_core.errors import UserError

COLUMNS = ["run", "clean runs", "s in epochs", "wall s", "accuracy, last epoch", "with test-time augmentation"]
LIMIT_S = 4 * 3600
Peer = tuple[str, int, float]
"""Model, epochs of its schedule, test accuracy at which it ends."""


def speedrun(target: float, seed: int, data_dir: str) -> dict[str, Any]:
    """One run of the preset. Errors: SystemExit where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--preset", "speedrun", "--target", f"{target:g}", "--seed", str(seed), "--data-dir", data_dir]
        command = [*LAUNCH, "--auto", *options, "--out-dir", folder]
        with watched() as window:
            started = time.monotonic()
            _run(command)
            wall = time.monotonic() - started
        history = json.loads((Path(folder) / "training_history.json").read_text())
    epochs, examined = history["epochs"], history["examination"]
    return _figures(
        [(epoch["seconds"], epoch["test_accuracy"]) for epoch in epochs],
        wall,
        window.others,
        seed,
        tta=examined.get("top1_tta"),
        world_size=history["environment"]["world_size"],
        precision=history["environment"]["precision"],
        images_per_second=round(statistics.fmean(epoch["images_per_second"] for epoch in epochs)),
    )


def lightning(peer: Peer, seed: int, data_dir: str) -> dict[str, Any]:
    """One run of the Lightning program. Errors: SystemExit where it fails."""
    model, epochs, until = peer
    words = ["--model", model, "--epochs", str(epochs), "--target", str(until), "--seed", str(seed)]
    command = [sys.executable, "-m", "benchmarks.lightning_program", "--data-dir", data_dir, *words]
    with watched() as window:
        started = time.monotonic()
        lines = _run(command).splitlines()
        wall = time.monotonic() - started
    found = [json.loads(line) for line in lines if line.startswith("{")]
    ends = [0.0, *(line["seconds"] for line in found)]
    spent = [after - before for before, after in itertools.pairwise(ends)]
    return _figures(
        list(zip(spent, (line["accuracy"] for line in found), strict=True)), wall, window.others, seed, tta=None
    )


def _figures(
    epochs: list[tuple[float, float]], wall: float, others: float, seed: int, tta: float | None, **more: Any
) -> dict[str, Any]:
    """`epochs`: seconds and test accuracy of each."""
    return {
        "seed": seed,
        "disturbed": others > LIMIT,
        "others_share_of_cpus": round(others, 3),
        "epoch_seconds": round(sum(seconds for seconds, _ in epochs), 1),
        "wall_seconds": round(wall, 1),
        "test_accuracy": epochs[-1][1],
        "best_test_accuracy": max(accuracy for _, accuracy in epochs),
        "test_accuracy_tta": tta,
        **more,
        "epochs": [{"seconds": round(seconds, 2), "test_accuracy": accuracy} for seconds, accuracy in epochs],
    }


def _run(command: list[str]) -> str:
    """What it printed. Errors: SystemExit."""
    print(shlex.join(command), file=sys.stderr, flush=True)
    return run(command, limit_s=LIMIT_S).stdout


def _row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    clean = [run for run in runs if not run["disturbed"]]
    if len(clean) < len(runs) or len(runs) < 2:
        name += " (not a measurement: " + (f"{len(runs) - len(clean)} disturbed)" if len(runs) > 1 else "one run)")
    cells = [_spread([run[key] for run in clean or runs], ".1f") for key in ("epoch_seconds", "wall_seconds")]
    for key in ("test_accuracy", "test_accuracy_tta"):
        values = [run[key] for run in clean or runs if run[key] is not None]
        cells.append(_spread(values, ".2%") if values else "")
    return [name, str(len(clean)), *cells]


def _spread(values: list[float], form: str) -> str:
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def _peer(text: str) -> Peer:
    try:
        model, epochs, until = text.split(":")
        return model, int(epochs), float(until)
    except ValueError:
        raise UserError(f"--peer {text}: MODEL:EPOCHS:UNTIL, as in small:15:0.8") from None


def _decode(data_dir: str) -> None:
    """Fill the cache of decoded images."""
    from ddp_train import data
    from ddp_train.config.options import DataOptions

    data.load("cifar10", DataOptions(data_dir=data_dir))


def measure(arguments: argparse.Namespace) -> Figures:
    """Runs of all sorts, seed by seed."""
    _decode(arguments.data_dir)
    cases: dict[str, Callable[[int], Figures]] = {}
    for target in arguments.targets:
        cases[f"--preset speedrun --target {target:g}"] = partial(speedrun, target, data_dir=arguments.data_dir)
    for peer in map(_peer, arguments.peer):
        name = f"Lightning, {peer[0]}, one cycle of {peer[1]} epochs, to {peer[2]:.0%}"
        cases[name] = partial(lightning, peer, data_dir=arguments.data_dir)
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, one in cases.items():
            runs[name].append(one(seed))
            last = {key: value for key, value in runs[name][-1].items() if key != "epochs"}
            print(f"{name}: {json.dumps(last)}", file=sys.stderr, flush=True)
    return {"table": {"columns": COLUMNS, "rows": [_row(name, found) for name, found in runs.items()]}, "runs": runs}


OPTIONS = (
    Option("--data-dir", required=True, metavar="DIR", help="CIFAR-10: train/CLASS/* and test/CLASS/*"),
    Option("--targets", type=float, nargs="*", default=[0.8], metavar="T", help="of --preset speedrun [0.8]"),
    Option("--seeds", type=int, default=3, metavar="N", help="runs of each sort [3]"),
    Option("--first-seed", type=int, default=1, metavar="N", help="the others follow [1]"),
    Option("--peer", action="append", default=[], metavar="MODEL:EPOCHS:UNTIL", help="a Lightning program"),
)
main = Measurement("time_to_accuracy", __doc__, measure, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
