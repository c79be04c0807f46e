"""The short forms against the kept ratios: what is held, what fell behind, and what could not be measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmarks import check as checking
from benchmarks.__main__ import main
from benchmarks.catalogue import made_by
from benchmarks.check import SHORT, Ratios, Row, Short, check, compare, not_listed
from benchmarks.report import read_results
from benchmarks.turns import Spread

RESULTS = read_results()
SCALING = next(short for short in SHORT if short.benchmark == "ddp_scaling")


def kept(short: Short) -> Ratios:
    return {name: s for r in RESULTS.values() if made_by(r) == short.benchmark for name, s in short.ratios(r).items()}


@pytest.mark.parametrize("short", SHORT, ids=lambda short: short.benchmark)
def test_every_kept_result_has_ratios_that_hold_against_themselves(short: Short, capsys: Any) -> None:
    found = kept(short)
    assert found
    for name, spread in found.items():
        assert Row("a", name, spread, spread).verdict == "held"
        assert 0 < Row("a", name, spread, None).bound <= 0.9 * spread.median
    with pytest.raises(SystemExit):
        main([short.benchmark, "--help"])
    told = capsys.readouterr().out
    assert all(f"{word.partition('=')[0]} " in told for word in short.words.split() if word.startswith("--"))


def test_each_measurement_has_a_short_form_or_a_reason() -> None:
    assert not_listed() == set()


@pytest.mark.parametrize(
    ("recorded", "now", "verdict"),
    [
        (Spread(1.0, 0.99, 1.01), Spread(0.8, 0.7, 0.91), "held"),
        (Spread(1.0, 0.99, 1.01), Spread(0.8, 0.7, 0.89), "BEHIND"),
        (Spread(1.0, 0.9, 1.05), Spread(0.7, 0.7, 0.71), "held"),
        (Spread(1.0, 0.9, 1.05), Spread(0.6, 0.6, 0.69), "BEHIND"),
        (Spread(2.0, 2.0, 2.0), Spread(1.35, 1.35, 1.35), "held"),
        (Spread(2.0, 2.0, 2.0), Spread(1.33, 1.33, 1.33), "BEHIND"),
        (Spread(1.0, 0.2, 1.8), Spread(0.5, 0.4, 0.51), "held"),
    ],
)
def test_the_tolerance_follows_from_the_recorded_spread(recorded: Spread, now: Spread, verdict: str) -> None:
    assert Row("a", "b", recorded, now).verdict == verdict


def test_what_was_not_measured_says_why() -> None:
    recorded = {"x": Spread(1.0, 0.9, 1.1)}
    for result, why, said in (
        ({}, "skipped: nvitop not installed", "skipped: nvitop not installed"),
        ({"not_measured": "2 undisturbed rounds"}, "", "2 undisturbed rounds"),
    ):
        (row,) = compare(Short("crop", "", lambda result: result["nothing"]), recorded, result, why)
        assert (row.now, row.verdict) == (None, said)
    # A competitor that is not installed; networks that the short form leaves out.
    overheads = next(short for short in SHORT if short.benchmark == "step_overhead")
    result = copy.deepcopy(next(r for r in RESULTS.values() if made_by(r) == "step_overhead"))
    del result["over_bare_us"]["accelerate"]
    verdicts = {row.name.split()[1]: row.verdict for row in compare(overheads, kept(overheads), result, "")}
    assert verdicts == {"accelerate": "skipped: not installed", "lightning": "held"}
    assert {row.name.split(":")[0] for row in compare(SCALING, kept(SCALING), _scaling(1.0), "")} == {"small"}


def _scaling(factor: float) -> dict[str, Any]:
    """A result of the short form, so many times as good as the kept one."""
    small = next(r for n, r in RESULTS.items() if n == "ddp-scaling-2-cores")["models"]["small"]
    part = {
        name: {key: factor * value for key, value in small[name].items()} for name in small if name.startswith("two_")
    }
    return {"command": "", "models": {"small": part}}


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.8, 1)])
def test_the_status_is_1_where_something_fell_behind(
    factor: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measured = []
    monkeypatch.setattr(checking, "_measure", lambda short: measured.append(short) or (_scaling(factor), ""))
    assert check(RESULTS, ["ddp_scaling"]) == status
    assert len(measured) == 1 + status, "what seems to be behind is measured once more"
    out = capsys.readouterr().out
    now = _scaling(factor)["models"]["small"]["two_ranks_over_one_process"]["median"]
    assert (f"fell behind: ddp_scaling, small: two ranks over one process: {now:.2f}" in out) is (status == 1)


def test_a_real_one(capsys: Any) -> None:
    assert main(["check", "crop"]) in (0, 1), "speed is nothing for a test"
    out = capsys.readouterr().out
    assert "pixels over windows" in out and out.count(" held") + out.count(" BEHIND") == 2


def test_an_unknown_name_is_one_line(capsys: Any) -> None:
    assert main(["check", "speed"]) == 2
    assert capsys.readouterr().err.startswith("error: check speed: no short form of that name; known are crop, ")
