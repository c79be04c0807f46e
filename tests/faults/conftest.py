"""Fixtures of the fault tests: runs that leave nothing behind, and how often a fault is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ddp_launch.conftest import Launcher, launcher
from tests.faults.runs import Runs

__all__ = ["launcher"]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`times(short, whole)`: how often, in a usual test run and under --whole."""

    def choose(short: int, whole: int) -> int:
        return whole if request.config.getoption("--whole") else short

    return choose


@pytest.fixture
def runs(launcher: Launcher) -> Iterator[Runs]:
    """Runs in a fresh folder; afterwards none may be alive."""
    yield Runs(launcher)


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, list[dict[str, object]]]]:
    """`references(options)`: digest and history of the run that nothing happened to; each is trained once."""
    known: dict[str, tuple[str, list[dict[str, object]]]] = {}

    def reference(options: str) -> tuple[str, list[dict[str, object]]]:
        if options not in known:
            made = Runs(Launcher(Path(tmp_path_factory.mktemp("reference"))))
            # One that takes part and lets everything happen as it would, so that the two runs have the same options.
            status, text = made.finish("run", options, accidents=[{"rank": 0, "step": -1, "what": "kill"}])
            assert status == 0, text
            known[options] = made.result("run")
        return known[options]

    return reference
