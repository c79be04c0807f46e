"""Expands Slurm's node lists, `rack1-[001-010,012],gpu5`, to names, as `scontrol show hostnames` does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ddp_core.errors import OptionError

LARGEST_LIST = 100_000
PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")


def expand(text: str, variable: str) -> tuple[str, ...]:
    """The names in a node list, in order. `variable`: the variable with the list, for messages. Errors: OptionError.

    Several brackets in one name give every combination, the last one running fastest; `[08-11]` keeps its zeros.
    """
    names: list[str] = []
    for word in _words(text):
        found = _names(word)
        if not found or len(names) + len(found) > LARGEST_LIST:
            raise OptionError(f"{variable}={text[:200]!r} in the environment: not a node list such as node[01-03,7]")
        names += found
    return tuple(names)


def expand_counts(text: str, variable: str) -> tuple[int, ...]:
    """Slurm's counts per node, `4(x2),3` as (4, 4, 3). Errors: OptionError."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part.strip())
        if found is None or len(counts) + int(found[2] or 1) > LARGEST_LIST:
            raise OptionError(f"{variable}={text[:200]!r} in the environment: not a list of counts such as 4(x2),3")
        counts += [int(found[1])] * int(found[2] or 1)
    return tuple(counts)


def _words(text: str) -> Iterator[str]:
    """The parts between commas outside brackets."""
    word, depth = "", 0
    for letter in text.strip():
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield word
            word = ""
        else:
            word += letter
    yield word


def _names(word: str) -> list[str]:
    """The names in one part of a list; none where it is malformed."""
    if "".join(match[0] for match in PIECE.finditer(word)) != word or re.search(r"\s", word):
        return []
    names = [""] if word else []
    for bracket, plain in PIECE.findall(word):
        pieces = [plain] if plain else _ranges(bracket)
        if len(names) * len(pieces) > LARGEST_LIST:
            return []
        names = [name + piece for name in names for piece in pieces]
    return names


def _ranges(text: str) -> list[str]:
    """`01-03,7` as 01 02 03 7; nothing where it is malformed."""
    pieces: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if found is None:
            return []
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= LARGEST_LIST:
            return []
        pieces += [str(value).zfill(len(found[1])) for value in range(first, last + 1)]
    return pieces
