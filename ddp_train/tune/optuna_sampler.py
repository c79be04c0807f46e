"""Optuna as the source of trials: its TPE sampler, its study kept in the folder of the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddp_core.errors import UserError
from ddp_train.tune.space import Choice, Space, Value


class OptunaSampler:
    """Ask and tell. Errors: UserError where Optuna is not installed."""

    def __init__(self, space: Space, folder: Path, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError("--sampler optuna: Optuna is not installed: pip install 'ddp-launch[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{(folder / 'optuna.db').absolute()}"
        self._failed = optuna.trial.TrialState.FAIL
        self._space = space
        self._study: Any = optuna.create_study(
            study_name="search",
            storage=storage,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            load_if_exists=True,
        )
        self._asked: dict[int, Any] = {}

    def ask(self, number: int) -> dict[str, Value]:
        """The values of a new trial."""
        trial = self._asked[number] = self._study.ask()
        trial.set_user_attr("number", number)
        return {name: self._suggest(trial, name) for name in self._space}

    def tell(self, number: int, score: float | None) -> None:
        """Its score, also of a trial that was asked for by an earlier process."""
        found = self._asked.get(number)
        ids = [t.number for t in self._study.trials if t.user_attrs.get("number") == number]
        target = found if found is not None else (ids[-1] if ids else None)
        if target is None:
            return
        if score is None:
            self._study.tell(target, state=self._failed)
        else:
            self._study.tell(target, score)

    def _suggest(self, trial: Any, name: str) -> Value:
        values = self._space[name]
        found: Value
        if isinstance(values, Choice):
            found = trial.suggest_categorical(name, values.values)
        elif values.whole:
            found = trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1))
        else:
            found = trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
        return found
