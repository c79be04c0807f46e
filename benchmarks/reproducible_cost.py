"""What --reproducible costs: whole training steps with it and without, on one rank and on two, in turns.

    python -m benchmarks.reproducible_cost [--models small,resnet18] [--rounds 5] [--out NAME]

Each case is a start of `launch.py` with the trainer's own steps on synthetic images, as in ddp_scaling.py; the global
batch is the same. Without the option, one rank has all cores as threads, and two share them; with it each rank has the
threads that one rank for each of the 8 logical shards would have. Rounds that other processes disturbed are left out;
what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.ddp_scaling import CPU_MODELS, Starter
from benchmarks.harness import Figures, Measurement, models, rounds
from benchmarks.turns import Turns, take_turns
from ddp_core.errors import UserError

RANKS = (1, 2)


def measure(name: str, count: int) -> Turns:
    """Images per second by case."""
    model = CPU_MODELS[name]
    plain, sharded = Starter(model), Starter(replace(model, options=f"{model.options} --reproducible"))
    cases: dict[str, Callable[[], float]] = {}
    for ranks in RANKS:
        cases[case(ranks, "without")] = partial(plain.together, ranks, model.batch)
        cases[case(ranks, "with")] = partial(sharded.together, ranks, model.batch)
    cases[case(1, "without, again")] = partial(plain.together, 1, model.batch)
    return take_turns(cases, count, unit=f"images/s, {name}")


def case(ranks: int, how: str) -> str:
    """The name of a case."""
    return f"{ranks} rank{'s' if ranks > 1 else ''}, {how}"


def _summary(turns: Turns) -> Figures:
    """How many times as long a step takes."""
    if not turns.enough:
        return {}
    times: Figures = {f"times_on_{n}": turns.ratio(case(n, "without"), case(n, "with")).rounded(3) for n in RANKS}
    return times | {"noise": turns.ratio(case(1, "without, again"), case(1, "without")).rounded(3)}


def _rows(name: str, turns: Turns) -> list[list[str]]:
    rows = []
    for ranks in RANKS:
        without, sharded = case(ranks, "without"), case(ranks, "with")
        if not turns.enough:
            rows.append([name, str(ranks), "not measured", "not measured", ""])
            continue
        times = turns.ratio(without, sharded)
        rows.append(
            [name, str(ranks), f"{turns.values(without):,.0f}", f"{turns.values(sharded):,.0f}", f"{times:.2f}"]
        )
    return rows


def compare(arguments: argparse.Namespace) -> Figures:
    """All networks. Errors: UserError."""
    names = [name.strip() for name in arguments.models.split(",")]
    if unknown := [name for name in names if name not in CPU_MODELS]:
        raise UserError(f"--models {unknown[0]}: known are {', '.join(CPU_MODELS)}")
    found, rows = {}, []
    for name in names:
        turns = measure(name, arguments.rounds)
        batch = {"global_batch": CPU_MODELS[name].batch}
        found[name] = {**batch, **turns.account(), **_summary(turns), "rounds": turns.rounded()}
        rows += _rows(name, turns)
    columns = ["model", "ranks", "images/s without", "images/s with --reproducible", "times as long"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}


main = Measurement("reproducible_cost", __doc__, compare, (models("small,resnet18", list(CPU_MODELS)), rounds(5)))

if __name__ == "__main__":
    sys.exit(main())
