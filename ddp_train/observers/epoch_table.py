"""The text of a run: its facts, one aligned row of 79 columns per epoch, and its last line."""

from __future__ import annotations

import math

from ddp_train.observers.records import NO_RANK, Best, EpochRecord, Rank, RunFacts, StepReport

# Heading and width of each column; the mark of a best epoch is the first character of the column after its accuracy.
_HEADINGS = ("epoch", "train loss", "train acc", "loss", "acc", "lr", "images/s", "time")
_WIDTHS = (7, 12, 10, 11, 10, 10, 11, 8)


class EpochTable:
    """Formats the rows, and knows which epoch is the best so far."""

    def __init__(self, epochs: int = 0, best: Rank = NO_RANK, split: str = "test") -> None:
        """`epochs` is shown beside each epoch's number; `best` is the rank of the best epoch before the first row."""
        self._epochs, self._best, self._split = epochs, best, split

    def heading(self) -> str:
        """The names of the columns."""
        names = (f"{self._split} {name}" if name in ("loss", "acc") else name for name in _HEADINGS)
        return "".join(map(str.rjust, names, _WIDTHS))

    def row(self, record: EpochRecord) -> tuple[str, bool]:
        """The epoch's line, and whether it is the best so far (it is then marked `*`)."""
        is_best = record.rank > self._best
        if is_best:
            self._best = record.rank
        values = (
            f"{record.epoch}/{self._epochs}" if self._epochs else str(record.epoch),
            loss(record.train_loss),
            percent(record.train_accuracy),
            loss(record.loss),
            percent(record.accuracy),
            number(record.learning_rate, ".3g"),
            number(record.images_per_second, ",.0f"),
            duration(record.seconds),
        )
        cells = [*map(str.rjust, values, _WIDTHS)]
        if is_best:
            cells[5] = "*" + cells[5][1:]
        return "".join(cells), is_best


class OwnTable(EpochTable):
    """The rows of a user's own loop: the columns are the values that it logs."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs)
        self._names: tuple[str, ...] | None = None

    def heading(self) -> str:
        """Empty: the columns are not known before the first row, which has the heading above it."""
        return ""

    def row(self, record: EpochRecord) -> tuple[str, bool]:
        """The epoch's line, with the heading above it where the columns have changed."""
        values = {
            "epoch": f"{record.epoch}/{self._epochs}",
            "train loss": loss(record.train_loss),
            **{name: number(value, ".4g") for name, value in record.columns.items()},
            "lr": number(record.learning_rate, ".3g"),
            "samples/s": number(record.images_per_second, ",.0f"),
            "time": duration(record.seconds),
        }
        widths = [max(7, len(name), len(value)) + 2 for name, value in values.items()]
        line = "".join(map(str.rjust, values.values(), widths))
        if tuple(values) != self._names:
            line = "".join(map(str.rjust, values, widths)) + "\n" + line
            self._names = tuple(values)
        return line, False


def describe(facts: RunFacts) -> list[str]:
    """Two lines: the model and its data; the ranks, the global batch and the length of the run."""
    ranks = "1 rank" if facts.world_size == 1 else f"{facts.world_size} ranks"
    first = f"epochs {facts.start_epoch} to {facts.epochs}" if facts.start_epoch > 1 else f"{facts.epochs} epochs"
    steps = f"{facts.steps_per_epoch:,} steps per epoch, " if facts.steps_per_epoch else ""
    return [
        f"{facts.model}, {facts.parameters:,} parameters, on {facts.dataset}",
        f"{ranks} on {facts.device}, global batch {facts.global_batch:,}, {steps}{first}",
    ]


def step_line(report: StepReport, epochs: int) -> str:
    """A line of an epoch that is under way, under the table's first column."""
    at = f"{report.epoch}/{epochs}".rjust(_WIDTHS[0])
    accuracy = "" if math.isnan(report.accuracy) else f"accuracy {percent(report.accuracy)}, "
    values = f"loss {loss(report.loss)}, {accuracy}lr {number(report.learning_rate, '.3g')}"
    step = f"step {report.step:,}" + (f"/{report.steps:,}" if report.steps else "")
    return f"{at}  {step}: {values}, {number(report.images_per_second, ',.0f')} images/s"


def summary(best: Best, seconds: float, out_dir: str, used: str = "") -> str:
    """The last line of a run. used: the run's energy as text, empty if unknown."""
    cost = duration(seconds) + (f", {used}" if used else "")
    if best.accuracy is None:
        return f"finished in {cost}; files in {out_dir}"
    accuracy = percent(best.accuracy) + balanced_note(best.accuracy, best.balanced)
    return f"best {best.split} accuracy {accuracy} in epoch {best.epoch}; {cost}; files in {out_dir}"


def energy(joules: float) -> str:
    """Joules as 1.23 kWh or 12.3 Wh."""
    wh = joules / 3600
    return f"{wh / 1000:.3g} kWh" if wh >= 100 else f"{wh:.3g} Wh"


def balanced_note(accuracy: float, balanced: float | None) -> str:
    """The balanced accuracy in brackets, where it says more than the accuracy: with classes of different sizes."""
    if balanced is None or not balanced >= 0 or percent(balanced) == percent(accuracy):
        return ""
    return f" (balanced {percent(balanced)})"


def number(value: float, form: str) -> str:
    """`value` by the format `form`, `-` where it is not finite."""
    return format(value, form) if math.isfinite(value) else "-"


def loss(value: float) -> str:
    """A loss with four decimals; in scientific notation from 1e5 on, so that the columns stay aligned."""
    return number(value, ".4f" if abs(value) < 1e5 else ".3e")


def percent(fraction: float) -> str:
    """A fraction of 1 as 12.34%."""
    return number(fraction * 100, ".2f") + ("%" if math.isfinite(fraction) else "")


def duration(seconds: float) -> str:
    """Seconds as 1.2 s, 3m05s or 2h04m; `-` where they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def clock(seconds: float) -> str:
    """Seconds as 0:43 or 1:02:03, for a count that runs down; "-" where they are not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
