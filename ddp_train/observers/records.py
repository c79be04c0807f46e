"""What a run records: the facts and numbers that pass from the trainer to its observers, and the history file.

Observers get RunFacts once, a StepReport now and then, an EpochRecord per epoch, and
the best epoch at the end. Observers (progress display, TensorBoard) never influence training.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from ddp_core.errors import UserError
from ddp_core.files import write_text

SCHEMA = "ddp-train-history/1"
Rank = tuple[float, float]
"""The key by which epochs are compared, the best has the highest: (accuracy, negative loss)."""
NO_RANK: Rank = (-math.inf, -math.inf)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known before the first step."""

    name: str
    model: str
    parameters: int
    dataset: str
    device: str
    world_size: int
    epochs: int
    steps_per_epoch: int
    global_batch: int
    out_dir: str
    gpu_uuids: tuple[str, ...] = ()
    """GPUs of this node's ranks, for the display's memory and utilisation; empty on the CPU."""
    notes: tuple[str, ...] = ()
    """Lines for the user, such as a fallback to another dataset."""
    start_epoch: int = 1
    """The first epoch that this process trains: later than 1 after a resume."""
    start_step: int = 0
    """The steps of that epoch that were done before the resume."""
    steps_before: int = 0
    """The optimizer steps of the run that were done before the resume."""
    split: str = "test"
    """The split that epochs are evaluated on and the best is chosen by: "val" where there is one, else "test"."""
    best: Rank = NO_RANK
    """The rank of the best epoch before `start_epoch`, see `EpochRecord.rank`."""
    own_columns: bool = False
    """Whether this is a user's own loop, whose epochs have the columns that it logs."""
    seconds_before: float = 0.0
    """Time of the part of the run that is not trained again: more than 0 after a resume."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Progress within an epoch."""

    epoch: int
    """From 1."""
    step: int
    """Optimizer steps done in this epoch, from 1 to `steps`."""
    steps: int
    """0 where their number is not known, as for a stream."""
    run_step: int
    """Optimizer steps done in the run."""
    images: int
    """Training images seen in this epoch, over all ranks."""
    loss: float
    """Mean training loss of this epoch so far, over rank 0's share of the images."""
    accuracy: float
    """Fraction of 1, over the same images; NaN where it has no meaning (mixed targets)."""
    learning_rate: float
    images_per_second: float
    """Training images per second over all ranks."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """What techniques report, by name: "gradient_norm" ..."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch. Losses are means over all samples of all ranks, accuracies fractions of 1; NaN is unknown."""

    epoch: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    loss: float
    """On the `split`, like `accuracy`."""
    accuracy: float
    learning_rate: float
    """The rate of the epoch's last step."""
    seconds: float
    """Wall-clock time of the epoch, evaluation included."""
    images_per_second: float
    """Training images per second of training, over all ranks."""
    global_batch: int
    split: str = "test"
    """The split that the epoch was evaluated on: "val" where there is one, else "test"."""
    balanced_accuracy: float = math.nan
    """On the `split`: the mean over the classes of the share of their images that is correct."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """What techniques report, by name, as it was at the end of the epoch."""
    rank_seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Time of each rank by phase (ddp_train/distributed/heartbeat.py), since its process made its first step."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """What a user's own loop has logged, by name; in the file beside the other values, with the names in "columns"."""

    @property
    def energy_joules(self) -> float:
        """Energy of all GPUs of the run in this epoch, by their own counters; NaN where it is not known."""
        return self.extra.get("energy_joules", math.nan)

    @property
    def rank(self) -> Rank:
        """The key by which epochs are compared: the best epoch has the highest."""
        loss, accuracy = (-math.inf if math.isnan(value) else value for value in (-self.loss, self.accuracy))
        return accuracy, loss


_EVALUATED = ("loss", "accuracy", "balanced_accuracy")
"""Fields whose names have the split in front in the file: "test_loss"."""
_OPTIONAL = ("extra", "columns", "rank_seconds", "split", "balanced_accuracy")
"""Fields that the file may lack. balanced_accuracy is in it where it is known: older versions did not compute it."""
_COLUMNS = tuple(column.name for column in fields(EpochRecord) if column.name not in _OPTIONAL)
OWN_COLUMNS_TAKEN = frozenset(
    {"epoch", "train_loss", "learning_rate", "seconds", "images_per_second", "global_batch", "extra", "columns"}
)
"""Names that a user's column cannot have: the record's own."""


@dataclass(frozen=True)
class Best:
    """The best epoch so far, the first of equals, and its accuracy on the split; None before there is one."""

    epoch: int | None = None
    accuracy: float | None = None
    split: str = "test"
    balanced: float | None = None
    """Its balanced accuracy; None, negative or NaN where it is not known."""

    def to_dict(self) -> dict[str, Any]:
        """The best epoch as it is written to files."""
        return {"epoch": self.epoch, f"{self.split}_accuracy": self.accuracy}

    @classmethod
    def of(cls, document: HistoryDocument) -> Best:
        """The best epoch of a history."""
        found = document["best"]
        split = "val" if "val_accuracy" in found else "test"
        row = next((row for row in document["epochs"] if row["epoch"] == found["epoch"]), {})
        return cls(found["epoch"], found[f"{split}_accuracy"], split, row.get(f"{split}_balanced_accuracy"))


class HistoryDocument(TypedDict):
    """The content of `training_history.json`."""

    schema: str
    environment: dict[str, object]
    epochs: list[dict[str, Any]]
    """EpochRecord's fields, by name; `extra` only where there is something in it."""
    best: dict[str, Any]
    energy: NotRequired[dict[str, float]]
    """`joules` of the training, summed over `epochs` epochs: those with a known energy in `extra`."""
    rank_seconds: NotRequired[dict[str, dict[str, float]]]
    """Time of each rank by phase, since the run was last started or resumed."""
    examination: NotRequired[dict[str, object]]
    """What the best model reached at the end of the run, with `top1_tta` where there was test-time augmentation."""


class History:
    """The epochs of a run in `training_history.json`, rewritten whole and atomically after each epoch.

    A number that is not finite is written as null: JSON has no NaN.
    """

    def __init__(self, path: str | os.PathLike[str], environment: Mapping[str, object]) -> None:
        """`environment` is any JSON-ready description of the run; nothing is written before the first epoch."""
        self.path = Path(path)
        self.environment = dict(environment)
        self.epochs: list[EpochRecord] = []
        self._rank_seconds: Mapping[int, Mapping[str, float]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], environment: Mapping[str, object] | None = None) -> History:
        """The history in `path`, with `environment` (when given) replacing the stored one.

        Raises UserError, one line naming the file, when it is missing or not such a history.
        """
        document = read_history(path)
        history = cls(path, document["environment"] if environment is None else environment)
        history.epochs = [_record(epoch) for epoch in document["epochs"]]
        return history

    def append(self, record: EpochRecord) -> None:
        """Add a finished epoch and write the file. Raises UserError when it cannot be written."""
        if self.epochs and record.epoch <= self.epochs[-1].epoch:
            raise ValueError(f"epoch {record.epoch} is already recorded: truncate the history on resume")
        self.epochs.append(record)
        self._rank_seconds = record.rank_seconds
        self._write()

    def truncate(self, epoch: int) -> None:
        """Keep the epochs up to `epoch`: those that a resume from its checkpoint need not train again."""
        kept = [record for record in self.epochs if record.epoch <= epoch]
        if len(kept) != len(self.epochs):
            self.epochs = kept
            self._write()

    @property
    def best(self) -> Best:
        """The best epoch so far."""
        split = self.epochs[-1].split if self.epochs else "test"
        known = [record for record in self.epochs if math.isfinite(record.accuracy)]
        if not known:
            return Best(split=split)
        best = max(known, key=lambda record: record.rank)
        return Best(best.epoch, best.accuracy, split)

    def to_dict(self) -> HistoryDocument:
        """The document of the file: strict JSON values alone."""
        document = HistoryDocument(
            schema=SCHEMA,
            environment={name: _strict(value) for name, value in self.environment.items()},
            epochs=[_row(record) for record in self.epochs],
            best=self.best.to_dict(),
        )
        if energies := [joules for record in self.epochs if math.isfinite(joules := record.energy_joules)]:
            document["energy"] = {"joules": sum(energies), "epochs": len(energies)}
        if self._rank_seconds:
            document["rank_seconds"] = _strict(self._rank_seconds)
        return document

    def _write(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def add_examination(path: str | os.PathLike[str], figures: Mapping[str, object]) -> None:
    """Write the examination of the best model into a finished run's history. Errors: UserError."""
    document = read_history(path) | {"examination": _strict(figures)}
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_history(path: str | os.PathLike[str]) -> HistoryDocument:
    """The document in a history file; epochs may hold keys that this version does not know.

    Raises UserError, one line naming the file, when it is missing, not strict JSON, or not a history.
    """
    document = read_document(path, SCHEMA, "training history")
    if fault := _fault(document):
        raise UserError(f"{path} is not a training history: {fault}")
    return cast(HistoryDocument, document)


def read_document(path: str | os.PathLike[str], schema: str, what: str) -> dict[str, Any]:
    """The strict JSON object of this schema in a file. Errors: UserError, one line naming the file."""
    try:
        document = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a {what}: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise UserError(f'{path} is not a {what}: it has no "schema": "{schema}"')
    return document


def _row(record: EpochRecord) -> dict[str, Any]:
    """A record in its JSON form."""
    known = (*_COLUMNS, *(["balanced_accuracy"] if math.isfinite(record.balanced_accuracy) else []))
    row = {_in_file(name, record.split): _strict(getattr(record, name)) for name in known}
    if record.columns:
        row |= {"columns": list(record.columns)} | _strict(record.columns)
    return row | ({"extra": _strict(record.extra)} if record.extra else {})


def _record(epoch: Mapping[str, Any]) -> EpochRecord:
    """A record from its JSON form: null is NaN."""
    split, own = split_of(epoch), {name: epoch.get(name) for name in epoch.get("columns", ())}
    names = {name: _in_file(name, split) for name in (*_COLUMNS, "balanced_accuracy")}
    found = {name: None if column in own else epoch.get(column) for name, column in names.items()}
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in found.items()}
    extra = {name: math.nan if value is None else value for name, value in epoch.get("extra", {}).items()}
    columns = {name: math.nan if value is None else value for name, value in own.items()}
    return EpochRecord(**values, split=split, extra=extra, columns=columns)


def split_of(epoch: Mapping[str, Any]) -> str:
    """The split that an epoch of a history was evaluated on; a user's own column may be named val_loss, too."""
    return "val" if "val_loss" in epoch and "val_loss" not in epoch.get("columns", ()) else "test"


def _in_file(name: str, split: str) -> str:
    """A number's name in the file: `test_loss` for `loss` of the test split."""
    return f"{split}_{name}" if name in _EVALUATED else name


def _refuse_constant(name: str) -> None:
    """Errors: ValueError for NaN and Infinity."""
    raise ValueError(f"{name} is not JSON")


def _fault(document: dict[str, Any]) -> str | None:
    """What keeps a document from being a history, or None."""
    epochs = document.get("epochs")
    if not isinstance(document.get("environment"), dict) or not isinstance(epochs, list):
        return "environment or epochs is missing"
    previous = 0
    for index, epoch in enumerate(epochs):
        if not isinstance(epoch, dict):
            return f"epochs[{index}] is not an object"
        if not isinstance(epoch.get("columns", []), list):
            return f"epochs[{index}].columns is {epoch['columns']!r}, not a list"
        for name in (_in_file(column, split_of(epoch)) for column in _COLUMNS):
            value = epoch.get(name, "missing")
            if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                return f"epochs[{index}].{name} is {value!r}, not a number or null"
        if not isinstance(epoch.get("extra", {}), dict):
            return f"epochs[{index}].extra is {epoch['extra']!r}, not an object"
        if not isinstance(epoch["global_batch"], int):
            return f"epochs[{index}].global_batch is {epoch['global_batch']!r}, not a whole number"
        if not isinstance(epoch["epoch"], int) or epoch["epoch"] <= previous:
            return f"epochs[{index}].epoch is {epoch['epoch']!r}, not a whole number above {previous}"
        previous = epoch["epoch"]
    return None


def _strict(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


class Observer:
    """Follows a run, on the first rank alone; every method is optional."""

    def on_start(self, facts: RunFacts) -> None:
        """Before the first step."""

    def on_step(self, report: StepReport) -> None:
        """At the progress reports (`--log-every` steps)."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After an epoch and its evaluation."""

    def on_save(self) -> None:
        """Before a checkpoint within an epoch: what was recorded so far must be on the disk as well."""

    def on_end(self, best: Best) -> None:
        """After the last epoch of a run that went well."""

    def close(self) -> None:
        """Called at the very end, after `on_end` or after a failure; may be called twice."""

    def leave(self) -> None:
        """Called instead of `close` if this rank alone has failed and the others wait for it: must take no time."""
