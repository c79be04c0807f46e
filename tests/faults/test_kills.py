"""Ranks, launchers and whole runs that are killed at random steps end with the same bits as those that are not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults.runs import HEAVIEST, SGD, STEPS, Runs

Times = Callable[[int, int], int]
References = Callable[[str], tuple[str, list[dict[str, object]]]]
KINDS = {"sgd": SGD, **HEAVIEST}
pytestmark = pytest.mark.timeout(3600)  # up to 20 starts of a run, on a machine that others use too


def points(seed: str, count: int, what: str) -> list[dict[str, object]]:
    """`count` random steps at which a random rank meets `what`, before its forward pass or behind the update."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, STEPS), count))
    found = [{"rank": draw.randrange(2), "step": s, "what": what, "after": draw.random() < 0.5} for s in steps]
    print(f"seed {seed!r}: {found}")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_killed_ranks_are_started_again(kind: str, runs: Runs, references: References, times: Times) -> None:
    if kind != "muon" and times(0, 1) == 0:
        pytest.skip("the heaviest combination stands for the others in a short run")
    accidents = points(f"ranks {kind}", times(1, 20), "kill")
    launch = f"--max-restarts {len(accidents)}"
    status, text = runs.finish("run", KINDS[kind], accidents=accidents, launch=launch, timeout_s=1800)
    assert status == 0, text
    assert len(list(runs.folder.glob("accidents-run/happened-*"))) == len(accidents)
    assert runs.result("run") == references(KINDS[kind])


@pytest.mark.parametrize("what", ["launcher", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_are_resumed(kind: str, what: str, runs: Runs, references: References, times: Times) -> None:
    if (kind, what) != ("muon", "launcher") and times(0, 1) == 0:
        pytest.skip("the heaviest combination stands for the others in a short run")
    accidents = points(f"{what} {kind}", times(1, 10), what)
    for _ in accidents:
        status, text = runs.finish("run", f"{KINDS[kind]} --resume auto", accidents=accidents, timeout_s=300)
        assert status == -9, text
        runs.until_gone()
    status, text = runs.finish("run", f"{KINDS[kind]} --resume auto", accidents=accidents, timeout_s=300)
    assert status == 0, text
    assert runs.result("run") == references(KINDS[kind])
