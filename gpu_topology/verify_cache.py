"""The results of `verify`, kept for the launcher and the environment: one small file per set of GPUs.

A verdict holds for one driver version, one NCCL version and one set of UUIDs, and is not used for any other.
The cache never causes an error: a file that cannot be read counts as missing, and a failed write is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ddp_core.cache_folder import cache_folder
from ddp_core.errors import UserError
from ddp_core.files import write_text
from gpu_topology.topology import Topology

SCHEMA = "gpu-topology-verify/1"


@dataclass(frozen=True, slots=True)
class PairResult:
    """Data moved from `a` to `b`: NVML indices, ranks on the CPU.

    way      "copy": a CUDA copy from device to device; "nccl", "gloo": a send and a receive
    gb_s     10^9 bytes per second of the largest message, None where it was not measured
    problem  what was wrong with the data, None where every byte was right
    """

    a: int
    b: int
    way: str
    gb_s: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `verify` on a set of GPUs.

    ok          whether the results were right and in time with only the plan's own environment set
    problem     what went wrong where not `ok`, in one line
    settings    (name, value, reason) of the variables with which the same job succeeded; () where none fixed it
    stage       where it failed: "start", "init", "copy", "send", "sum"; a failure at "start" says nothing about GPUs
    remedy      what else to do about the problem
    words       the last output lines of the rank at fault, where nothing fixed it
    pairs       the result for each pair and direction
    busbw_gb_s  all-reduce bus bandwidth as nccl-tests defines it, 10^9 bytes per second
    model_gb_s  what the slowest link of these GPUs can do, as its nominal rate
    compute     (NVML index, or rank on the CPU; 10^12 operations per second of matrix products)
    concerns    what works but is slower than it should be, one line each
    backend     "nccl" or "gloo"
    ranks       number of processes that took part
    seconds     duration of the whole check
    when        time of the check, ISO 8601 in UTC
    """

    ok: bool
    problem: str | None = None
    settings: tuple[tuple[str, str, str], ...] = ()
    stage: str | None = None
    remedy: str | None = None
    words: tuple[str, ...] = ()
    pairs: tuple[PairResult, ...] = ()
    busbw_gb_s: float | None = None
    model_gb_s: float | None = None
    compute: tuple[tuple[int, float], ...] = ()
    concerns: tuple[str, ...] = ()
    backend: str = "nccl"
    ranks: int = 0
    seconds: float = 0.0
    when: str = ""


def recall(topology: Topology, uuids: Sequence[str]) -> Verdict | None:
    """The verdict kept for these GPUs under this driver and NCCL; None where there is none. Never raises."""
    folder = cache_folder("ddp_launch")
    if folder is None or not any(folder.glob("verify-*.json")):
        return None  # checked first: computing the key takes longer, and most machines have no verdict
    key = _key(topology, uuids)
    path = None if key is None else _path(key)
    if path is None:
        return None
    try:
        kept = json.loads(path.read_bytes(), parse_constant=_refuse)
        return _verdict(kept["verdict"]) if (kept["schema"], kept["key"]) == (SCHEMA, key) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remember(topology: Topology, uuids: Sequence[str], verdict: Verdict) -> bool:
    """Keep a verdict for `recall`; False where it was not kept. Never raises.

    A failure that nothing fixes is not kept, and removes what was kept: a repaired machine needs a new check.
    """
    key = _key(topology, uuids)
    path = None if key is None else _path(key)
    if path is None:
        return False
    if not verdict.ok and not verdict.settings:
        with suppress(OSError):
            path.unlink()
        return False
    text = json.dumps({"schema": SCHEMA, "key": key, "verdict": asdict(verdict)}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except (OSError, UserError):
        return False
    return True


def _refuse(word: str) -> float:
    """Errors: ValueError for NaN and Infinity."""
    raise ValueError(word)


def _key(topology: Topology, uuids: Sequence[str]) -> dict[str, object] | None:
    """What a verdict is valid for; None where that cannot be identified: no UUID, no driver version, no NCCL."""
    named = bool(uuids) and all(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids)
    nccl = _nccl_version() if named and topology.driver_version else None
    if nccl is None:
        return None
    return {"driver": topology.driver_version, "nccl": nccl, "uuids": sorted(uuids)}


def _nccl_version() -> str | None:
    """The version of torch's NCCL, without importing torch; the version of torch where NCCL is built into it."""
    from importlib import metadata  # slow to import: not before it is needed

    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    for requirement in torch.requires or ():
        if name := re.match(r"nvidia-nccl-cu\d+", requirement):
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(name[0])
    return f"of torch {torch.version}"


def _path(key: dict[str, object]) -> Path | None:
    """The file of a key."""
    import hashlib

    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = cache_folder("ddp_launch")
    return None if folder is None else folder / f"verify-{digest[:16]}.json"


def _verdict(kept: dict[str, object]) -> Verdict:
    """A Verdict from plain data. Raises TypeError or LookupError for anything that is not a verdict."""
    fields = _checked(kept, _VERDICT)
    settings = [tuple(row) for row in fields.pop("settings")]
    if not all(len(row) == 3 and all(isinstance(word, str) for word in row) for row in settings):
        raise TypeError("settings")
    pairs = tuple(PairResult(**_checked(row, _PAIR)) for row in fields.pop("pairs"))
    words, concerns = (tuple(str(line) for line in fields.pop(name)) for name in ("words", "concerns"))
    compute = tuple((int(index), float(speed)) for index, speed in fields.pop("compute"))
    return Verdict(**fields, settings=tuple(settings), words=words, pairs=pairs, concerns=concerns, compute=compute)


_Shape = Mapping[str, type | tuple[type, ...]]
_NUMBER = (int, float)
_TEXT = (str, NoneType)
_VERDICT: _Shape = {
    "ok": bool,
    "problem": _TEXT,
    "settings": list,
    "stage": _TEXT,
    "remedy": _TEXT,
    "words": list,
    "pairs": list,
    "busbw_gb_s": (*_NUMBER, NoneType),
    "model_gb_s": (*_NUMBER, NoneType),
    "compute": list,
    "concerns": list,
    "backend": str,
    "ranks": int,
    "seconds": _NUMBER,
    "when": str,
}
_PAIR: _Shape = {"a": int, "b": int, "way": str, "gb_s": (*_NUMBER, NoneType), "problem": _TEXT}


def _checked(kept: dict[str, Any], shape: _Shape) -> dict[str, Any]:
    """The values of the names in `shape`. Raises LookupError for a missing one, TypeError for one of another type."""
    for name, types in shape.items():
        if not isinstance(kept[name], types):
            raise TypeError(name)
    return {name: kept[name] for name in shape}
