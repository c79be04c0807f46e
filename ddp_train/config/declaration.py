"""How an option is declared: `option(default, help, ...)` as the value of a dataclass field.

The command line, the YAML keys, `--help` and the checks all follow from the field: its name, its type and the
arguments of `option`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `exclusive`: `least` itself is not in the range."""

    least: float
    most: float
    exclusive: bool = False

    def __contains__(self, value: float) -> bool:
        return value <= self.most and (value > self.least if self.exclusive else value >= self.least)

    def __str__(self) -> str:
        return f"{'above' if self.exclusive else 'at least'} {self.least:g} and at most {self.most:g}"


class When:
    """Condition: another option has one of `values` or, without values, is set. None or "auto" among them: the machine
    decides later. `also`: must hold, too; `others`: alternatives, one of which is enough."""

    def __init__(self, name: str, *values: str | None, also: When | None = None, others: tuple[When, ...] = ()) -> None:
        self.name, self.values, self.also, self.others = name, values, also, others

    def holds(self, options: Mapping[str, object]) -> bool:
        """Whether the condition holds for these options (name -> value)."""
        value = options[self.name]
        here = value in self.values if self.values else is_set(value)
        return (here and (self.also is None or self.also.holds(options))) or any(w.holds(options) for w in self.others)

    @property
    def names(self) -> frozenset[str]:
        """The options that the condition depends on."""
        parts = (*self.others, *([self.also] if self.also is not None else []))
        return frozenset({self.name}).union(*(part.names for part in parts))

    def __str__(self) -> str:
        text = f"{flag(self.name)} {' or '.join(v for v in self.values if v not in (None, 'auto'))}".rstrip()
        text = text if self.also is None else f"{text} with {self.also}"
        return (", or " if self.values else " or ").join([text, *map(str, self.others)])


@dataclass(frozen=True)
class Option:
    """A declared option. `only_with`: the option has no effect unless this holds. `excludes`: condition -> reason."""

    name: str
    type: Any
    default: object
    help: str
    range: Range | None
    only_with: When | None
    excludes: Mapping[When, str]

    @property
    def accepted(self) -> str:
        """The values that the option takes, for a message."""
        return f"{_described(self.type)} {self.range or ''}".rstrip()

    @property
    def metavar(self) -> str:
        """The placeholder for its value in the help: the choices, or the kind of value."""
        first = _alternatives(self.type)[0]
        if get_origin(first) is Literal:
            return "{" + ",".join(map(str, get_args(first))) + "}"
        return {int: "N", float: "X", str: "TEXT"}[first]

    @property
    def full_help(self) -> str:
        """The help text with range and default. A default of None is explained in the text itself."""
        default = "" if self.default is None else f"default {str(self.default).lower()}"
        notes = "; ".join(filter(None, (str(self.range or ""), default)))
        return f"{self.help} [{notes}]" if notes else self.help


def option(
    default: Any,
    help: str,
    range: Range | None = None,
    *,
    only_with: When | None = None,
    excludes: Mapping[When, str] | None = None,
) -> Any:
    """Declare a dataclass field as an option; see Option."""
    declared = {"help": help, "range": range, "only_with": only_with, "excludes": excludes or {}}
    return field(default=default, metadata=declared)


def flag(name: str) -> str:
    """`--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def is_set(value: object) -> bool:
    """Whether an option is in use: neither left to the machine nor switched off."""
    return value is not None and value is not False


def _alternatives(kind: Any) -> list[Any]:
    """The alternatives of a union without None; a single type as itself."""
    parts = get_args(kind) if get_args(kind) and get_origin(kind) is not Literal else (kind,)
    return [part for part in parts if part is not type(None)]


def _described(kind: Any) -> str:
    """A type in words: "a whole number"."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return " or ".join(names.get(part) or _choices(get_args(part)) for part in _alternatives(kind))


def _choices(values: tuple[object, ...]) -> str:
    """The allowed values in words."""
    return str(values[0]) if len(values) == 1 else "one of " + ", ".join(map(str, values))
