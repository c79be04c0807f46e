"""`run.use(...)`: the trainer's techniques in a user's own loop (techniques/, each with its source)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.optim.precision import Precision
from ddp_train.technique import Technique
from ddp_train.techniques import clipping, ema, sam


@dataclass(frozen=True)
class Option:
    """An option of run.use(). accepts: whether a value is valid; what: the valid values, in words."""

    accepts: Callable[[Any], bool]
    what: str


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


OPTIONS = {
    "clip_grad": Option(lambda value: _number(value, 0, float("inf")), "a norm above 0"),
    "ema": Option(lambda value: _number(value, 0, 1), "a decay between 0 and 1"),
    "sam": Option(lambda value: _number(value, 0, float("inf")), "a radius above 0"),
    "amp": Option(lambda value: value in ("bf16", "fp16", "off"), "bf16, fp16 or off"),
    "compile": Option(lambda value: isinstance(value, bool), "True or False"),
}


class Used:
    """The techniques that a run uses. `saved`: their state in a checkpoint, loaded into each when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._wanted = device, dict[str, Any]()
        self.precision = Precision("off", device)
        self.techniques: list[Technique] = []
        self.averages: dict[int, nn.Module] = {}
        self.saved: Mapping[str, Any] | None = None

    def add(self, options: Mapping[str, Any]) -> None:
        """Use these options. Errors: UserError that names the option."""
        for name, value in options.items():
            if name not in OPTIONS:
                near = difflib.get_close_matches(name, OPTIONS, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"run.use({name}=...): there is {', '.join(OPTIONS)}{hint}")
            if not OPTIONS[name].accepts(value):
                raise UserError(f"run.use({name}={value!r}): it takes {OPTIONS[name].what}")
        self._wanted |= options
        if "amp" in options:
            self.precision = Precision(options["amp"], self._device)
            if self.saved is not None:
                self.precision.load_state_dict(dict(self.saved.get("scaler", {})))
        if "clip_grad" in options:
            self._made(clipping.clip(options["clip_grad"]))

    def _made(self, technique: Technique, name: str = "") -> None:
        self.techniques.append(technique)
        state = self.saved and self.saved["techniques"].get(name or technique.name)
        if technique.state is not None and self.saved is not None:
            if state is None:
                raise UserError(f"run.use({technique.name}=...): the checkpoint is of a run without it")
            technique.state.load_state_dict(dict(state))

    def changed(self, network: nn.Module) -> nn.Module:
        """`network` as it is to be called: compiled, if that is wanted."""
        if not self._wanted.get("compile"):
            return network
        compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
        return compiled

    def average(self, network: nn.Module) -> None:
        """Begin the average of the network's weights, if that is wanted; it must have its initial weights."""
        if "ema" in self._wanted:
            technique = ema.average(network, self._wanted["ema"])
            assert technique.evaluated is not None
            self.averages[id(network)] = technique.evaluated
            self._made(technique, f"ema {len(self.averages)}")

    def finish(self, networks: nn.Module) -> None:
        """Create the techniques that need all networks."""
        if "sam" in self._wanted:
            self._made(sam.uphill(networks, self._wanted["sam"]))

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, the averages, and what else has state."""
        states, averages = dict[str, Any](), 0
        for technique in self.techniques:
            if technique.state is not None:
                averages += technique.name == "ema"
                name = f"ema {averages}" if technique.name == "ema" else technique.name
                states[name] = technique.state.state_dict()
        return {"scaler": self.precision.state_dict(), "techniques": states}
