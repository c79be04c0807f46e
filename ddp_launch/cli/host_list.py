"""The hosts of a run over ssh: `--hosts a,b`, or a hostfile as DeepSpeed, horovod and Open MPI read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_core.errors import OptionError

LARGEST_SLOTS = 1024
OTHER_SLOTS = ("max_slots", "max-slots")
"""Open MPI's upper limit of slots, which is accepted and has no effect."""
_BRACKETED = r"\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]"
_ENTRY = re.compile(rf"((?:[\w.-]+@)?(?:{_BRACKETED}|[\w.-]+))(?::([0-9]{{1,5}}))?")
_ADDRESS = re.compile(r"(?:[\w.-]+@)?[0-9a-fA-F.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[\w.-]+)?")


@dataclass(frozen=True)
class Host:
    """A host, by its name for ssh. `slots`: the number of its ranks; None: one for each GPU that is selected there."""

    name: str
    slots: int | None = None


def host_list(text: str) -> tuple[Host, ...]:
    """The hosts of `--hosts`. Errors: OptionError."""
    return _distinct([_host([part.strip()], "--hosts") for part in text.split(",")], "--hosts")


def hostfile(path: str) -> tuple[Host, ...]:
    """The hosts of a file: a line each, with `slots=N` or without; # begins a comment. Errors: OptionError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise OptionError(f"--hostfile {path!r}: {why}") from None
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            hosts.append(_host(words, f"--hostfile {path!r}, line {number}"))
    if not hosts:
        raise OptionError(f"--hostfile {path!r}: no host in it; expected lines such as: gpu01 slots=4")
    return _distinct(hosts, f"--hostfile {path!r}")


def _distinct(hosts: Iterable[Host], where: str) -> tuple[Host, ...]:
    """The hosts. Errors: OptionError for one that is named twice."""
    found: dict[str, Host] = {}
    for host in hosts:
        if host.name in found:
            raise OptionError(f"{where}: duplicate host {host.name}; one launcher starts all ranks of a host")
        found[host.name] = host
    return tuple(found.values())


def _host(words: Sequence[str], where: str) -> Host:
    """Parse HOST, USER@HOST or horovod's HOST:SLOTS, then slots=N; an IPv6 address with slots needs brackets."""
    name, slots = words[0], None
    if not _ADDRESS.fullmatch(name):
        found = _ENTRY.fullmatch(name)
        # ssh would take a name that begins with a dash for an option.
        if found is None or name.startswith("-"):
            raise OptionError(
                f"{where}: {name!r} is no host; expected names that ssh knows, as in gpu01,me@gpu02,gpu03:4"
            )
        name, slots = re.sub(r"[][]", "", found[1]), found[2]
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key == "slots":
            slots = value
        elif key not in OTHER_SLOTS:
            raise OptionError(f"{where}: {word!r} is not known here; expected HOST slots=N")
    if slots is not None and not (re.fullmatch(r"[0-9]{1,4}", slots) and 1 <= int(slots) <= LARGEST_SLOTS):
        raise OptionError(
            f"{where}: {slots!r} slots of {name}: expected a whole number from 1 to {LARGEST_SLOTS}"
            " (a port belongs in ~/.ssh/config)"
        )
    return Host(name, None if slots is None else int(slots))


def exported(text: str) -> tuple[str, ...]:
    """The variables that one `--export` names: NAME,NAME as (NAME, NAME), or one NAME=VALUE. Errors: OptionError."""
    name, equals, _ = text.partition("=")
    names = [name] if equals else [part.strip() for part in text.split(",")]
    if all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", one) for one in names):
        return (text,) if equals else tuple(names)
    # The message leaves the value out, since it may be a secret.
    raise OptionError(f"--export {name!r}: expected names of variables, as in HF_TOKEN,NCCL_DEBUG, or NAME=VALUE")
