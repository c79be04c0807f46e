"""One whole training run: wall time and accuracy.

    python -m benchmarks.training_run quick-cifar10 -- --preset quick --data-dir DIR

Everything after -- goes to `python launch.py --auto`. The result is written to benchmarks/results/NAME.json
with the command, the machine, and the history of the run.

The wall time runs from the command to its end; epochs include evaluation.
"""

from __future__ import annotations

from benchmarks.harness import Arguments, Figures, Option, measurement
from benchmarks.programs import train


@measurement(
    Option("out", metavar="name", help="the result is benchmarks/results/NAME.json"),
    Option("options", nargs="*", help="options of launch.py, after --"),
)
def main(arguments: Arguments) -> Figures:
    """Run launch.py with the given options and keep its history."""
    history, wall = train(["--auto", *arguments.options])
    epochs = history["epochs"]
    return {
        "command": " ".join(["python", "launch.py", "--auto", *arguments.options]),
        "world_size": history["environment"]["world_size"],
        "precision": history["environment"]["precision"],
        "wall_seconds": round(wall, 1),
        "epoch_seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "last_test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": history["best"]["test_accuracy"],
        "best_epoch": history["best"]["epoch"],
        "epochs": epochs,
    }
