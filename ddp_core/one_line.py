"""Messages that are one printable line, whatever stands in a user's value or file."""

from __future__ import annotations

__all__ = ["one_line"]

_LONGEST, _HEAD, _TAIL = 900, 600, 250


def one_line(text: str) -> str:
    """`text` with its line breaks as blanks, other unprintable characters as escapes, and the middle of a very long one
    left out."""
    if len(text) > _LONGEST:
        text = f"{text[:_HEAD]} [...] {text[-_TAIL:]}"
    text = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
