"""YAML files of options: a mapping of plain values, or one line on what is wrong with the file. Torch-free."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError

LARGEST_BYTES = 1 << 20
MOST_VALUES, MOST_LEVELS = 10_000, 20

_ONE_POINT_ONE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Octal 010 and sexagesimal 1:30, which YAML 1.1 reads as other numbers than they look like."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


class _Surprise(Exception):
    """A value that YAML 1.1 reads as something other than it looks like."""


def shown(value: object) -> str:
    """A value of a file for a message, shortened."""
    return _short.repr(value)


def read_mapping(path: Path, what: str, expected: str) -> dict[str, Any]:
    """The mapping in a YAML file, {} where it is empty. what: its name in messages; expected: lines of such files.

    Errors: UserError, one line, also for a duplicate key, and for a file that cannot be a file of options: too
    large, nested too deep, or small but huge once its aliases are expanded.
    """
    import yaml  # imported here: a wrong command line is also reported in a Python without it

    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > LARGEST_BYTES:
        raise UserError(f"{what}: larger than {LARGEST_BYTES >> 20} MiB, not a file of options")
    try:
        content = _parse(text.decode("utf-8"))
        fine = _size(content, 0) <= MOST_VALUES
    except RecursionError:
        fine = False
    except _Surprise as error:
        raise UserError(f"{what}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, LookupError) as error:
        raise UserError(f"{what}: not YAML ({_location(error)})") from None
    if not fine:
        raise UserError(f"{what}: more than {MOST_VALUES:,} values or {MOST_LEVELS} levels, no file of options")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{what}: expected lines of the form  {expected}")
    return content


def _location(error: Exception) -> str:
    """What is wrong and where, without YAML's copy of the lines."""
    import yaml

    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"


def _parse(text: str) -> object:
    """Parse YAML; refuse anything but plain values, and duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        """yaml's safe loader, which also refuses what YAML reads differently than it looks."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            """Refuse duplicate keys, and numbers that YAML 1.1 reads differently than they look."""
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"duplicate key {shown(twice)}")
            for key, value in node.value:
                if _ONE_POINT_ONE.fullmatch(str(value.value)) and value.tag.endswith((":int", ":float")):
                    read = shown(self.construct_object(value))
                    raise _Surprise(f"{key.value}: {value.value} is {read} in YAML 1.1: quote it, or write the number")
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)  # noqa: S506, TID251


def _size(value: object, depth: int) -> int:
    """Number of values with aliases expanded, counted up to MOST_VALUES. Errors: RecursionError if nested too deep."""
    if depth > MOST_LEVELS:
        raise RecursionError
    if not isinstance(value, (dict, list, set, tuple)):
        return 1
    total = 1
    for item in value.values() if isinstance(value, dict) else value:
        total += _size(item, depth + 1)
        if total > MOST_VALUES:
            break
    return total
