"""Which measurements there are. The docstring of each starts with what it measures and ends with how to read it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """A measurement: `python -m benchmarks NAME` calls `main` of `benchmarks.NAME`. needs: what the user must bring."""

    name: str
    needs: str = ""

    @property
    def module(self) -> str:
        """The module, which is imported only to measure: most of them import torch."""
        return f"benchmarks.{self.name}"

    @cached_property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the module's docstring, each as one line."""
        source = Path(__file__).with_name(f"{self.name}.py").read_text()
        return [" ".join(part.split()) for part in (ast.get_docstring(ast.parse(source)) or "").split("\n\n")]

    @property
    def question(self) -> str:
        """What is measured, as a sentence."""
        return self.paragraphs[0]


_NAMES = (
    "input_pipeline", "augmentation", "crop", "cpu_speed", "limit", "step_overhead", "control_cost", "ddp_scaling",
    "mixed_ranks", "reproducible_cost", "collectives", "checkpoint_cost", "optimizers", "launch_overhead", "start_up",
    "restart_recovery", "failing_programs", "training_run", "time_to_accuracy", "topology_report", "topology_peers",
    "monitor_overhead", "subset_search", "stall_cost", "hosts_start", "library_loops",
)  # fmt: skip
_NEED_DATA = ("training_run", "time_to_accuracy")
CATALOGUE = tuple(Benchmark(name, needs="data" if name in _NEED_DATA else "") for name in _NAMES)
"""All measurements, in the order of the page."""


def find(name: str) -> Benchmark | None:
    """The benchmark of that name; a hyphen counts as an underscore."""
    return next((entry for entry in CATALOGUE if entry.name == name.replace("-", "_")), None)


def made_by(result: Mapping[str, Any]) -> str | None:
    """The name of the measurement that a result comes from, by its command."""
    command = result.get("command", "")
    if found := re.match(r"python -m benchmarks\.(\w+)", command):
        return found[1]
    return "training_run" if command.startswith("python launch.py") else None
