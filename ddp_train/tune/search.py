"""Search over the trainer's options: every trial is a real run through the launcher, in a folder of its own.

    python -m ddp_train.tune search SPACE.yaml --out DIR [options] [-- options of launch.py and of the trainer]

`DIR/search.json` holds what is known after every run; the same command continues where it was stopped. Each trial is
scored by its best test accuracy so far. Torch-free: the runs are separate processes.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) as a pure function of the scores so far.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.config.declaration import flag
from ddp_train.observers.records import read_history, split_of
from ddp_train.tune.space import Space, Value, draw, option_words

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "ddp-train-search/1"
LAUNCHER = Path(__file__).resolve().parents[2] / "ddp_launch" / "__main__.py"  # launch.py is not installed
USER_ERROR = 2


@dataclass(frozen=True)
class Settings:
    """What defines a search; it can only be continued with the same settings.

    `first_epochs`: the first rung of successive halving; None for `random`, in which every trial runs to its end.
    """

    space: str
    method: str
    trials: int
    epochs: int
    seed: int
    eta: int
    first_epochs: int | None
    words: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The epochs at which trials are scored."""
        if self.first_epochs is None:
            return (self.epochs,)
        return rungs(self.epochs, self.eta, self.first_epochs)


@dataclass
class Trial:
    """One set of values. scores: epochs -> score after so many epochs (None: the run failed)."""

    number: int
    values: dict[str, Value]
    scores: dict[int, float | None]

    @property
    def best(self) -> float | None:
        """The score of its longest run."""
        known = [score for _, score in sorted(self.scores.items()) if score is not None]
        return known[-1] if known else None


class Sampler(Protocol):
    """A source of the values of trials, in place of `draw`."""

    def ask(self, number: int) -> dict[str, Value]:
        """The values of a new trial."""

    def tell(self, number: int, score: float | None) -> None:
        """Report the score of a trial at its end."""


class Search:
    """A search in a folder. Errors: UserError where the folder holds another one."""

    def __init__(self, settings: Settings, space: Space, folder: Path, sampler: Sampler | None = None) -> None:
        self.settings, self.folder = settings, folder
        self._space, self._sampler = space, sampler
        self._file = folder / "search.json"
        self.trials: dict[int, Trial] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: {error.strerror or error}") from None
        if self._file.exists():
            self._load()

    @property
    def ranking(self) -> list[Trial]:
        """The trials, longest run first, then by score."""

        def order(trial: Trial) -> tuple[int, float]:
            """Sort key: most epochs first, then the highest score."""
            return -max(trial.scores, default=0), -(trial.best if trial.best is not None else -1.0)

        return sorted(self.trials.values(), key=order)

    def folder_of(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.folder / f"trial-{trial.number:03d}"

    def run(self, report: Callable[[str], None], start: Callable[[Sequence[str], Path], int] | None = None) -> None:
        """Run what is left. `start` runs a command into a log, returns its status. UserError: the first was refused."""
        settings, sampler = self.settings, self._sampler
        rule = (settings.trials, settings.steps, settings.eta)
        while job := next_job({number: trial.scores for number, trial in self.trials.items()}, *rule):
            number, epochs = job
            if number not in self.trials:
                values = draw(self._space, settings.seed, number) if sampler is None else sampler.ask(number)
                self.trials[number] = Trial(number, values, {})
                self._save()
            trial = self.trials[number]
            words = [*settings.words, *option_words(trial.values), f"--epochs={settings.epochs}"]
            words += [f"--stop-after={epochs}"] if epochs < settings.epochs else []
            words += [f"--out-dir={self.folder_of(trial)}", "--resume=auto"]
            command = [sys.executable, str(LAUNCHER), *words]
            shown = ", ".join(f"{name} {_text(value)}" for name, value in trial.values.items())
            report(f"trial {number + 1} of {settings.trials}, to epoch {epochs}: {shown}")
            log = self.folder_of(trial).with_suffix(".log")
            status = (start or _start)(command, log)
            if status == USER_ERROR and not any(t.scores for t in self.trials.values()):
                raise UserError(f"the first trial was refused ({_last_line(log)}): {shlex.join(command)}")
            if status in (130, 143):
                raise KeyboardInterrupt
            score = trial.scores[epochs] = self._score(trial, epochs) if status == 0 else None
            report(f"  failed: {_last_line(log)} ({log})" if score is None else f"  {score:.2%}")
            self._save()
            if sampler is not None and epochs == settings.steps[-1]:
                sampler.tell(number, score)

    def _score(self, trial: Trial, epochs: int) -> float | None:
        """The best accuracy of a trial within so many epochs; None without one."""
        history = read_history(self.folder_of(trial) / "training_history.json")
        reached = [epoch[f"{split_of(epoch)}_accuracy"] for epoch in history["epochs"] if epoch["epoch"] <= epochs]
        return max((accuracy for accuracy in reached if accuracy is not None), default=None)

    def _save(self) -> None:
        """Write the search's file."""
        document = {
            "schema": SCHEMA,
            "settings": dataclasses.asdict(self.settings),
            "trials": [dataclasses.asdict(trial) for trial in self.trials.values()],
        }
        write_text(self._file, json.dumps(document, indent=2) + "\n")

    def _load(self) -> None:
        """Read the search's file. Errors: UserError for a damaged or different search."""
        try:
            document: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            saved, own = document["settings"], json.loads(json.dumps(dataclasses.asdict(self.settings)))
            # The number of trials may differ from before: the values that were drawn stay as they are.
            different = [name for name in own if name != "trials" and saved[name] != own[name]]
            for trial in document["trials"]:
                scores = {int(epochs): score for epochs, score in trial["scores"].items()}
                self.trials[trial["number"]] = Trial(trial["number"], trial["values"], scores)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self._file} is not a search of ours: {error}") from None
        if different:
            raise UserError(f"{self._file} is another search ({', '.join(different)} differ): take another --out")


def _start(command: Sequence[str], log: Path) -> int:
    """Run a trial, its output appended to `log`. Ctrl-C reaches it too: both are in the terminal's process group."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            return process.wait()
        except BaseException:
            process.wait()
            raise


def _last_line(log: Path) -> str:
    """The last line that a trial printed: its `error:` line, if there is one."""
    try:
        content = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        content = ""
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]


def _text(value: Value) -> str:
    """A value for the table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rungs(epochs: int, eta: int, first: int) -> tuple[int, ...]:
    """Epochs after which trials are compared: `first`, then `eta` times as many each time, and `epochs` at last."""
    found = []
    while first < epochs:
        found.append(first)
        first *= eta
    return (*found, epochs)


def next_job(
    scores: Mapping[int, Mapping[int, float | None]], trials: int, steps: tuple[int, ...], eta: int
) -> tuple[int, int] | None:
    """(trial, epochs) to run next; None when the search is over.

    scores: trial -> {epochs: score, None for a run that failed}. At each rung the best 1 / `eta` of them continue.
    """
    alive = list(range(trials))
    for rung in steps:
        for trial in alive:
            if rung not in scores.get(trial, {}):
                return trial, rung
        ranked = sorted(
            (trial for trial in alive if scores[trial][rung] is not None),
            key=lambda trial: (-(scores[trial][rung] or 0.0), trial),
        )
        alive = ranked[: max(1, len(alive) // eta)]
    return None


def search_table(ranking: Sequence[Trial]) -> Table:
    """One row per trial, the best first: score, epochs, values."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    for column in ("trial", "test accuracy", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("options", overflow="fold")  # one column: many options would not fit side by side
    for place, trial in enumerate(ranking):
        score = "failed" if trial.best is None else f"{trial.best:.2%}"
        options = " ".join(f"{flag(name)} {_text(value)}" for name, value in trial.values.items())
        cells = [str(trial.number + 1), score, str(max(trial.scores, default=0)), options]
        table.add_row(*map(Text, cells), style="bold green" if place == 0 else None)
    return table
