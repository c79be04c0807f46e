"""One training run through the launcher, measured: wall time from the command to its end, and accuracy.

    python -m benchmarks.training_run quick-cifar10 -- --preset quick --data-dir DIR

Everything after -- goes to `python launch.py --auto`. The result is written to benchmarks/results/NAME.json
with the command, the machine, and the history of the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine


def measure(options: list[str]) -> dict[str, object]:
    """Run the launcher with `options`; times are in seconds. Errors: CalledProcessError when the run fails."""
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "launch.py"), "--auto", *options, "--out-dir", folder]
        started = time.monotonic()
        subprocess.run(command, check=True)
        wall = time.monotonic() - started
        history = json.loads((Path(folder) / "training_history.json").read_text())
    epochs = history["epochs"]
    return {
        "schema": "ddp-benchmark/1",
        "command": " ".join(["python", "launch.py", "--auto", *options]),
        "machine": machine,
        "world_size": history["environment"]["world_size"],
        "precision": history["environment"]["precision"],
        "wall_seconds": round(wall, 1),
        "epoch_seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "last_test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": history["best"]["test_accuracy"],
        "best_epoch": history["best"]["epoch"],
        "epochs": epochs,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_run", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the result is benchmarks/results/NAME.json")
    parser.add_argument("options", nargs="*", help="options of launch.py, after --")
    arguments = parser.parse_args(argv)
    try:
        result = measure(arguments.options)
    except subprocess.CalledProcessError as error:
        print(f"error: the run ended with status {error.returncode}; nothing was written", file=sys.stderr)
        return 1
    path = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['wall_seconds']} s, best test accuracy {result['best_test_accuracy']:.4f} at epoch "
        f"{result['best_epoch']}: {path.relative_to(ROOT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
