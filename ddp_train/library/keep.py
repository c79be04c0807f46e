"""`run.keep(...)`: what a checkpoint of a user's own loop holds besides the run's progress and the loaders' places."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.checkpoint.progress import Progress
from ddp_train.checkpoint.values import checked_copy
from ddp_train.library.model import unwrapped

PLAIN = (type(None), bool, int, float, complex, str, list, tuple, dict)
_ACCEPTED = (
    "anything with state_dict and load_state_dict, a tensor, a generator of torch, NumPy or Python, numbers, texts, "
    "lists and dicts"
)


class Kept:
    """Kept values and objects as attributes. A plain value can be set for the next checkpoint: `kept.best = 0.9`."""

    def __init__(self) -> None:
        self.__dict__["_objects"] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_objects"][name]
        except KeyError:
            raise AttributeError(f"run.keep() was given no {name}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        objects = self.__dict__["_objects"]
        if name not in objects or not isinstance(objects[name], PLAIN):
            what = "is kept as an object" if name in objects else "was not given to run.keep()"
            raise UserError(f"kept.{name} = ...: {name} {what}: only plain values that were kept can be set")
        value = _number(value)
        if not isinstance(value, PLAIN):
            raise UserError(
                f"kept.{name} = ...: a {_kind(value)} is no plain value; .item() makes a number of a tensor"
            )
        try:
            checked_copy({name: value}, "kept", lambda tensor: tensor)
        except TypeError as error:
            raise UserError(
                f"kept.{name} = ...: {error}; .item() makes a number of NumPy's, dict() a dict of a Counter"
            ) from None
        objects[name] = value


class KeptState:
    """See checkpoint.manager.Contents. `places`: returns the state of everything else that a resumed run restores."""

    names: tuple[str, ...] = ("model", "optimizer", "kept", "places")

    def __init__(self, seed: int, places: Callable[[], dict[str, Any]]) -> None:
        self._seed, self._places = seed, places
        self.kept = Kept()
        self._objects: dict[str, Any] = self.kept.__dict__["_objects"]
        self.saved: dict[str, Any] | None = None
        """The state that a resumed run has read; `add` takes out the parts that it restores."""
        self._groups: list[tuple[torch.optim.Optimizer, list[dict[str, Any]]]] = []
        """The restored optimizers, with the options of their groups, such as the rate."""

    def add(self, things: Mapping[str, Any]) -> None:
        """Keep these, and restore those that the checkpoint has. Errors: UserError that names the argument."""
        for name, thing in things.items():
            thing = unwrapped(thing) if isinstance(thing, nn.Module) else _number(thing)
            if name in self._objects:
                raise UserError(f"run.keep({name}=...): {name} is kept already")
            try:
                checked_copy({name: _state_of(thing)}, "run.keep", lambda tensor: tensor)
            except _CannotBeKept:
                raise UserError(f"run.keep({name}=...): a {_kind(thing)} cannot be kept: {_ACCEPTED} can") from None
            except TypeError as error:
                raise UserError(f"run.keep({name}=...): {error}; {_ACCEPTED} can be kept") from None
            self._objects[name] = thing
            if self.saved is not None:
                self._objects[name] = self._restored(name, thing)

    def _restored(self, name: str, thing: Any) -> Any:
        assert self.saved is not None
        part = self.saved[_part_of(thing)]
        if name not in part:
            there = ", ".join(sorted(key for one in self.names[:3] for key in self.saved[one]))
            raise UserError(
                f"run.keep({name}=...): the checkpoint that the run resumes from has no such {name}, but {there}; "
                "another out_dir, or Run(resume=None), starts afresh"
            )
        try:
            found = _load(thing, part.pop(name))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"run.keep({name}=...): what the checkpoint has does not fit this {_kind(thing)} ({reason}); "
                "another out_dir, or Run(resume=None), starts afresh"
            ) from None
        if isinstance(thing, torch.optim.Optimizer):
            groups = [{key: value for key, value in group.items() if key != "params"} for group in thing.param_groups]
            self._groups.append((thing, copy.deepcopy(groups)))
        for optimizer, groups in self._groups:  # a schedule that was made since has set its own first rate
            if getattr(thing, "optimizer", None) is optimizer:
                for group, values in zip(optimizer.param_groups, groups, strict=False):
                    group.update(copy.deepcopy(values))
        return found

    def left_over(self) -> list[str]:
        """The names of what the checkpoint has and no call of `add` has restored."""
        return [] if self.saved is None else sorted(name for part in self.names[:3] for name in self.saved[part])

    def state_dict(self) -> dict[str, Any]:
        """See Contents."""
        state: dict[str, Any] = {part: {} for part in self.names}
        for name, thing in self._objects.items():
            state[_part_of(thing)][name] = _state_of(thing)
        return state | {"places": self._places()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Contents: stored until `add` restores it."""
        self.saved = state

    def weights(self) -> Iterable[Tensor]:
        """See Contents."""
        networks = [thing for thing in self._objects.values() if isinstance(thing, nn.Module)]
        return [tensor for network in networks for tensor in network.state_dict().values()]

    def why_not(self, saved: Mapping[str, Any], progress: Progress) -> str | None:
        """See Contents."""
        if "library" not in saved:
            return "it is not of a loop with ddp_train.Run"
        if progress.step_in_epoch and saved["seed"] != self._seed:
            return f"it was saved within an epoch of a run with seed {saved['seed']}, and this run has {self._seed}"
        return None

    def resumed(self, saved: Mapping[str, Any], progress: Progress) -> tuple[str, ...]:
        """See Contents."""
        return ()


class _CannotBeKept(Exception):
    pass


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")


def _number(value: Any) -> Any:
    """A number of NumPy's as Python's, which a checkpoint can hold; any other value as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _part_of(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        return "model"
    return "optimizer" if isinstance(thing, torch.optim.Optimizer) else "kept"


def _state_of(thing: Any) -> Any:
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, np.random.Generator):
        return json.dumps(thing.bit_generator.state, default=np.ndarray.tolist)
    if isinstance(thing, np.random.RandomState):
        return json.dumps(thing.get_state(legacy=False), default=np.ndarray.tolist)
    if isinstance(thing, random.Random):
        return json.dumps(thing.getstate())
    if isinstance(thing, (Tensor, *PLAIN)):
        return thing
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        state = thing.state_dict()
        return _without_counters(dict(state)) if isinstance(state, dict) and not isinstance(thing, nn.Module) else state
    raise _CannotBeKept


def _without_counters(state: Any) -> Any:
    """A state with dicts in place of Counters, which a checkpoint cannot hold (torch's MultiStepLR has one)."""
    if type(state) in (dict, Counter):
        return {name: _without_counters(value) for name, value in state.items()}
    return [_without_counters(value) for value in state] if type(state) is list else state


def _with_counters(state: Any, now: Any) -> Any:
    """A saved state with Counters again where the state `now` has them."""
    if isinstance(now, Counter):
        return Counter(state)
    if isinstance(now, dict) and type(state) is dict:
        return {name: _with_counters(value, now.get(name)) for name, value in state.items()}
    if isinstance(now, list) and type(state) is list and len(now) == len(state):
        return [_with_counters(*pair) for pair in zip(state, now, strict=True)]
    return state


def _load(thing: Any, state: Any) -> Any:
    """Load `state` into `thing`. Returns what is kept from now on: it, or for a number or text the saved one."""
    if isinstance(thing, torch.Generator):
        thing.set_state(state)
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = json.loads(state)
    elif isinstance(thing, np.random.RandomState):
        thing.set_state(json.loads(state))
    elif isinstance(thing, random.Random):
        version, words, gauss = json.loads(state)
        thing.setstate((version, tuple(words), gauss))
    elif isinstance(thing, Tensor):
        with torch.no_grad():
            if thing.shape != state.shape:
                raise ValueError(f"a tensor of shape {list(state.shape)} into one of {list(thing.shape)}")
            thing.copy_(state)
    elif isinstance(thing, list) and isinstance(state, list):  # the program may hold it under a name of its own
        thing[:] = state
    elif isinstance(thing, dict) and isinstance(state, dict):
        thing.clear()
        thing.update(state)
    elif isinstance(thing, PLAIN):
        return state
    else:
        thing.load_state_dict(_with_counters(state, thing.state_dict()))
    return thing
