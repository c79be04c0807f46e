"""What an option of the launcher accepts: text from the command line to a checked value, or one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

__all__ = ["OptionError", "device_list", "endpoint", "host_name", "memory", "node_range", "one_of", "path", "whole"]

LARGEST_NODES = 100_000
UNITS = {"": 10**9, "gb": 10**9, "g": 10**9, "gib": 2**30, "mb": 10**6, "m": 10**6, "mib": 2**20}


class OptionError(Exception):
    """A mistake on the launcher's command line: one line with the option, its value and what is accepted."""


def whole(option: str, least: int, largest: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `largest`."""

    def parse(text: str) -> int:
        # At most 18 digits: int() of a text of thousands of digits is refused by Python with its own riddle.
        if re.fullmatch(r"\+?[0-9]{1,18}", text) and least <= int(text) <= largest:
            return int(text)
        raise OptionError(f"{option} {text!r}: expected a whole number from {least} to {largest}")

    return parse


def one_of(option: str, choices: Sequence[str]) -> Callable[[str], str]:
    """A parser of one word of a list."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        raise OptionError(f"{option} {text!r}: expected one of {', '.join(choices)}")

    return parse


def path(option: str) -> Callable[[str], str]:
    """A parser of file and folder names, which are looked at later."""

    def parse(text: str) -> str:
        if text and "\0" not in text:
            return text
        raise OptionError(f"{option} {text!r}: expected a path")

    return parse


def device_list(option: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated GPU indices or UUIDs, which the selection looks up later."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(part.strip() for part in text.split(","))
        if all(re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z/-]*", part) for part in parts):
            return parts
        raise OptionError(f"{option} {text!r}: expected GPU indices or UUIDs separated by commas, as in {option} 0,1")

    return parse


def memory(option: str) -> Callable[[str], int]:
    """A parser of memory sizes to bytes: 20, 20GB, 20GiB or 20000MB."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([a-zA-Z]{0,3})", text)
        if found and (unit := UNITS.get(found[2].lower())):
            return round(float(found[1]) * unit)
        raise OptionError(f"{option} {text!r}: expected a size such as 20GB, 20GiB or 20000MB")

    return parse


def node_range(text: str) -> tuple[int, int]:
    """(least, most) nodes of `--nnodes N` or `--nnodes MIN:MAX`."""
    found = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", text)
    if found:
        least, most = int(found[1]), int(found[2] or found[1])
        if 1 <= least <= most <= LARGEST_NODES:
            return least, most
    raise OptionError(f"--nnodes {text!r}: expected a number of nodes from 1 to {LARGEST_NODES}, or MIN:MAX")


def endpoint(text: str) -> str:
    """HOST:PORT of `--rdzv-endpoint`; an IPv6 address stands in brackets."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/]+):([0-9]{1,5})", text)
    if found and 0 < int(found[2]) < 65536:
        return text
    raise OptionError(f"--rdzv-endpoint {text!r}: expected HOST:PORT with a port from 1 to 65535")


def host_name(text: str) -> str:
    """A host name or address of `--master-addr`; brackets around an IPv6 address are taken off."""
    if re.fullmatch(r"\[[0-9a-fA-F:.%]+\]|[^\s\[\]/]+", text):
        return text.strip("[]")
    raise OptionError(f"--master-addr {text!r}: expected a host name or an address")
