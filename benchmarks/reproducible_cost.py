"""What --reproducible costs: whole training steps with it and without, on one rank and on two, in turns.

    python -m benchmarks.reproducible_cost [--models small,resnet18] [--rounds 5] [--out NAME]

Each case is a start of `launch.py` with the trainer's own steps on synthetic images, as in ddp_scaling.py; the global
batch is the same. Without the option, one rank has all cores as threads, and two share them; with it each rank has the
threads that one rank for each of the 8 logical shards would have. Rounds that other processes disturbed are left out;
what counts is the ratio within a round. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.ddp_scaling import CPU_MODELS, Starter
from benchmarks.machine import describe_machine, publish
from benchmarks.turns import Turns, take_turns

RANKS = (1, 2)


def measure(name: str, rounds: int, folder: Path) -> Turns:
    """Images per second by case."""
    model = CPU_MODELS[name]
    plain = Starter(model, folder / "plain")
    sharded = Starter(replace(model, options=f"{model.options} --reproducible"), folder / "reproducible")
    for place in ("plain", "reproducible"):
        (folder / place).mkdir()
    cases: dict[str, Callable[[], float]] = {}
    for ranks in RANKS:
        cases[case(ranks, "without")] = partial(plain.together, ranks, model.batch)
        cases[case(ranks, "with")] = partial(sharded.together, ranks, model.batch)
    cases[case(1, "without, again")] = partial(plain.together, 1, model.batch)
    return take_turns(cases, rounds, unit=f"images/s, {name}")


def case(ranks: int, how: str) -> str:
    """The name of a case."""
    return f"{ranks} rank{'s' if ranks > 1 else ''}, {how}"


def _summary(turns: Turns) -> dict[str, object]:
    """How many times as long a step takes."""
    if not turns.enough:
        return {}
    times: dict[str, object] = {
        f"times_on_{n}": turns.ratio(case(n, "without"), case(n, "with")).rounded(3) for n in RANKS
    }
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


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproducible_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="small,resnet18", help=f"of {', '.join(CPU_MODELS)} [small,resnet18]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="undisturbed rounds [5]")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    names = [name.strip() for name in arguments.models.split(",")]
    if unknown := [name for name in names if name not in CPU_MODELS]:
        parser.error(f"--models {unknown[0]}: known are {', '.join(CPU_MODELS)}")
    machine = describe_machine()
    found: dict[str, object] = {}
    rows: list[list[str]] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            turns = measure(name, arguments.rounds, Path(folder))
        rates = [{case: round(rate) for case, rate in taken.items()} for taken in turns.rounds]
        found[name] = {
            "global_batch": CPU_MODELS[name].batch,
            **turns.account(),
            **_summary(turns),
            "rounds": rates,
        }
        rows += _rows(name, turns)
    columns = ["model", "ranks", "images/s without", "images/s with --reproducible", "times as long"]
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.reproducible_cost --models {','.join(names)} --rounds {arguments.rounds}",
        "machine": machine,
        "models": found,
        "table": {"columns": columns, "rows": rows},
    }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
