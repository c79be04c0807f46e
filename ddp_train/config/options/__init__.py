"""All options of a training run: one dataclass per subject; each field declares one option.

A field whose default is None is left to the machine: `config/recommend.py` fills it in from the hardware and
the data, and gives the reason. `config/parse.py` turns these classes into command line options and YAML keys.
"""

from __future__ import annotations

import functools
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from ddp_train.config.declaration import Option
from ddp_train.config.options.augment import AugmentOptions as AugmentOptions
from ddp_train.config.options.data import DataOptions as DataOptions
from ddp_train.config.options.model import ModelOptions as ModelOptions
from ddp_train.config.options.optim import OptimOptions as OptimOptions
from ddp_train.config.options.optim import RegularizeOptions as RegularizeOptions
from ddp_train.config.options.optim import ScheduleOptions as ScheduleOptions
from ddp_train.config.options.run import DiagnosticsOptions as DiagnosticsOptions
from ddp_train.config.options.run import RunOptions as RunOptions

DEFAULT_SHARDS = 8
DEFAULT_LOG_EVERY = 20


@dataclass(frozen=True)
class Config:
    """All options of a run by section; `given` names those that the user set, in a file or as an option.

    `wanted`: those among them that are refused where they have no effect, and not what a preset or a run filled in.
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    regularize: RegularizeOptions = field(default_factory=RegularizeOptions)
    diagnostics: DiagnosticsOptions = field(default_factory=DiagnosticsOptions)
    given: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()

    @property
    def shards(self) -> int | None:
        """Number of logical shards of a global batch; None without --reproducible."""
        return (self.run.reproducible_shards or DEFAULT_SHARDS) if self.run.reproducible else None


SECTIONS: dict[str, Any] = {f.name: f.default_factory for f in fields(Config) if f.default_factory is not MISSING}
"""Section name -> its dataclass."""


def to_dict(config: Config) -> dict[str, Any]:
    """Every option and its value, flat, in the order of the sections."""
    return {k: v for name in SECTIONS for k, v in asdict(getattr(config, name)).items()}


@functools.cache
def declared() -> dict[str, Option]:
    """Every declared option, by name, in the order of the sections."""
    hints = {name: kind for section in SECTIONS.values() for name, kind in get_type_hints(section).items()}
    options = (f for section in SECTIONS.values() for f in fields(section))
    return {f.name: Option(name=f.name, type=hints[f.name], default=f.default, **f.metadata) for f in options}
