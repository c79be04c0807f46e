"""The space of a search: which options take which values, read from YAML, and draws from it. Torch-free.

    lr: {low: 0.01, high: 0.5, log: true}
    warmup_epochs: {low: 0, high: 3}
    batch_size: {low: 64, high: 512, step: 64}
    augment: [minimal, balanced, heavy]
    model: small

A list is a choice, a mapping a range, and a single value holds for all trials.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError
from ddp_train.config.options import Config, declared, to_dict
from ddp_train.config.parse import parse
from ddp_train.config.yaml_file import read_mapping, shown

Value = int | float | str | bool
RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Choice:
    """One of several values, all equally likely."""

    values: tuple[Value, ...]

    def draw(self, generator: random.Random) -> Value:
        """Draw a value."""
        return generator.choice(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. `log`: uniform in the logarithm; `step`: multiples above `low`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def draw(self, generator: random.Random) -> Value:
        """Draw a value."""
        share = generator.random()
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        elif self.step is not None:
            value = self.low + self.step * int(share * (math.floor((self.high - self.low) / self.step + 1e-9) + 1))
        elif self.whole:
            value = self.low + int(share * (self.high - self.low + 1))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.6g}")


Space = Mapping[str, Choice | Range]
"""Option name (with underscores) -> its values."""


def draw(space: Space, seed: int, trial: int) -> dict[str, Value]:
    """The values of one trial: a function of seed and trial alone, so that a search can continue at any time."""
    generator = random.Random(f"{seed}:{trial}")
    return {name: values.draw(generator) for name, values in space.items()}


def option_words(values: Mapping[str, Value]) -> list[str]:
    """The values as a command line of the trainer, without those that have no effect: a search may combine beta1 with
    optimizer sgd and adamw."""
    words: list[str] = []
    together = {**to_dict(Config()), **values}
    for name, value in values.items():
        needs = declared()[name].only_with
        if needs is not None and not needs.names.isdisjoint(values) and not needs.holds(together):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{option}={value}")
    return words


def read_space(path: Path) -> Space:
    """The space in a YAML file. Errors: UserError naming the file and the option."""
    expected = "option: [values]  or  option: {low: ..., high: ...}"
    content = read_mapping(path, str(path), expected)
    if not content:
        raise UserError(f"{path}: expected lines of the form  {expected}")
    known = to_dict(Config())
    space: dict[str, Choice | Range] = {}
    for key, given in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: {key} is not an option of the trainer (see python ddp_train/main.py --help)")
        space[name] = _values(path, key, given)
    for corner in _corners(space):
        try:
            parse(option_words(corner), complete=False)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return space


def _values(path: Path, key: str, given: Any) -> Choice | Range:
    """The values of one option. Errors: UserError."""
    if isinstance(given, dict):
        return _range(path, key, given)
    values = tuple(given) if isinstance(given, list) else (given,)
    if not values or not all(isinstance(value, (int, float, str, bool)) for value in values):
        raise UserError(f"{path}: {key} takes a value, a list of values, or low and high, not {shown(given)}")
    return Choice(values)


def _range(path: Path, key: str, given: dict[str, Any]) -> Range:
    """A range of one option. Errors: UserError."""
    numbers = {name: value for name, value in given.items() if name != "log"}
    fine = {"low", "high"} <= given.keys() <= RANGE_KEYS and isinstance(given.get("log", False), bool)
    if not (fine and all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers.values())):
        what = "low and high, and perhaps log (true or false) or step"
        raise UserError(f"{path}: {key} takes {what}, not {shown(given)}")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not low < high or (log and low <= 0) or (step is not None and (log or not 0 < step <= high - low)):
        raise UserError(f"{path}: {key} takes low < high, low above 0 with log, and a step within them without log")
    return Range(low, high, log, step, whole=all(isinstance(value, int) for value in numbers.values()) and not log)


def _corners(space: Space) -> list[dict[str, Value]]:
    """Trials that try each value of each option at least once, to refuse what cannot work before anything runs."""
    tried: dict[str, tuple[Value, ...]] = {}
    for name, values in space.items():
        if isinstance(values, Choice):
            tried[name] = values.values
        else:
            tried[name] = tuple(round(end) if values.whole else float(end) for end in (values.low, values.high))
    first = {name: values[0] for name, values in tried.items()}
    return [first, *(first | {name: other} for name, values in tried.items() for other in values[1:])]


class OptunaSampler:
    """Optuna's TPE sampler as the source of trials; its study is kept in the folder of the search.

    Errors: UserError where Optuna is not installed.
    """

    def __init__(self, space: Space, folder: Path, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError("--sampler optuna: Optuna is not installed: pip install 'ddp-launch[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage, sampler = f"sqlite:///{(folder / 'optuna.db').absolute()}", optuna.samplers.TPESampler(seed=seed)
        self._failed = optuna.trial.TrialState.FAIL
        self._space = space
        self._study: Any = optuna.create_study(
            study_name="search", storage=storage, direction="maximize", sampler=sampler, load_if_exists=True
        )

    def ask(self, number: int) -> dict[str, Value]:
        """The values of a new trial."""
        trial = self._study.ask()
        trial.set_user_attr("number", number)
        found: dict[str, Value] = {}
        for name, values in self._space.items():
            if isinstance(values, Choice):
                found[name] = trial.suggest_categorical(name, values.values)
            elif values.whole:
                found[name] = trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1))
            else:
                found[name] = trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
        return found

    def tell(self, number: int, score: float | None) -> None:
        """Report a trial's score, also for a trial of an earlier process."""
        asked = [trial.number for trial in self._study.trials if trial.user_attrs.get("number") == number]
        if asked:
            self._study.tell(asked[-1], score, None if score is not None else self._failed)
