"""The shape of the source tree: folders of one subject, contracts by folder, functions that are read at once."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

PACKAGES = ("ddp_core", "gpu_topology", "ddp_launch", "ddp_train")
MOST_MODULES, MOST_AT_TOP, MOST_LAYERS, MOST_LINES = 20, 12, 18, 40
READING_ORDER = (
    "launch.py",
    "ddp_launch/main.py",
    "ddp_launch/run/planner.py",
    "ddp_launch/plan/plan.py",
    "ddp_launch/run/agent.py",
    "ddp_train/main.py",
    "ddp_train/assemble/build.py",
    "ddp_train/engine/trainer.py",
)


def modules(package: str) -> list[Path]:
    return [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_crowded(package: str) -> None:
    counts = Counter(path.parent for path in modules(package))
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_MODULES}
    assert counts[Path(package)] <= MOST_AT_TOP


def test_contracts_name_folders_in_few_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 6
    for contract in contracts:
        layers = contract.get("layers", ())
        assert len(layers) <= MOST_LAYERS
        for container in contract.get("containers", ()):
            held = {name for layer in layers for name in layer.split(" | ")}
            there = {path.parts[1].removesuffix(".py") for path in modules(container)} - {"__init__"}
            assert held == there, "every folder and loose module of the package has its layer"


@pytest.mark.parametrize("file", READING_ORDER)
def test_functions_of_the_reading_order_are_short(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {one.name: (one.end_lineno or one.lineno) - one.lineno + 1 for one in functions}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}
