"""Variables from NCCL's own configuration files, as NCCL 2.23 and later read them (src/misc/param.cc, initEnvFunc).

First the file that NCCL_CONF_FILE names, or without it .nccl.conf in the home folder; then /etc/nccl.conf. NCCL adds
each variable to its environment unless it is already set, so the environment takes precedence over files, and earlier
lines over later ones.
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
    """The variables that the files set, each once, in order of precedence. Bad files and lines are ignored."""
    found: dict[str, ConfiguredVariable] = {}
    own = environ.get("NCCL_CONF_FILE") or _home_file()
    for file in (SYSTEM_FILE,) if own is None else (own, SYSTEM_FILE):
        path = root / file.lstrip("/") if file.startswith("/") else Path(file)
        for name, value in _lines(path):
            found.setdefault(name, ConfiguredVariable(name, value, file))
    return tuple(found.values())


def _home_file() -> str | None:
    """The file in the home folder by the user database, which NCCL uses instead of HOME; None for a user not in it."""
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
