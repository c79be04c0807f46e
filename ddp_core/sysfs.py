"""Reads small files of /proc and /sys. A file that cannot be read gives None: containers hide many of them."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """The content without white space around it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The content as a whole number; None for "max" and other words too."""
    word = text(path)
    return int(word) if word is not None and word.lstrip("-").isdecimal() else None


def entries(folder: Path) -> tuple[str, ...]:
    """The names in a folder, sorted; none where there is no folder."""
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir()))
    except OSError:
        return ()
