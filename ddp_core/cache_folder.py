"""Where this user's caches are: verdicts, measured speeds, decoded images, compiled code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder `name` below $XDG_CACHE_HOME, else below ~/.cache; None for a user without a home folder.

    A relative XDG_CACHE_HOME is ignored. Source: XDG Base Directory Specification.
    """
    wanted = environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(wanted) if wanted.startswith("/") else Path.home() / ".cache") / name
    except RuntimeError:
        return None
