"""Finds where the host waits for a real GPU, by torch.cuda.set_sync_debug_mode("warn"), to check the ghost's list.

python scripts/gpu_session/host_waits.py [--only CONFIGURATION ...]

Prints JSON: for each configuration of tests/ghost/test_waits.py the places, each with how often it waited in a run of
eight steps. Exit status 1 where a place waits in every step: by the ghost's list there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.ghost.runs import STEPS, make
from tests.ghost.test_waits import NOWHERE

ROOT = Path(__file__).resolve().parents[2]


def place() -> str:
    """The innermost line of the project that is being run, but for this file and the ghost."""
    own = (str(Path(__file__).parent), str(ROOT / "tests" / "ghost"))
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
    frames = [frame for frame in frames if not frame.filename.startswith(own) and "site-packages" not in frame.filename]
    if not frames:
        return "?"
    last = frames[-1]
    return f"{Path(last.filename).relative_to(ROOT)}:{last.lineno} {last.name}"


def waits(options: str, folder: Path) -> Counter[str]:
    """The places where a run waits, after a first run that loads kernels and makes workspaces."""
    make(options, folder / "first").trainer.fit()
    run = make(options, folder / "second")
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        """Count the place of a warning about a wait."""
        if "synchronizing CUDA operation" in str(message):
            found[place()] += 1

    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run.trainer.fit()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def main() -> int:
    """Every configuration, or those that are named; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=tuple(NOWHERE), default=tuple(NOWHERE))
    document: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "steps": STEPS, "configurations": {}}
    bad = False
    for name in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = waits(NOWHERE[name], Path(folder))
            except Exception as error:
                traceback.print_exc()
                document["configurations"][name], bad = {"error": repr(error)}, True
                continue
        each_step = sorted(where for where, count in found.items() if count >= STEPS - 1)
        bad |= bool(each_step)
        document["configurations"][name] = {"in_every_step": each_step, "all": dict(found.most_common())}
    print(json.dumps(document, indent=1))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
