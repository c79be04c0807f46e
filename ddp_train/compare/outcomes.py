"""The outcomes of a run, as numbers: one table, in which each outcome is read from a run's record. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ddp_train.observers.epoch_table import duration, loss, percent
from ddp_train.report.json_value import Value
from ddp_train.report.read_run import RunRecord

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Outcome:
    """A number that a run results in. read: gets it from the record, None where there is none; words: formats it;
    change: formats a difference, with its sign, in `unit`.

    by_seed: runs with the same seed are repetitions and count as one value; False (for times): every run counts.
    """

    key: str
    name: str
    read: Callable[[RunRecord], float | None]
    words: Callable[[float], str]
    change: Callable[[float], str]
    unit: str = ""
    by_seed: bool = True


def outcomes(target: float | None, own: Iterable[str] = ()) -> tuple[Outcome, ...]:
    """All outcomes that can be compared. target: an accuracy to be timed; own: columns that users' loops logged."""
    found = [
        *(_accuracy(f"best_{split}_accuracy", f"best {split} accuracy", _best_of(split)) for split in ("test", "val")),
        _accuracy("examined_accuracy", "test accuracy of the best model", _examined),
        *(
            _accuracy(f"final_{split}_accuracy", f"final {split} accuracy", _last(f"{split}_accuracy"))
            for split in ("test", "val")
        ),
        *(_loss(f"final_{split}_loss", f"final {split} loss", _last(f"{split}_loss")) for split in ("test", "val")),
        _loss("final_train_loss", "final train loss", _last("train_loss")),
        *(_own(name) for name in own),
        _of_time("seconds", "training time", training_seconds, duration),
        _of_time("launch_seconds", "time of the launcher", launch_seconds, duration),
        _of_time("images_per_second", "samples per second", _speed, lambda value: f"{value:,.0f}"),
    ]
    if target is not None:
        found.append(_of_time("seconds_to_target", f"time to {target:.4g}", _seconds_to(target), duration))
    found.append(_of_time("energy_kwh", "energy of the GPUs", _energy, lambda value: f"{value:.4g} kWh"))
    return tuple(found)


def _accuracy(key: str, name: str, read: Callable[[RunRecord], float | None]) -> Outcome:
    return Outcome(key, name, read, percent, lambda value: f"{value * 100:+.2f}", " points")


def _loss(key: str, name: str, read: Callable[[RunRecord], float | None]) -> Outcome:
    return Outcome(key, name, read, loss, lambda value: f"{value:+.4f}")


def own_columns(runs: Iterable[RunRecord]) -> list[str]:
    """The columns that the user's own training loops have logged (`ddp_train.Run`)."""
    names = (name for run in runs for row in run.epochs[-1:] for name in Value(row)["columns"].texts)
    return list(dict.fromkeys(names))


def _own(name: str) -> Outcome:
    return Outcome(f"final:{name}", f"final {name}", _last(name), "{:#.4g}".format, "{:+#.4g}".format)


def _of_time(key: str, name: str, read: Callable[[RunRecord], float | None], words: Callable[[float], str]) -> Outcome:
    return Outcome(key, name, read, words, lambda value: ("-" if value < 0 else "+") + words(abs(value)), by_seed=False)


def _best_of(split: str) -> Callable[[RunRecord], float | None]:
    return lambda record: record.best[1] if record.best is not None and record.split == split else None


def _examined(record: RunRecord) -> float | None:
    """Test accuracy of the best model, if the validation split chose that; otherwise it repeats the best accuracy."""
    return record.examined.get("top1") if record.split == "val" else None


def _last(column: str) -> Callable[[RunRecord], float | None]:
    return lambda record: record.column(column)[-1] if record.epochs else None


def launch_seconds(record: RunRecord) -> float | None:
    """Seconds from the launcher's last start to its end; None where the epochs are timed."""
    return record.launches[-1].seconds if record.launches and not record.trained else None


def training_seconds(record: RunRecord) -> float | None:
    """Seconds of all epochs; None where that of one is unknown."""
    seconds = [value for value in record.column("seconds") if value is not None]
    return sum(seconds) if seconds and len(seconds) == len(record.epochs) else None


def _speed(record: RunRecord) -> float | None:
    """Samples per second in the median epoch, since the first one is slower."""
    known = sorted(value for value in record.column("images_per_second") if value is not None)
    return known[len(known) // 2] if known else None


def _seconds_to(target: float) -> Callable[[RunRecord], float | None]:
    def read(record: RunRecord) -> float | None:
        """Seconds to the end of the first epoch with this accuracy; None where no epoch reaches it."""
        passed = 0.0
        pairs = zip(record.column("seconds"), record.column(f"{record.split}_accuracy"), strict=True)
        for seconds, accuracy in pairs:
            if seconds is None:
                return None
            passed += seconds
            if accuracy is not None and accuracy >= target:
                return passed
        return None

    return read


def _energy(record: RunRecord) -> float | None:
    """Energy of the training in kWh, or else what the launcher measured from its start to its end."""
    joules = record.energy_joules
    if joules is None and record.launches and (gpus := record.launches[-1].energy):
        joules = sum(gpu.joules for gpu in gpus)
    return None if joules is None else joules / JOULES_PER_KWH
