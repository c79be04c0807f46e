"""Reads a run folder into one frozen record: history, settings, plan, machine, events, data.

Nothing in a folder is trusted: a file that is missing is left out, one that is damaged becomes a line in `problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ddp_core.errors import UserError
from ddp_train.config.options import declared
from ddp_train.config.yaml_file import read_mapping
from ddp_train.observers.records import HistoryDocument, read_history
from ddp_train.report.json_value import Value, parse, read_bytes, read_json
from ddp_train.report.launches import Launch, Plan, by_rank, launches_of, plan_of
from gpu_topology import snapshot
from gpu_topology.topology import Topology

T = TypeVar("T")

HISTORY, PLAN, EVENTS, CONFIG = "training_history.json", "plan.json", "events.jsonl", "config.yaml"
TOPOLOGY, DATASET, DONE = "topology.json", "dataset.json", "done.json"
PAGE = "report.html"
RUN_FILES = (HISTORY, PLAN, EVENTS, CONFIG)
"""Any one of these files marks a folder as that of a run."""


@dataclass(frozen=True)
class Data:
    """The dataset of a run. Counts are of images; `left_out`: the files that could not be used."""

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    train: int | None
    val: int | None
    test: int | None
    content: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder. None, () and {}: the folder has no such data.

    epochs       rows of the history, strict JSON values by column
    environment  versions, model, device and the like, from the history
    best         (epoch, accuracy) on the split that `split` names, "test" or "val"
    examined     figures of the best model at the end of the run
    rank_seconds rank -> phase -> seconds
    energy_joules  energy of the training over all nodes; None where an epoch has no figure
    config       every option, resolved, by name
    launches     the starts of the launcher in this folder, the earliest first
    problems     one line for each file that exists but cannot be read
    """

    folder: Path
    epochs: tuple[Mapping[str, object], ...] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    split: str = "test"
    examined: Mapping[str, float] = field(default_factory=dict)
    rank_seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    energy_joules: float | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    plan: Plan | None = None
    topology: Topology | None = None
    launches: tuple[Launch, ...] = ()
    data: Data | None = None
    finished: bool = False
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def trained(self) -> bool:
        """Whether it is a run of the bundled trainer or of `ddp_train.Run`, and not of any other program."""
        return bool(self.epochs or self.environment or self.config)

    def column(self, name: str) -> list[float | None]:
        """A column of the epochs or of their `extra`, one number per epoch; None where it is not known."""
        return [_number(row, name) for row in self.epochs]

    @property
    def changed(self) -> dict[str, tuple[object, object]]:
        """The options that differ from their defaults: name -> (value, default)."""
        options = declared()
        pairs = {name: (value, options[name].default) for name, value in self.config.items() if name in options}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. Errors: UserError, one line, where it is not that of a run."""
    try:
        is_run = any((folder / name).exists() for name in RUN_FILES)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None
    if not is_run:
        *names, last = RUN_FILES
        what = "not a run folder" if folder.exists() else "no such folder"
        raise UserError(f"{str(folder)!r}: {what}; expected one with {', '.join(names)} or {last}")
    return _Reader(folder).record()


class _Reader:
    """Reads the files of a folder, and records those that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._problems: list[str] = []

    def record(self) -> RunRecord:
        """Read all files of the folder into a record."""
        history = self._read(HISTORY, read_history)
        extra = Value(history)
        plan = self._read(PLAN, read_json)
        dataset = self._read(DATASET, read_json)
        events = self._read(EVENTS, self._events) or ()
        best, split = _best(history)
        launches = launches_of(events)
        return RunRecord(
            folder=self._folder,
            epochs=() if history is None else tuple(history["epochs"]),
            environment={} if history is None else history["environment"],
            best=best,
            split=split,
            examined={name: item.number for name, item in extra["examination"].items() if item.number is not None},
            rank_seconds=by_rank(extra["rank_seconds"]),
            energy_joules=_energy(history),
            config=self._config(launches),
            plan=None if plan is None else plan_of(plan),
            topology=self._read(TOPOLOGY, snapshot.load),
            launches=launches,
            data=None if dataset is None else _data(dataset),
            finished=(self._folder / DONE).exists(),
            problems=tuple(self._problems),
        )

    def _config(self, launches: Sequence[Launch]) -> Mapping[str, object]:
        """The trainer's options. In a folder of another program, `config.yaml` is that program's own file."""
        if launches and not launches[-1].plan.trainer and not (self._folder / HISTORY).exists():
            return {}
        return self._read(CONFIG, lambda path: read_mapping(path, "config", "lr: 0.1")) or {}

    def _read(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Read one file; None where it does not exist or cannot be read."""
        path = self._folder / name
        try:
            if not path.exists() and not path.is_symlink():
                return None
            read_bytes(path)  # refuses pipes, devices and files that are too large
            return read(path)
        except UserError as error:
            self._problems.append(f"{name} is left out: {str(error).replace(str(path), name)}")
            return None

    def _events(self, path: Path) -> tuple[Value, ...]:
        found, bad = [], 0
        for line in read_bytes(path).splitlines():
            try:
                found.append(parse(line))
            except UserError:
                bad += 1
        if bad:
            self._problems.append(f"{EVENTS}: {bad} line{'s' * (bad != 1)} that cannot be read")
        return tuple(found)


def _energy(history: HistoryDocument | None) -> float | None:
    found = Value(history)["energy"]
    whole = history is not None and found["epochs"].whole == len(history["epochs"])
    return found["joules"].number if whole else None


def _best(history: HistoryDocument | None) -> tuple[tuple[int, float] | None, str]:
    found = Value(history)["best"]
    split = "val" if found["val_accuracy"].raw is not None else "test"
    epoch, accuracy = found["epoch"].whole, found[f"{split}_accuracy"].number
    return (None if epoch is None or accuracy is None else (epoch, accuracy)), split


def _data(value: Value) -> Data:
    return Data(
        name=value["name"].text,
        classes=value["classes"].texts,
        image_shape=value["image_shape"].wholes,
        train=value["train_samples"].whole,
        val=value["val_samples"].whole,
        test=value["test_samples"].whole,
        content=value["content"].text,
        left_out=value["left_out"].texts,
    )


def _number(row: Mapping[str, object], name: str) -> float | None:
    whole = Value(row)
    return whole[name].number if name in row else whole["extra"][name].number
