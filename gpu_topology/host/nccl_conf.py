"""Variables that NCCL takes from files of its own, as NCCL 2.23 and later read them (src/misc/param.cc, initEnvFunc).

First the file that NCCL_CONF_FILE names, or without it .nccl.conf of the home folder; then /etc/nccl.conf. NCCL adds
each variable to its environment unless it is there already, so the environment wins over files and earlier lines over
later ones.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_FILE = "/etc/nccl.conf"
_MOST_BYTES = 65536


@dataclass(frozen=True, slots=True)
class ConfiguredVariable:
    """A variable that one of NCCL's own configuration files sets, and the file."""

    name: str
    value: str
    file: str


def read_nccl_conf(root: Path, environ: Mapping[str, str]) -> tuple[ConfiguredVariable, ...]:
    """What the files set, each name once, in the order of precedence. Malformed files and lines count as none."""
    found: dict[str, ConfiguredVariable] = {}
    own = environ.get("NCCL_CONF_FILE") or _home_file()
    for file in (SYSTEM_FILE,) if own is None else (own, SYSTEM_FILE):
        path = root / file.lstrip("/") if file.startswith("/") else Path(file)
        for name, value in _lines(path):
            found.setdefault(name, ConfiguredVariable(name, value, file))
    return tuple(found.values())


def _home_file() -> str | None:
    """NCCL asks the user database, not HOME; a container's user may not be in it."""
    try:
        return f"{pwd.getpwuid(os.getuid()).pw_dir}/.nccl.conf"
    except KeyError:
        return None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value of each NCCL_ line. NCCL strips no spaces: with one before "=" a line sets another variable."""
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except (OSError, ValueError):
        return
    for line in content.decode("utf-8", errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("NCCL_") and name.isidentifier():
            yield name, value
