"""A JSON value of unknown shape: every access gives a value, so that a damaged file affects only itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from ddp_core.errors import UserError

LARGEST_BYTES = 64 << 20


class Value:
    """Wraps a value of json.loads. A part that is missing or of another type than asked for is an empty Value."""

    def __init__(self, value: object = None) -> None:
        self.raw = value

    def __getitem__(self, key: str) -> Value:
        return Value(self.raw.get(key)) if isinstance(self.raw, dict) else Value()

    def __iter__(self) -> Iterator[Value]:
        """The items of a list; none for any other value."""
        return map(Value, self.raw if isinstance(self.raw, list) else ())

    def __bool__(self) -> bool:
        return bool(self.raw)

    def items(self) -> Iterator[tuple[str, Value]]:
        """The pairs of an object; none for any other value."""
        found = self.raw if isinstance(self.raw, dict) else {}
        return ((str(name), Value(value)) for name, value in found.items())

    @property
    def text(self) -> str:
        """A string, number or boolean as text; "" for anything else."""
        if isinstance(self.raw, bool):
            return str(self.raw).lower()
        return str(self.raw) if isinstance(self.raw, str | int | float) else ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The items of a list as texts."""
        return tuple(item.text for item in self)

    @property
    def number(self) -> float | None:
        """A finite number; None for anything else."""
        if isinstance(self.raw, bool) or not isinstance(self.raw, int | float):
            return None
        try:
            return float(self.raw) if math.isfinite(self.raw) else None
        except OverflowError:  # an integer that is too large for a float
            return None

    @property
    def whole(self) -> int | None:
        """A whole number; None for anything else."""
        number = self.number
        return int(number) if number is not None and number.is_integer() else None

    @property
    def wholes(self) -> tuple[int, ...]:
        """The whole numbers in a list."""
        return tuple(found for item in self if (found := item.whole) is not None)


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most 64 MiB. Errors: UserError with the reason alone."""
    try:
        if not path.is_file():
            raise UserError("not a file")
        if path.stat().st_size > LARGEST_BYTES:
            raise UserError(f"larger than {LARGEST_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(error.strerror or str(error)) from None


def read_json(path: Path) -> Value:
    """The JSON in a file. Errors: UserError with the reason alone."""
    return parse(read_bytes(path))


def parse(data: bytes) -> Value:
    """Parse JSON. Errors: UserError where it is not valid."""
    try:
        return Value(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from None
