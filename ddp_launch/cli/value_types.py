"""Parsers of the launcher's option values: from text to a checked value, or an error of one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import Template

from ddp_core.cli import memory_size
from ddp_core.errors import OptionError

LARGEST_NODES = 100_000
BOTH = 3
AS_MANY_AS_CPUS, AS_MANY_AS_GPUS = -1, -2
WORDS = {"auto": None, "cpu": AS_MANY_AS_CPUS, "gpu": AS_MANY_AS_GPUS}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LOG_BYTES = 32 * 2**20
"""Bytes that a log keeps of each stream of a rank, by default."""


def whole(option: str, least: int, largest: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `largest`."""

    def parse(text: str) -> int:
        """The number. Errors: OptionError."""
        # At most 18 digits: int() refuses a text of thousands of digits with a message that does not help.
        if re.fullmatch(r"\+?[0-9]{1,18}", text) and least <= int(text) <= largest:
            return int(text)
        raise OptionError(f"{option} {text!r}: expected a whole number from {least} to {largest}")

    return parse


def seconds(option: str, least: float, largest: float) -> Callable[[str], float]:
    """A parser of seconds from `least` to `largest`."""

    def parse(text: str) -> float:
        """The time in seconds. Errors: OptionError."""
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text) and least <= float(text) <= largest:
            return float(text)
        raise OptionError(f"{option} {text!r}: expected seconds from {least:g} to {largest:g}")

    return parse


def ranks(option: str, largest: int) -> Callable[[str], int | None]:
    """A parser of a number of ranks on a node. torchrun's words are accepted: auto gives None (as many as GPUs are
    selected), cpu gives AS_MANY_AS_CPUS, gpu gives AS_MANY_AS_GPUS."""
    number = whole(option, 1, largest)

    def parse(text: str) -> int | None:
        """The number of ranks, or the value of one of torchrun's words. Errors: OptionError."""
        if text in WORDS:
            return WORDS[text]
        try:
            return number(text)
        except OptionError as error:
            raise OptionError(f"{error}, auto or gpu") from None

    return parse


@dataclass(frozen=True)
class Tee:
    """Which ranks are shown on the screen besides the first of the node, and which of their streams: 1 is standard
    output, 2 standard error, 3 both, 0 none. `everyone`: streams of ranks that `ranks` does not name; `only`: show only
    these local ranks; `prefix`: begins each line, also of the first rank, with ${rank}, ${local_rank}, ${role_name};
    `first`: whether the first rank of the node is shown in any case, as it is on the first host of a run."""

    everyone: int = 0
    ranks: tuple[tuple[int, int], ...] = ()
    only: frozenset[int] | None = None
    prefix: str | None = None
    first: bool = True

    def streams(self, rank: int) -> int:
        """The streams of this rank that are shown if it is not the first of its node."""
        return dict(self.ranks).get(rank, self.everyone)

    def shown(self, rank: int, local_rank: int) -> tuple[int, str]:
        """The streams of this rank that are shown, and the beginning of their lines."""
        named = local_rank == 0 and self.first if self.only is None else local_rank in self.only
        streams = BOTH if named else self.streams(rank) if self.only is None else 0
        template = "" if local_rank == 0 and self.first else DEFAULT_PREFIX
        names = {"rank": str(rank), "local_rank": str(local_rank), "role_name": "rank"}
        return streams, Template(template if self.prefix is None else self.prefix).safe_substitute(names)


DEFAULT_PREFIX = "[rank ${rank}] "
NO_TEE = Tee()


def tee(text: str) -> Tee:
    """Parse all; or two ranks or more, as in 1,2; or torchrun's forms: streams of all ranks, or RANK:STREAMS,..."""
    if text == "all":
        return Tee(BOTH)
    if re.fullmatch(r"[0-3]", text):
        return Tee(int(text))
    parts = [re.fullmatch(r"([0-9]{1,6})(?::([0-3]))?", part) for part in text.split(",")]
    if all(parts) and len({part[1] for part in parts if part}) == len(parts):
        return Tee(0, tuple((int(part[1]), int(part[2] or BOTH)) for part in parts if part))
    raise OptionError(
        f"--tee {text!r}: expected all, ranks such as 1,2, one rank such as 1:3, or torchrun's streams from 0 to 3"
    )


@dataclass(frozen=True)
class OneOf:
    """A parser of one word of a list."""

    option: str
    choices: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The word. Errors: OptionError."""
        if text in self.choices:
            return text
        raise OptionError(f"{self.option} {text!r}: expected one of {', '.join(self.choices)}")


@dataclass(frozen=True)
class SomeOf:
    """A parser of several words of a list, with commas between them."""

    option: str
    choices: tuple[str, ...]

    def __call__(self, text: str) -> frozenset[str]:
        """The words. Errors: OptionError."""
        words = text.split(",")
        if set(words) <= set(self.choices):
            return frozenset(words)
        raise OptionError(f"{self.option} {text!r}: expected some of {', '.join(self.choices)}, with commas between")


@dataclass(frozen=True)
class FileName:
    """A parser of file and folder names, which are looked at later."""

    option: str

    def __call__(self, text: str) -> str:
        """The name. Errors: OptionError."""
        if text and "\0" not in text:
            return text
        raise OptionError(f"{self.option} {text!r}: expected a path")


def device_list(option: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated GPU indices or UUIDs, which the selection looks up later."""

    def parse(text: str) -> tuple[str, ...]:
        """The indices or UUIDs. Errors: OptionError."""
        parts = tuple(part.strip() for part in text.split(","))
        if all(re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z/-]*", part) for part in parts):
            return parts
        raise OptionError(f"{option} {text!r}: expected GPU indices or UUIDs separated by commas, as in {option} 0,1")

    return parse


def memory(option: str) -> Callable[[str], int]:
    """A parser of memory sizes to bytes: 20, 20GB, 20GiB or 20000MB."""

    def parse(text: str) -> int:
        """The size in bytes. Errors: OptionError."""
        size = memory_size(text)
        if size is None:
            raise OptionError(f"{option} {text!r}: expected a size from 0 to 1000000GB, as in 20GB, 20GiB or 20000MB")
        return size

    return parse


def duration(option: str) -> Callable[[str], float]:
    """A parser of times to seconds: 90, 90s, 30m, 1.5h, 1h30m or 2d."""

    def parse(text: str) -> float:
        """The time in seconds. Errors: OptionError."""
        parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]|$)", text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * SECONDS[unit] for number, unit in parts)
        raise OptionError(f"{option} {text!r}: expected a time in seconds, or as in 90s, 30m, 2h or 1h30m")

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
    """HOST:PORT of `--rdzv-endpoint`; an IPv6 address is in brackets."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/]+):([0-9]{1,5})", text)
    if found and 0 < int(found[2]) < 65536:
        return text
    raise OptionError(f"--rdzv-endpoint {text!r}: expected HOST:PORT with a port from 1 to 65535")


def settings(text: str) -> dict[str, str]:
    """The settings of `--rdzv-conf`, as torchrun takes them: KEY=VALUE,KEY=VALUE."""
    pairs = [part.partition("=") for part in text.split(",")] if text.strip() else []
    if all(key.strip() and value.strip() for key, _, value in pairs):
        return {key.strip(): value.strip() for key, _, value in pairs}
    raise OptionError(f"--rdzv-conf {text!r}: expected KEY=VALUE,KEY=VALUE")


def local_ranks(text: str) -> frozenset[int]:
    """The ranks of `--local-ranks-filter`."""
    parts = [part.strip() for part in text.split(",")]
    if all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        return frozenset(map(int, parts))
    raise OptionError(f"--local-ranks-filter {text!r}: expected numbers of ranks on this node, as in 0,1")


def host_name(text: str) -> str:
    """A host name or address of `--master-addr`; brackets around an IPv6 address are taken off."""
    if re.fullmatch(r"\[[0-9a-fA-F:.%]+\]|[^\s\[\]/]+", text):
        return text.strip("[]")
    raise OptionError(f"--master-addr {text!r}: expected a host name or an address")
