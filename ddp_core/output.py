"""Writing a file that the user asked for: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from gpu_topology.topology import TopologyError


def write_whole(path: Path | str, text: str) -> None:
    """Put `text` into the file; on an error an earlier file stays as it was. TopologyError naming the file.

    What is no regular file (/dev/stdout, a pipe) is written to as it is, and a symbolic link keeps leading to its file.
    """
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
        else:
            _replace(target, text)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: a null character
        raise TopologyError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def _replace(target: Path, text: str) -> None:
    """Through a neighbouring file, which takes the name once it is whole."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    mode = target.stat().st_mode & 0o777 if target.exists() else None
    try:
        part.write_text(text, encoding="utf-8")
        if mode is not None:
            part.chmod(mode)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
