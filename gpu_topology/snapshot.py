"""A `Topology` as a JSON file and back, lossless: plan one machine on another, replay a bug report.

A file from another tool needs only what nvidia-smi and sysfs show, in their notation: a GPU its index, a link its ends
and "NV4" or "PHB", each pair once or twice, "CNS" for peer access, "Enabled" for MIG mode, -1 for an unknown NUMA node.
Any other notation is refused in one line; the limits below keep every command under 5 s on any file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints
from unicodedata import category

from ddp_core.errors import TopologyError
from ddp_core.files import write_text
from gpu_topology.topology import MOST_GPUS, LinkLevel, Topology

T = TypeVar("T")

SCHEMA = "gpu-topology/1"

MOST_BYTES, MOST_ITEMS, MOST_CHARACTERS = 8 * 2**20, 4096, 1000
"""Most bytes of the file, items of a list in it (GPUs: `MOST_GPUS`), and characters of a text."""

# Largest values of the numbers (counts, bytes, indices), far beyond any machine. NVML's have at most 64 bits.
LARGEST = 2**64 - 1
LARGEST_OF = {
    "index": 4095,
    "compute_capability": 99,
    "numa_node": 65535,
    "utilization": 100,
    "cores": 10**7,
    "clock_mhz": 10**6,
    "pcie_generation": 15,
    "pcie_generation_now": 15,
    "pcie_width": 64,
    "pcie_width_now": 64,
    "pcie_slot_width": 64,
    "nvlinks": 999,
}

_MADE_BY = "`python -m gpu_topology snapshot -o FILE` makes a topology file, nvidia-smi's tables are none"

_quote = Repr()
_quote.maxstring = _quote.maxother = _quote.maxlong = 60


def to_dict(topology: Topology) -> Json:
    """Plain lists and dicts for json.dump, with the key "schema" first. Bytes, percent, MHz as in `Topology`."""
    return {"schema": SCHEMA, **asdict(topology, dict_factory=_plain)}


def _plain(items: list[tuple[str, object]]) -> Json:
    """A JSON object from its items; tuples become lists."""
    return {key: _as_list(value) for key, value in items}


def _as_list(value: object) -> object:
    """Tuples as lists, so that what is written equals what is read."""
    return [_as_list(item) for item in value] if isinstance(value, tuple) else value


def from_dict(data: object) -> Topology:
    """The inverse of `to_dict`; reads a saved `report --json` too.

    Unknown keys are ignored, absent ones are unknown; TopologyError, one line, for anything that is no topology.
    """
    if not isinstance(data, dict):
        raise TopologyError(f'not a topology: expected a JSON object with "schema": "{SCHEMA}"')
    schema = data.get("schema")
    if schema != SCHEMA:
        raise TopologyError(f"schema is {_quote.repr(schema)}, this version reads {SCHEMA!r}")
    # A report's `warnings` include those of the selection and the environment, which the reader computes anew.
    own = {"warnings": data["driver_warnings"]} if "driver_warnings" in data else {}
    try:
        topology: Topology = _decode(Topology, usual({**data, **own}), "the topology")
        _check(topology)
    except (TypeError, ValueError) as error:
        raise TopologyError(f"not a valid {SCHEMA} topology: {error}") from None
    except RecursionError:
        raise TopologyError(f"not a valid {SCHEMA} topology: it is nested too deeply") from None
    return topology


def save(topology: Topology, path: Path | str) -> None:
    """Write the snapshot, whole or not at all; TopologyError naming the file when it cannot be written."""
    write_text(path, json.dumps(to_dict(topology), indent=1) + "\n", TopologyError)


def load(path: Path | str) -> Topology:
    """Read a snapshot, in UTF-8 or in UTF-16 as PowerShell writes it; TopologyError naming the file when it is
    unreadable, too large, not JSON, or of another schema."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TopologyError(f"cannot read {path}: {error.strerror or error}") from None
    if len(text) > MOST_BYTES:
        raise TopologyError(f"{path} is larger than {MOST_BYTES // 2**20} MiB: it is no topology file")
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        hint = "" if text.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith((b"{", b"[")) else f"; {_MADE_BY}"
        raise TopologyError(f"{path} is not JSON: {error}{hint}") from None
    try:
        return from_dict(data)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def _no_number(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which JSON does not have. Errors: ValueError."""
    raise ValueError(f"{name} is no number of JSON's")


def _check(topology: Topology) -> None:
    """Check what no single field shows: duplicates and the ends of links. Errors: ValueError."""
    indices = {gpu.index for gpu in topology.gpus}
    if index := _repeated(gpu.index for gpu in topology.gpus):
        raise ValueError(f"GPU {index[0]} occurs twice")
    uuids = [gpu.uuid for gpu in topology.gpus if gpu.uuid]
    uuids += [one.uuid for gpu in topology.gpus for one in gpu.mig_devices]
    if odd := [uuid for uuid in uuids if not uuid or re.search(r"[\s,]", uuid)]:
        raise ValueError(f"uuid is {_quote.repr(odd[0])}, not one word without a comma")
    if uuid := _repeated(uuid.lower() for uuid in uuids):
        raise ValueError(f"the UUID {_quote.repr(uuid[0])} occurs twice")
    if pair := _repeated((link.a, link.b) for link in topology.links):
        raise ValueError(f"the link {pair[0][0]}-{pair[0][1]} occurs twice")
    for link in topology.links:
        name = f"the link {link.a}-{link.b}"
        missing = next((end for end in (link.a, link.b) if end not in indices), None)
        if missing is not None:
            raise ValueError(f"{name} names GPU {missing}, which does not exist")
        if link.a == link.b:
            raise ValueError(f"{name} joins a GPU to itself")


def _repeated(values: Iterable[T]) -> list[T]:
    """The values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _count(items: list[object], name: str) -> None:
    """Errors: ValueError for a list that is too long."""
    most = MOST_GPUS if name == "gpus" else MOST_ITEMS
    if len(items) > most:
        raise ValueError(f"{name} has {len(items)} entries, of which {most} are read at most")


_hints = cache(get_type_hints)


def _decode(kind: Any, value: object, name: str) -> Any:
    """A JSON value as the annotated type `kind` of a dataclass field. Errors: ValueError or TypeError for another."""
    if get_origin(kind) is UnionType:
        inner = next(one for one in get_args(kind) if one is not NoneType)
        return None if value is None else _decode(inner, value, name)
    if get_origin(kind) is tuple:
        items, kinds = value, get_args(kind)
        if not isinstance(items, list) or (kinds[-1] is not ... and len(items) != len(kinds)):
            length = "any length" if ... in kinds else len(kinds)
            raise ValueError(f"{name} is {_quote.repr(value)}, not a list of {length}")
        _count(items, name)
        return tuple(_decode(kinds[0], item, name) for item in items)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} holds {_quote.repr(value)}, not an object")
        hints = _hints(kind)
        lacking = next((one.name for one in fields(kind) if one.default is MISSING and one.name not in value), None)
        if lacking is not None:
            raise ValueError(f"an object of {name} has no {lacking!r}")
        return kind(**{key: _decode(hints[key], item, key) for key, item in value.items() if key in hints})
    if issubclass(kind, LinkLevel):
        return _level(value)
    return _plain_value(kind, value, name)


def _level(value: object) -> LinkLevel:
    """Errors: ValueError for anything but a link level."""
    if not isinstance(value, str) or value not in set(LinkLevel):
        raise ValueError(f"level is {_quote.repr(value)}, not NV1, NV2 ..., {', '.join(LinkLevel)} or null")
    return LinkLevel(value)


def _plain_value(kind: type, value: object, name: str) -> object:
    """A number, text or bool. Errors: ValueError for another type, size or control characters."""
    if type(value) is not kind:  # bool is an int to isinstance, and must not be one here
        raise ValueError(f"{name} is {_quote.repr(value)}, not {kind.__name__}")
    if isinstance(value, int) and not 0 <= value <= LARGEST_OF.get(name, LARGEST):
        raise ValueError(f"{name} is {_quote.repr(value)}, not a number of 0 to {LARGEST_OF.get(name, '2^64 - 1')}")
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise ValueError(f"{name} has {len(value)} characters, of which {MOST_CHARACTERS} are read at most")
        value.encode()  # half a surrogate pair could not be printed; its UnicodeEncodeError is a ValueError
        if any(category(character) == "Cc" for character in value):  # a foreign file must not control the terminal
            raise ValueError(f"{name} is {_quote.repr(value)}, with a control character in it")
    return value


Json = dict[str, object]

# The legend of `nvidia-smi topo -p2p`.
_PEER_WORDS = {
    "OK": "ok",
    "CNS": "chipset-not-supported",
    "GNS": "gpu-not-supported",
    "TNS": "topology-not-supported",
    "DR": "disabled-by-regkey",
    "NS": "not-supported",
    "U": None,
    "UNKNOWN": None,
}
_MODES = {"enabled": True, "disabled": False, "n/a": None, "[n/a]": None}


def usual(data: Json) -> Json:
    """`data` in the notation of `to_dict`. Errors: ValueError where a link contradicts itself."""
    gpus, links = data.get("gpus"), data.get("links")
    if isinstance(gpus, list):
        data = {**data, "gpus": [_gpu(gpu) if isinstance(gpu, dict) else gpu for gpu in gpus]}
    if isinstance(links, list):
        _count(links, "links")
        data = {**data, "links": list(_once(links))}
    return data


def _gpu(gpu: Json) -> Json:
    """A GPU with the notation of other tools replaced by that of `to_dict`."""
    gpu = dict(gpu)
    if gpu.get("numa_node") == -1:
        gpu["numa_node"] = None
    mode = gpu.get("mig_mode")
    if isinstance(mode, str) and mode.lower() in _MODES:
        gpu["mig_mode"] = _MODES[mode.lower()]
    elif type(mode) is int and mode in (0, 1):
        gpu["mig_mode"] = mode == 1
    return gpu


def _once(links: list[object]) -> Iterator[object]:
    """Each link once, where the file has a full matrix; no diagonal. A pair with two different links keeps both."""
    seen: dict[object, list[Json]] = {}
    for link in links:
        if not isinstance(link, dict):
            yield link
        elif link.get("level") != "X":
            plain = _link(link)
            before = seen.setdefault((str(plain.get("a")), str(plain.get("b"))), [])
            if plain not in before:
                before.append(plain)
                yield plain


def _link(link: Json) -> Json:
    """A link as `Link` stores it: a below b, "NV4" as level NV with 4 links, peer access as in `PeerAccess`."""
    level, nvlinks = link.get("level"), link.get("nvlinks")
    bonded = re.fullmatch(r"NV([1-9]\d?)", level) if isinstance(level, str) else None
    if bonded:
        count = int(bonded[1])
        if nvlinks not in (None, count):
            raise ValueError(f"level is {level!r}, but nvlinks is {str(nvlinks)[:60]}")
        link = {**link, "level": LinkLevel.NV.value, "nvlinks": count}
    if "p2p" in link:
        link = {**link, "p2p": _word(link["p2p"])}
    peer = link.get("peer")
    if isinstance(peer, dict):
        link = {**link, "peer": {kind: _pair(pair) for kind, pair in peer.items()}}
    return _turned(link)


def _turned(link: Json) -> Json:
    """A link with the lower index first, its directions swapped accordingly."""
    a, b, peer = link.get("a"), link.get("b"), link.get("peer")
    if type(a) is not int or type(b) is not int or a <= b:
        return link
    link = {**link, "a": b, "b": a}
    if isinstance(peer, dict):
        link["peer"] = {kind: pair[::-1] if isinstance(pair, list) else pair for kind, pair in peer.items()}
    return link


def _pair(pair: object) -> object:
    """The two directions of a peer status, in the words of `PeerAccess`."""
    return [_word(word) for word in pair] if isinstance(pair, list) else pair


def _word(word: object) -> object:
    """A peer status in the words of `PeerAccess`."""
    return _PEER_WORDS.get(word.upper(), word) if isinstance(word, str) else word
