"""Steps with and without --reproducible, on one rank and on two.

Each case is a start of `launch.py` with the trainer's own steps on synthetic images, as in ddp_scaling; the global
batch is the same. Without the option, one rank has all cores as threads, and two share them; with it each rank has the
threads that one rank for each of the 8 logical shards would have.

Images per second of training, and how many times as long a step takes with the option.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.ddp_scaling import KNOWN, Model, find_models, together
from benchmarks.harness import Arguments, Figures, measurement, rounds, text
from benchmarks.turns import Turns, take_turns

CASES = {1: ("1 rank, without", "1 rank, with"), 2: ("2 ranks, without", "2 ranks, with")}
AGAIN = "1 rank, without, again"


def take(model: Model, count: int) -> Turns:
    """Images per second by case."""
    sharded = replace(model, options=f"{model.options} --reproducible")
    cases = {AGAIN: partial(together, 1, model)}
    for ranks, (without, reproducible) in CASES.items():
        cases |= {without: partial(together, ranks, model), reproducible: partial(together, ranks, sharded)}
    return take_turns(cases, count, unit=f"images/s, {model.name}")


@measurement(text("--models", "small,resnet18", KNOWN), rounds(5))
def main(arguments: Arguments) -> Figures:
    """Steps with and without --reproducible, in turns."""
    found, rows = {}, []
    for name, model in find_models(arguments.models).items():
        turns = take(model, arguments.rounds)
        times = {ranks: turns.ratio(*cases) for ranks, cases in CASES.items() if turns.enough}
        figures: Figures = {f"times_on_{ranks}": ratio.rounded(3) for ranks, ratio in times.items()}
        if turns.enough:
            figures["noise"] = turns.ratio(AGAIN, CASES[1][0]).rounded(3)
        found[name] = {"global_batch": model.batch, **turns.account(), **figures, "rounds": turns.rounded()}
        for ranks, cases in CASES.items():
            cells = ["not measured", "not measured", ""]
            if turns.enough:
                cells = [*(f"{turns.values(case):,.0f}" for case in cases), f"{times[ranks]:.2f}"]
            rows.append([name, str(ranks), *cells])
    columns = ["model", "ranks", "images/s without", "images/s with --reproducible", "times as long"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}
