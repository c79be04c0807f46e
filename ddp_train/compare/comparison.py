"""Compares groups of runs: means with their spread, and whether a difference exceeds the spread. Pure.

The rule: a group has one value per seed (for times, one per run). Two groups differ in an outcome if the 95% interval
of the difference of their means (Welch's t test, student.py) excludes zero; otherwise the difference is within the
spread. A single value has no spread: the verdict is "unknown" then. Multiple comparisons are not corrected for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from ddp_train.compare.grouping import Difference, Group, differences, groups_of, seed
from ddp_train.compare.outcomes import Outcome, outcomes, own_columns
from ddp_train.compare.student import Welch, welch
from ddp_train.report.json_value import Value
from ddp_train.report.read_run import RunRecord

Verdict = Literal["differs", "within", "unknown", "equal"]

RULE = (
    "Means are of finished runs, one value for each seed (of times, for each run). A difference counts where the 95%"
    " interval of the difference of the means (Welch's t test) leaves out zero. Of many comparisons one in twenty does"
    " so by chance."
)


@dataclass(frozen=True)
class Sample:
    """The values of an outcome in a group. lost: finished runs without one, as for a target not reached."""

    values: tuple[float, ...]
    lost: int = 0

    @property
    def mean(self) -> float | None:
        """The mean of the values; None where there is no value."""
        return fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample (n - 1); None for fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Against:
    """A group compared with the first one in one outcome. change: difference of the means; words: the verdict as text.

    differs: the interval excludes zero, or neither group has a spread; unknown: a group has a single value.
    """

    group: str
    outcome: Outcome
    change: float
    test: Welch | None
    verdict: Verdict
    words: str

    @property
    def difference(self) -> str:
        """The change of the means in words."""
        return self.outcome.change(self.change) + self.outcome.unit

    @property
    def interval(self) -> str:
        """The 95% interval of the difference in words; `-` where it is not known."""
        if self.test is None:
            return "-"
        return f"{self.outcome.change(self.test.low)} to {self.outcome.change(self.test.high)}"


@dataclass(frozen=True)
class Comparison:
    """A whole comparison. samples: outcome's key -> group's name -> its values; notes: lines for the reader."""

    groups: tuple[Group, ...]
    outcomes: tuple[Outcome, ...]
    samples: dict[str, dict[str, Sample]]
    against: tuple[Against, ...]
    differences: tuple[Difference, ...]
    target: float | None
    notes: tuple[str, ...]


def compare(runs: Sequence[RunRecord], target: float | None = None) -> Comparison:
    """Compare runs with the group of the first one. target: an accuracy; None: the runs' own, if it is the same."""
    groups = groups_of(runs)
    target = target if target is not None else _target(runs)
    known = []
    samples: dict[str, dict[str, Sample]] = {}
    for outcome in outcomes(target, own_columns(runs)):
        of_groups = {group.name: _sample(group, outcome) for group in groups}
        if any(sample.values for sample in of_groups.values()):
            known.append(outcome)
            samples[outcome.key] = of_groups
    base, *others = groups
    against = [_against(base, group, outcome, samples[outcome.key]) for group in others for outcome in known]
    return Comparison(
        groups=groups,
        outcomes=tuple(known),
        samples=samples,
        against=tuple(one for one in against if one is not None),
        differences=differences(groups),
        target=target,
        notes=tuple(_notes(groups, samples)),
    )


def _target(runs: Sequence[RunRecord]) -> float | None:
    """The target accuracy of the runs, if all that have one have the same; else None."""
    found = {Value(run.config.get("target")).number for run in runs} - {None}
    return next(iter(found)) if len(found) == 1 else None


def _sample(group: Group, outcome: Outcome) -> Sample:
    values: list[float] = []
    by_seed: dict[int, list[float]] = {}
    lost = 0
    for run in group.counted:
        value = outcome.read(run)
        if value is None:
            lost += 1
        elif outcome.by_seed and (drawn := seed(run)) is not None:
            by_seed.setdefault(drawn, []).append(value)
        else:
            values.append(value)
    return Sample((*map(fmean, by_seed.values()), *values), lost)


def _against(base: Group, group: Group, outcome: Outcome, samples: dict[str, Sample]) -> Against | None:
    """Compare two groups in one outcome. None where one has no value or lost some: a mean of the rest would mislead."""
    first, second = samples[base.name], samples[group.name]
    if first.mean is None or second.mean is None or first.lost or second.lost:
        return None
    change, test = second.mean - first.mean, welch(first.values, second.values)
    verdict, words = _verdict(base, group, outcome, samples, test)
    return Against(group.name, outcome, change, test, verdict, words)


def _verdict(
    base: Group, group: Group, outcome: Outcome, samples: dict[str, Sample], test: Welch | None
) -> tuple[Verdict, str]:
    first, second = samples[base.name], samples[group.name]
    single = [one.name for one, sample in ((base, first), (group, second)) if len(sample.values) == 1]
    what = "seed" if outcome.by_seed and any(seed(run) is not None for run in (*base.runs, *group.runs)) else "run"
    if len(single) == 2:
        return "unknown", f"one {what} each: the spread is unknown"
    if single:
        return "unknown", f"one {what} of {single[0]}: its spread is unknown"
    if test is None:
        return ("equal", "equal") if first.mean == second.mean else ("differs", "differs, and neither has any spread")
    if test.low <= 0 <= test.high:
        return "within", "within the spread"
    return "differs", "differs"


def _notes(groups: Sequence[Group], samples: dict[str, dict[str, Sample]]) -> list[str]:
    found = []
    for group in groups:
        if left := len(group.runs) - len(group.counted):
            runs = "1 run is" if left == 1 else f"{left} runs are"
            found.append(f"{group.name}: {runs} not finished, and in no mean")
        seeds = [drawn for run in group.counted if (drawn := seed(run)) is not None]
        again = sorted({drawn for drawn in seeds if seeds.count(drawn) > 1})
        if again:
            words = f"seed{'s' * (len(again) > 1)} {', '.join(map(str, again))}"
            found.append(f"{group.name}: several runs of {words} count as one, but for times")
        if (sample := samples.get("seconds_to_target", {}).get(group.name)) is not None and sample.lost:
            found.append(
                f"{group.name}: {sample.lost} of {len(group.counted)} finished runs have not reached the target"
            )
    splits = {run.split for group in groups for run in group.counted if run.best is not None}
    if len(splits) > 1:
        found.append("accuracies on a test and on a validation split are not compared with one another")
    if "test" in splits:
        found.append("a best test accuracy is chosen on the test split itself, and is therefore a little too high")
    return found


def to_json(comparison: Comparison) -> dict[str, object]:
    """The comparison as plain data: docs/compare.md."""
    return {
        "schema": "ddp-train-compare/1",
        "groups": [
            {
                "name": group.name,
                "label": group.label,
                "runs": [
                    {"folder": str(run.folder), "seed": seed(run), "finished": run in group.counted}
                    for run in group.runs
                ],
                "outcomes": {
                    outcome.key: {
                        "mean": sample.mean,
                        "standard_deviation": sample.deviation,
                        "n": len(sample.values),
                        "values": list(sample.values),
                    }
                    for outcome in comparison.outcomes
                    if (sample := comparison.samples[outcome.key][group.name]).values
                },
            }
            for group in comparison.groups
        ],
        "against": comparison.groups[0].name,
        "comparisons": [
            {
                "group": one.group,
                "outcome": one.outcome.key,
                "difference": one.change,
                "low": None if one.test is None else one.test.low,
                "high": None if one.test is None else one.test.high,
                "p": None if one.test is None else one.test.p,
                "verdict": one.verdict,
            }
            for one in comparison.against
        ],
        "differences": [
            {"kind": one.kind, "name": one.name, "values": dict(one.values)} for one in comparison.differences
        ],
        "target": comparison.target,
        "notes": list(comparison.notes),
    }
