"""Where torch keeps compiled code from one run to the next: a folder of the user's own.

torch's default is a folder in /tmp by a name that anybody can guess, and who makes it first decides what is loaded
from it. torch 2.15 makes it as soon as an optimizer is created. Torch-free: to be called before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["keep_private"]

_NAME = "TORCHINDUCTOR_CACHE_DIR"


def keep_private(environ: MutableMapping[str, str]) -> None:
    """Name the folder below the user's caches, unless the user has named one; torch's own where none can be made."""
    if environ.get(_NAME):
        return
    base = environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "ddp_train" / "compiled"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return
    if folder.stat().st_uid == os.getuid():
        environ[_NAME] = str(folder)
