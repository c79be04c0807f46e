"""One whole training run: wall time and accuracy.

    python -m benchmarks.training_run quick-cifar10 -- --preset quick --data-dir DIR

Everything after -- goes to `python launch.py --auto`. The result is written to benchmarks/results/NAME.json
with the command, the machine, and the history of the run.

The wall time runs from the command to its end; epochs include evaluation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Figures, Measurement, Option
from benchmarks.programs import LAUNCH


def measure(arguments: argparse.Namespace) -> Figures:
    """Run the launcher; times are in seconds. Errors: SystemExit where the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run([*LAUNCH, "--auto", *arguments.options, "--out-dir", folder], stdout=sys.stderr)
        wall = time.monotonic() - started
        if done.returncode != 0:
            raise SystemExit(f"error: the run ended with status {done.returncode}; nothing was written")
        history = json.loads((Path(folder) / "training_history.json").read_text())
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


OPTIONS = (
    Option("out", metavar="name", help="the result is benchmarks/results/NAME.json"),
    Option("options", nargs="*", help="options of launch.py, after --"),
)
main = Measurement("training_run", measure, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
