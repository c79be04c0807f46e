"""The page of a comparison: a Comparison to HTML, with the templates and the style of a run's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ddp_train.compare.comparison import RULE, Comparison, to_json
from ddp_train.compare.grouping import Group
from ddp_train.compare.outcomes import Outcome, own_columns
from ddp_train.compare.table import run_row, seeds, spread
from ddp_train.observers.epoch_table import loss, percent
from ddp_train.report.charts import Chart, Series, chart, linear_ticks
from ddp_train.report.json_value import Value
from ddp_train.report.render import render

COLORS = 8
"""Number of colors in the style's palette: curves of further groups are left out, and the page says so."""
CURVES: Sequence[tuple[str, str, Callable[[float], str], bool]] = (
    ("Test accuracy", "test_accuracy", percent, False),
    ("Validation accuracy", "val_accuracy", percent, False),
    ("Train loss", "train_loss", loss, True),
    ("Test loss", "test_loss", loss, True),
    ("Validation loss", "val_loss", loss, True),
)
"""Title, column, words of a value, and whether the scale may be logarithmic."""
MEAN = "mean of a group's finished runs"
WIDTH, LEFT, RIGHT, ROW, TOP = 440.0, 40.0, 16.0, 26.0, 10.0
STRIPS = ("best_test_accuracy", "best_val_accuracy", "examined_accuracy", "seconds", "images_per_second", "energy_kwh")


@dataclass(frozen=True)
class StripRow:
    """A group's values as dots, in x. low, high: the mean minus and plus the standard deviation, None without one."""

    name: str
    color: int
    y: float
    dots: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Strip:
    """Every value of an outcome, a row for each group. ticks: (x, label)."""

    title: str
    summary: str
    rows: tuple[StripRow, ...]
    ticks: tuple[tuple[float, str], ...]

    @property
    def bottom(self) -> float:
        """The y at which the rows end."""
        return TOP + len(self.rows) * ROW


def page(comparison: Comparison) -> str:
    """The HTML of a comparison."""
    groups = comparison.groups
    count = sum(len(group.runs) for group in groups)
    settings = "1 setting" if len(groups) == 1 else f"{len(groups)} settings"
    kinds = {"setting": "Settings", "command": "Command", "data": "Data", "version": "Versions", "machine": "Machine"}
    found = {
        words: [
            [one.name, *(one.values[group.name] for group in groups)]
            for one in comparison.differences
            if one.kind == kind
        ]
        for kind, words in kinds.items()
    }
    against = [
        (one.group, one.outcome.name, one.difference, one.interval, one.words, one.verdict)
        for one in comparison.against
    ]
    return render(
        "compare.html",
        title=f"{count} runs, {settings}",
        groups=[
            (group.name, place % COLORS + 1, group.label, len(group.runs), seeds(group))
            for place, group in enumerate(groups)
        ],
        names=[group.name for group in groups],
        outcomes=[
            [one.name, *(spread(one, comparison.samples[one.key][group.name]) for group in groups)]
            for one in comparison.outcomes
        ],
        against=against,
        base=groups[0].name,
        rule=RULE,
        notes=comparison.notes,
        strips=[one for outcome in comparison.outcomes if (one := _strip(comparison, outcome)) is not None],
        charts=_charts(groups),
        left_out=[group.name for group in groups[COLORS:]],
        differences={words: rows for words, rows in found.items() if rows},
        runs=[(*run_row(group, run), run in group.counted) for group in groups for run in group.runs],
        data=to_json(comparison),
    )


def _charts(groups: Sequence[Group]) -> list[Chart]:
    """The means of the groups over the epochs."""
    numbers = sorted({epoch for group in groups for run in group.counted for epoch in _epochs(run.epochs)})
    found = []
    own = [(name, name, "{:.4g}".format, True) for name in own_columns(run for group in groups for run in group.runs)]
    for title, column, form, may_be_log in (*CURVES, *own) if numbers else ():
        series = [
            Series(group.name, _means(group, column, numbers), place + 1) for place, group in enumerate(groups[:COLORS])
        ]
        found.append(chart(title, MEAN, numbers, series, form, may_be_log=may_be_log))
    return [one for one in found if one is not None]


def _epochs(rows: Sequence[object]) -> list[int]:
    return [epoch for row in rows if (epoch := Value(row)["epoch"].whole) is not None]


def _means(group: Group, column: str, epochs: Sequence[int]) -> list[float | None]:
    """The mean of a group's finished runs in each epoch; None where not all of them have a value."""
    of_runs = [dict(zip(_epochs(run.epochs), run.column(column), strict=False)) for run in group.counted]
    means: list[float | None] = []
    for epoch in epochs:
        values = [known for of_run in of_runs if (known := of_run.get(epoch)) is not None]
        means.append(fmean(values) if values and len(values) == len(of_runs) else None)
    return means


def _strip(comparison: Comparison, outcome: Outcome) -> Strip | None:
    """The picture of an outcome; None where it is not in STRIPS, or has no two different values."""
    samples = [(group, comparison.samples[outcome.key][group.name]) for group in comparison.groups[:COLORS]]
    values = [value for _, sample in samples for value in sample.values]
    if outcome.key not in STRIPS or len(values) < 2 or min(values) == max(values):
        return None
    ends = [*values]
    for _, sample in samples:
        if sample.mean is not None and sample.deviation is not None:
            ends += [sample.mean - sample.deviation, sample.mean + sample.deviation]
    ticks = linear_ticks(min(ends), max(ends), 4)

    def x(value: float) -> float:
        """The x position of a value in the picture."""
        return round(LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT), 1)

    rows: list[StripRow] = []
    for place, (group, sample) in enumerate(samples):
        if sample.mean is None:
            continue
        mean, deviation = sample.mean, sample.deviation
        rows.append(
            StripRow(
                name=group.name,
                color=place + 1,
                y=TOP + (len(rows) + 0.5) * ROW,
                dots=tuple(map(x, sample.values)),
                mean=x(mean),
                low=None if deviation is None else x(mean - deviation),
                high=None if deviation is None else x(mean + deviation),
            )
        )
    words = (f"{group.name}: {spread(outcome, sample)}" for group, sample in samples if sample.values)
    return Strip(outcome.name, "; ".join(words), tuple(rows), tuple((x(tick), outcome.words(tick)) for tick in ticks))
