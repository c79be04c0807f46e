"""An environment as text that a shell evaluates, as arguments of `docker run`, or as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from gpu_topology.environment.settings import Setting

SHELLS = ("sh", "fish", "json", "docker")

# Shell -> how a variable is set, and how it is removed.
_PATTERNS = {"sh": ("export {name}={value}", "unset {name}"), "fish": ("set -gx {name} {value}", "set -e {name}")}


def as_text(settings: Sequence[Setting], shell: str) -> str:
    """The settings for one of `SHELLS`, without a line break at the end."""
    if shell == "json":
        return json.dumps(
            [
                {"name": s.name, "value": s.value, "reason": s.reason, "kept": s.kept, "unset": s.unset}
                for s in settings
            ],
            indent=1,
        )
    return _docker(settings) if shell == "docker" else _lines(settings, *_PATTERNS[shell])


def _lines(settings: Sequence[Setting], to_set: str, to_unset: str) -> str:
    """One line for each variable, its reason as a comment."""
    lines = []
    for setting in settings:
        line = (to_unset if setting.unset else to_set).format(name=setting.name, value=shlex.quote(setting.value))
        if setting.kept:
            lines.append(_comment(f"kept: {line}  # {setting.reason}"))
        else:
            lines.append(f"{line}  {_comment(setting.reason)}")
    return "\n".join(lines)


def _comment(text: str) -> str:
    """A shell comment, on one line: a user's value may hold a line break, and the text after it must not be run."""
    return "# " + " ".join(text.splitlines())


def _docker(settings: Sequence[Setting]) -> str:
    """Arguments for `docker run`, on one line. A container inherits no variables, so the user's own are included."""
    inside = [setting for setting in settings if not setting.unset]
    return " ".join(f"-e {shlex.quote(f'{setting.name}={setting.value}')}" for setting in inside)
